"""Which traces are kept for training, and that every run is accounted for."""

from __future__ import annotations

from typing import Any

import pytest

from tandem_api.records import PredictorCall, ScoredExample
from tandem_api.v1alpha1.weight_optimizers import Traces
from tandem_trainer.traces.filtering import Messages, passed, select_traces


def call(completion: str, predictor: str = "answer", *, is_parsed: bool = True) -> PredictorCall:
    outputs = {"answer": completion} if is_parsed else None
    return PredictorCall(
        predictor=predictor, inputs={"q": "1"}, messages=({"content": "long"},), completion=completion, outputs=outputs
    )


def run(example: str, sample: int = 0, score: float = 1.0, status: Any = "ok", *calls: PredictorCall) -> ScoredExample:
    return ScoredExample(
        key=f"{example}-{sample}",
        candidate="c",
        example=example,
        sample=sample,
        score=score,
        status=status,
        calls=calls or (call(f"{example}{sample}"),),
    )


def vanilla(run: ScoredExample, call: PredictorCall) -> Messages:
    return ({"content": f"short {run.example} {call.completion}"},)


def settings(**values: Any) -> Traces:
    return Traces.model_validate(values)


@pytest.mark.parametrize(
    ("status", "score", "threshold", "expected"),
    [("ok", 1.0, "1", True), ("ok", 0.5, "0.5", True), ("ok", 0.3, "1", False), ("unparsable", 0.0, "0", False)],
)
def test_a_run_passes_by_its_score_and_never_when_it_failed(
    status: Any, score: float, threshold: str, expected: bool
) -> None:
    assert passed(run("a", 0, score, status), threshold) is expected


def test_every_run_is_counted_once() -> None:
    runs = [
        run("a", 0),
        run("a", 1, 1.0, "ok", call("a0")),
        run("a", 2),
        run("a", 3),
        run("b", 0, 0.0, "call_failed"),
        run("c", 0, 0.5),
    ]
    rows, counts = select_traces(runs, settings(maxPerExample=2), ["answer", "idle"], vanilla)
    assert [(row.example, row.sample) for row in rows] == [("a", 0), ("a", 2)]
    assert (counts.runs, counts.failed, counts.passed) == (6, 1, 4)
    assert (counts.duplicates, counts.capped, counts.kept, counts.examples) == (1, 1, 2, 1)
    assert counts.rows == (("answer", 2), ("idle", 0))


def test_of_one_example_the_best_scores_are_kept() -> None:
    runs = [run("a", 0, 0.6), run("a", 1, 0.9), run("a", 2, 0.9)]
    rows, _ = select_traces(runs, settings(threshold="0.5", maxPerExample=2), ["answer"], vanilla)
    assert [(row.sample, row.score) for row in rows] == [(1, 0.9), (2, 0.9)]


def test_a_row_carries_the_messages_as_used_and_the_vanilla_ones_of_every_call() -> None:
    rows, _ = select_traces([run("a", 0, 1.0, "ok", call("x"), call("y"))], settings(), ["answer"], vanilla)
    assert [call.messages for call in rows[0].calls] == [({"content": "long"},)] * 2
    assert rows[0].vanilla == (({"content": "short a x"},), ({"content": "short a y"},))


def test_equal_completions_of_different_examples_are_no_duplicates() -> None:
    runs = [run("a", 0, 1.0, "ok", call("same")), run("b", 0, 1.0, "ok", call("same"))]
    assert select_traces(runs, settings(), ["answer"], vanilla)[1].kept == 2


def test_completions_that_could_not_be_parsed_are_not_trained_on() -> None:
    recovered = run("a", 0, 1.0, "ok", call("bad", is_parsed=False), call("good"))
    hopeless = run("b", 0, 1.0, "ok", call("bad", is_parsed=False))
    rows, counts = select_traces([recovered, hopeless], settings(), ["answer"], vanilla)
    assert [[call.completion for call in row.calls] for row in rows] == [["good"]]
    assert len(rows[0].vanilla) == 1
    assert (counts.passed, counts.kept, counts.unparsed) == (1, 1, 1)


def test_calls_of_a_predictors_own_model_become_no_rows() -> None:
    own = call("a query", "search").model_copy(update={"own_lm": True})
    runs = [run("a", 0, 1.0, "ok", own, call("right")), run("b", 0, 1.0, "ok", own)]
    rows, counts = select_traces(runs, settings(), ["search", "answer"], vanilla)
    assert [[each.predictor for each in row.calls] for row in rows] == [["answer"]]
    assert (counts.passed, counts.kept, counts.unparsed) == (1, 1, 0)
    assert dict(counts.rows) == {"search": 0, "answer": 1}


def test_a_predictor_lacks_traces_only_if_it_is_called() -> None:
    runs = [
        run("a", 0, 1.0, "ok", call("x", "search"), call("y", "search"), call("right")),
        run("b", 0, 1.0, "ok", call("right")),
        run("c", 0, 0.0, "ok", call("wrong", "repair"), call("wrong")),
    ]
    _, counts = select_traces(runs, settings(), ["search", "answer", "idle"], vanilla)
    # Two calls in one trace are one trace; what is called in a failing run alone is called all the same.
    assert counts.traces == (("search", 1), ("answer", 2), ("repair", 0))
    assert counts.below(1) == (("repair", 0),) and counts.below(2) == (("search", 1), ("repair", 0))


def test_a_predictor_with_a_model_of_its_own_lacks_no_traces() -> None:
    own = call("a query", "search").model_copy(update={"own_lm": True})
    _, counts = select_traces([run("a", 0, 1.0, "ok", own, call("right"))], settings(), ["search", "answer"], vanilla)
    assert counts.traces == (("answer", 1),)
