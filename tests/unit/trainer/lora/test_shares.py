"""Who learns from what: one adapter from all rows, or each predictor's from its own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from tests.unit.trainer.lora.tiny import trace

from tandem_api.errors import ConfigurationError
from tandem_api.records import TraceRow
from tandem_api.v1alpha1.weight_optimizers import WeightOptimizer
from tandem_trainer.adapters.predictors import read_predictors, write_predictors
from tandem_trainer.lora.shares import divide, gather


def own(minimum: int = 2) -> WeightOptimizer:
    return WeightOptimizer.model_validate({"adapters": "per-predictor", "traces": {"minPerPredictor": minimum}})


def rows(**counts: int) -> list[TraceRow]:
    return [trace(number, predictor=name) for name, count in counts.items() for number in range(count)]


def adapters(folder: Path, predictors: Sequence[str]) -> Path:
    for number, name in enumerate(predictors):
        (folder / str(number)).mkdir(parents=True)
        (folder / str(number) / "weights").write_text(name)
    write_predictors(folder, tuple(predictors))
    return folder


def test_one_adapter_learns_from_the_rows_of_all_predictors() -> None:
    (share,) = divide(rows(search=3, answer=1), WeightOptimizer(), None)
    assert (share.predictor, len(share.pairs), share.start) == (None, 4, None)


def test_each_predictor_learns_from_its_own_rows_and_one_with_too_few_is_left_out() -> None:
    shares = divide(rows(search=3, answer=2, repair=1), own(), None)
    assert [(share.predictor, len(share.pairs)) for share in shares] == [("answer", 2), ("search", 3)]
    assert all(pair.predictor == share.predictor for share in shares for pair in share.pairs)


def test_each_predictor_goes_on_from_its_own_adapter_and_keeps_it_where_rows_are_too_few(tmp_path: Path) -> None:
    before = adapters(tmp_path / "before", ["repair", "search"])
    shares = divide(rows(search=3, answer=2, repair=1), own(), before)
    assert [(share.predictor, len(share.pairs), share.start) for share in shares] == [
        ("answer", 2, None),
        ("repair", 0, before / "0"),
        ("search", 3, before / "1"),
    ]
    made = adapters(tmp_path / "made", ["answer", "search"])
    assert gather(shares, [made / "0", None, made / "1"], tmp_path / "all") == ("answer", "repair", "search")
    assert read_predictors(tmp_path / "all") == ("answer", "repair", "search")
    assert [(tmp_path / "all" / str(n) / "weights").read_text() for n in range(3)] == ["answer", "repair", "search"]


def test_adapters_of_the_other_kind_are_not_continued(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    with pytest.raises(ConfigurationError, match=r"the step before left one adapter.*startFrom: original"):
        divide(rows(search=3), own(), tmp_path / "one")
    before = adapters(tmp_path / "several", ["search"])
    with pytest.raises(ConfigurationError, match="left an adapter for each predictor"):
        divide(rows(search=3), WeightOptimizer(), before)


def test_more_predictors_than_can_be_served_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="found 9 predictors to train; at most 8"):
        divide(rows(**{f"p{n}": 2 for n in range(9)}), own(), None)
