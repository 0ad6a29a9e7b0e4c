"""The check stage: what a run would stumble over later is said before a model is served, all at once."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.memory_store import MemoryStore

from tandem_api.canonical import sha256_hex
from tandem_api.contract import MAX_RESULT_BYTES
from tandem_api.errors import ConfigurationError, DataError, PreemptedError
from tandem_trainer.stages import check
from tandem_trainer.stages.optimize import OPTIMIZERS

ROWS = [{"q": f"question {n}", "a": "yes" if n % 2 else "no"} for n in range(20)]
METRIC = "def metric(example, prediction, trace=None):\n    return {}\n"


def tarball(info: tarfile.TarInfo) -> bytes:
    """An archive of one entry; a file holds the metric."""
    source = METRIC.format("example.a == prediction.a").encode() if info.isfile() else b""
    info.size = len(source)
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        archive.addfile(info, io.BytesIO(source))
    return data.getvalue()


@pytest.fixture
def run(make_spec: Any, make_context: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: check.run(make_context(make_spec(*args, **kwargs), stage="check"))


@pytest.fixture
def train(write_jsonl: Any) -> str:
    return str(write_jsonl("train.jsonl", ROWS))


def user_code(folder: Path, name: str, code: str) -> dict[str, str]:
    (folder / f"{name}.py").write_text(code, encoding="utf-8")
    return {"uri": folder.as_uri()}


def test_facts_hold_counts_digests_and_warnings(run: Any, train: str, write_jsonl: Any) -> None:
    result = run(train, test=write_jsonl("test.jsonl", [*ROWS[:2], {"q": "new", "a": "no"}]))
    facts = result.facts
    assert (facts["train"], facts["validation"], facts["test"], facts["predictors"]) == (16, 4, 3, 1)
    assert {key for key in facts if key.startswith("digest.")} == {"digest.train", "digest.validation", "digest.test"}
    assert facts["warnings"] >= 1
    assert "examples have the same inputs as" in facts["warning.1"]
    assert len(result.to_message()) < MAX_RESULT_BYTES


def test_more_predictors_than_adapters_can_be_served_are_refused_before_a_model_is(
    run: Any, train: str, tmp_path: Path
) -> None:
    many = (
        "import dspy\n"
        "class Many(dspy.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.steps = [dspy.Predict('q -> a') for _ in range(9)]\n"
        "    def forward(self, q):\n"
        "        return self.steps[0](q=q)\n"
    )
    program = {"entrypoint": "check_many:Many", "code": user_code(tmp_path, "check_many", many)}
    with pytest.raises(ConfigurationError, match=r"per-predictor serves at most 8 adapters.* has 9 predictors"):
        run(train, program=program, strategy="w", weightOptimizer={"adapters": "per-predictor"})


def test_everything_that_is_wrong_is_told_at_once(run: Any, tmp_path: Path, make_spec: Any) -> None:
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"q": "x", "a": "y"}\nnope\n')
    code = user_code(tmp_path, "check_all_wrong", "def build(): return 7\n")
    with pytest.raises(ConfigurationError) as caught:
        run(
            bad.as_uri(),
            validation="file:///missing.jsonl",
            metric={"entrypoint": "check_missing_metric:metric"},
            program={"entrypoint": "check_all_wrong:build", "code": code},
        )
    lines = str(caught.value).splitlines()
    assert [line.split(":")[0].split(" (")[0] for line in lines] == [
        "program.entrypoint",
        "metric.entrypoint",
        "data.train",
        "data.validation",
    ]


def test_wrong_data_alone_are_a_data_error(run: Any) -> None:
    with pytest.raises(DataError, match="does not exist"):
        run("file:///missing.jsonl")


def test_label_that_the_metric_needs_is_missed_in_each_split(run: Any, train: str, write_jsonl: Any) -> None:
    with pytest.raises(DataError, match=r"data\.test: 1 of 2 examples lack the field 'a' \(metric\.field\)"):
        run(train, test=write_jsonl("test.jsonl", [{"q": "x", "a": "y"}, {"q": "z"}]))


def test_input_that_the_signature_lacks_is_refused(run: Any, write_jsonl: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"data\.inputs: found text, but the inputs .* are q"):
        run(
            write_jsonl("d.jsonl", [{"text": "x", "a": "y"}]),
            inputs=("text",),
            program={"inline": {"signature": "q -> a"}},
        )


@pytest.mark.parametrize(
    ("returned", "wanted"),
    [
        ("1 / 0", "metric check_metric.*:metric: tried on the training example 'train-.*ZeroDivisionError"),
        ("float('nan')", "returned nan; a score lies from 0 to 1"),
    ],
)
def test_metric_that_raises_or_returns_nan_is_named(
    run: Any, train: str, tmp_path: Path, returned: str, wanted: str
) -> None:
    name = f"check_metric_{sha256_hex(returned.encode())[:8]}"
    code = user_code(tmp_path, name, METRIC.format(returned))
    with pytest.raises(ConfigurationError, match=wanted):
        run(train, metric={"entrypoint": f"{name}:metric"}, program={"inline": {"signature": "q -> a"}, "code": code})


def test_metric_that_is_not_content_with_the_gold_answer_is_a_warning(run: Any, train: str, tmp_path: Path) -> None:
    code = user_code(tmp_path, "check_half", METRIC.format("0.5"))
    facts = run(
        train, metric={"entrypoint": "check_half:metric"}, program={"inline": {"signature": "q -> a"}, "code": code}
    ).facts
    assert "0.5 for its own answer, not 1" in facts["warning.1"]


def test_metric_may_read_outputs_that_the_data_lack(run: Any, train: str, tmp_path: Path) -> None:
    code = user_code(tmp_path, "check_reasoning", METRIC.format("prediction.reasoning == ''"))
    inline = {"signature": "q -> a", "module": "chain-of-thought"}
    assert run(train, metric={"entrypoint": "check_reasoning:metric"}, program={"inline": inline, "code": code})


def test_code_in_a_tarball_is_verified_unpacked_and_used(
    run: Any, train: str, store: MemoryStore, tmp_path: Path
) -> None:
    artifact = store.put("code.tar.gz", tarball(tarfile.TarInfo("check_tarball.py")))
    program = {"inline": {"signature": "q -> a"}, "code": {"uri": artifact.uri, "sha256": artifact.sha256}}
    assert run(train, metric={"entrypoint": "check_tarball:metric"}, program=program).facts["warnings"] == 0
    assert [path.name for path in (tmp_path / "cache" / "code").iterdir()] == [artifact.sha256]
    program["code"] = {"uri": artifact.uri, "sha256": "0" * 64}
    with pytest.raises(DataError, match=r"program\.code\.sha256 is 000"):
        run(train, metric={"entrypoint": "check_tarball:metric"}, program=program)


@pytest.mark.parametrize(
    ("uri", "error", "wanted"),
    [
        ("file:///missing/folder", ConfigurationError, "is not a folder"),
        ("configmap://code", ConfigurationError, "only a cluster has ConfigMaps; write file:PATH"),
    ],
)
def test_code_that_is_not_there_is_named(run: Any, train: str, uri: str, error: type[Exception], wanted: str) -> None:
    with pytest.raises(error, match=rf"program\.code\.uri \({uri}\): .*{wanted}"):
        run(train, program={"inline": {"signature": "q -> a"}, "code": {"uri": uri}})


TEACHER = """
import dspy
def same(hint=""): return dspy.Predict(dspy.Signature("q -> a", "Be thorough. " + hint))
def reasoned(): return dspy.ChainOfThought("q -> a")
class Other(dspy.Module):
    def __init__(self):
        super().__init__()
        self.other = dspy.Predict("q -> a")
    def forward(self, q): return self.other(q=q)
"""


def with_teacher(folder: Path, name: str, **fields: Any) -> dict[str, Any]:
    """A spec's fields with that teacher for one step of its own."""
    module = f"teacher_{folder.name}"  # Python remembers modules by their names
    code = user_code(folder, module, TEACHER)
    teacher = {"entrypoint": f"{module}:{name}", **fields}
    program = {"inline": {"signature": "q -> a", "adapter": "plain"}, "code": code}
    return {"program": program, "strategy": [{"kind": "p", "promptOptimizer": {"teacher": teacher}}, {"kind": "p"}]}


def test_a_teacher_with_the_programs_predictors_is_accepted(run: Any, train: str, tmp_path: Path) -> None:
    run(train, **with_teacher(tmp_path, "same", arguments={"hint": "Think."}))


@pytest.mark.parametrize(
    ("name", "difference"),
    [
        ("Other", "it has other, the program self"),
        ("missing", "has no 'missing'"),
        ("same", r"cannot be called with promptOptimizer\.teacher\.arguments \['depth'\]"),
        ("reasoned", "it has predict, the program self"),
    ],
)
def test_a_teacher_that_cannot_write_demos_is_refused_before_a_model_is_served(
    run: Any, train: str, tmp_path: Path, name: str, difference: str
) -> None:
    fields = {"arguments": {"depth": 2}} if name == "same" else {}
    with pytest.raises(ConfigurationError, match=rf"strategy step 1: promptOptimizer\.teacher.*{difference}"):
        run(train, **with_teacher(tmp_path, name, **fields))


def test_a_teacher_of_other_fields_is_refused_with_the_difference(run: Any, train: str, tmp_path: Path) -> None:
    spec = with_teacher(tmp_path, "same")
    spec["program"]["inline"]["signature"] = "q -> a, b"
    with pytest.raises(ConfigurationError, match=r"the outputs of 'self' are a, the program's a, b"):
        run(train, **spec)


def test_what_an_optimizer_lacks_is_told_beside_all_else(run: Any, train: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(settings: Any) -> None:
        raise ConfigurationError(f"promptOptimizer.candidates: {settings.candidates} is no good")

    monkeypatch.setattr("tandem_trainer.prompt.random_search.check", refuse, raising=False)
    with pytest.raises(ConfigurationError) as caught:
        run(train, metric={"entrypoint": "no_such_module:metric"}, promptOptimizer={"candidates": 3})
    told = str(caught.value).splitlines()
    assert told[0].startswith("metric.entrypoint") and told[1] == "promptOptimizer.candidates: 3 is no good"
    run(train, strategy="w", promptOptimizer={"candidates": 3})  # no step uses it


def test_an_optimizer_without_its_package_is_refused(run: Any, train: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIMIZERS, "gepa", "tandem_trainer.no_such_package")
    with pytest.raises(ConfigurationError, match=r"promptOptimizer\.type: 'gepa' needs a package .* No module named"):
        run(train, promptOptimizer={"type": "gepa"})


def test_stopping_ends_the_check(make_spec: Any, make_context: Any, train: str) -> None:
    context = make_context(make_spec(train), stage="check")
    context.stopping.set()
    with pytest.raises(PreemptedError):
        check.run(context)
