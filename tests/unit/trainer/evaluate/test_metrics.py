"""Metrics: what counts as equal, and that a metric of the user's own never scores without saying so."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest

from tandem_api.errors import ConfigurationError
from tandem_trainer.evaluate.examples import Example
from tandem_trainer.evaluate.metrics import Metric, MetricError, contains, exact_match, f1, load_metric, numeric


@pytest.mark.parametrize(
    ("gold", "answer", "score"),
    [
        ("Iris setosa", "iris  SETOSA.", 1),
        ("The Beatles", "beatles", 1),
        ("Café", "Cafe\u0301", 1),
        ("setosa", "versicolor", 0),
        ("A", "a.", 1),
        ("A", "the", 0),
        ("-", "a", 0),
        (["New York", "NYC"], "nyc", 1),
        (True, "true", 1),
        (3, 3, 1),
    ],
)
def test_exact_match(gold: Any, answer: Any, score: float) -> None:
    assert exact_match(gold, str(answer)) == score


@pytest.mark.parametrize(
    ("gold", "answer", "score"),
    [
        ("42", "The answer is 42.", 1),
        ("42", "42.0 apples", 1),
        ("1,234", "so $1234", 1),
        ("#### 18", "9 + 9 = 18", 1),
        ("18", "18\nor was it 19?", 1),
        ("19", "18\nor was it 19?", 0),
        ("-5", "it is -5", 1),
        ("5", "10-5", 1),
        ("5", "none", 0),
        ("5", "", 0),
        ("0.5", ".5", 1),
        (7, "7", 1),
    ],
)
def test_numeric_compares_the_last_number_of_the_first_line(gold: Any, answer: str, score: float) -> None:
    assert numeric(gold, answer) == score


def test_numeric_without_a_number_in_the_gold_answer_is_a_fault_of_the_data() -> None:
    with pytest.raises(MetricError, match="'none' holds no number"):
        numeric("none", "7")


@pytest.mark.parametrize(
    ("gold", "answer", "score"),
    [
        ("a b c", "b c d", 0.8),
        ("red green", "green red", 1),
        ("x", "y", 0),
        (["x", "y z"], "y z", 1),
        ("x x", "x", 2 / 3),
    ],
)
def test_f1_of_words(gold: Any, answer: str, score: float) -> None:
    assert f1(gold, answer) == pytest.approx(score)


@pytest.mark.parametrize(
    ("gold", "answer", "score"),
    [("Paris", "It is Paris, France.", 1), ("art", "a party", 0), (["x", "party"], "a party", 1)],
)
def test_contains_looks_for_whole_words(gold: Any, answer: str, score: float) -> None:
    assert contains(gold, answer) == score


def test_builtin_needs_its_field_in_example_and_prediction(make_spec: Callable[..., Any]) -> None:
    metric = load_metric(make_spec(metric={"builtin": "f1", "field": "a"}))
    assert metric(Example("1", {"a": "x"}), dspy.Prediction(a="x")) == 1
    with pytest.raises(MetricError, match="example '1' has no field 'a'"):
        metric(Example("1", {}), dspy.Prediction(a="x"))
    with pytest.raises(MetricError, match="prediction has no field 'a'; it has: b"):
        metric(Example("1", {"a": "x"}), dspy.Prediction(b="x"))


@pytest.fixture
def load_code(tmp_path: Path, make_spec: Callable[..., Any], monkeypatch: Any) -> Iterator[Callable[[str], Metric]]:
    """Load `metric` from a module with this code."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def load(code: str) -> Metric:
        name = f"metric_{abs(hash(code))}"
        (tmp_path / f"{name}.py").write_text(code, encoding="utf-8")
        return load_metric(make_spec(metric={"entrypoint": f"{name}:metric"}), code_path=tmp_path)

    yield load


@pytest.mark.parametrize(
    ("returned", "score"),
    [
        ("True", 1),
        ("0.25", 0.25),
        ("__import__('numpy').float32(0.5)", 0.5),
        ("__import__('numpy').bool_(True)", 1),
        ("__import__('dspy').Prediction(score=0.75, feedback='x')", 0.75),
        ("float(example.q == 'q' and prediction.a == 'a' and trace is None)", 1),
        ("float(set(example.inputs().keys()) == {'q'})", 1),
    ],
)
def test_what_a_metric_returns_becomes_a_score(load_code: Any, returned: str, score: float) -> None:
    metric = load_code(f"def metric(example, prediction, trace=None):\n    return {returned}\n")
    assert metric(Example("1", {"q": "q", "a": "gold"}), dspy.Prediction(a="a")) == pytest.approx(score)


@pytest.mark.parametrize(
    ("returned", "feedback"),
    [
        ("0.5", None),
        ("{'score': 0.5, 'feedback': 'Count again.'}", "Count again."),
        ("{'score': 0.5}", None),
        ("__import__('dspy').Prediction(score=0.5, feedback='Count again.')", "Count again."),
        ("{'score': 0.5, 'feedback': 'x' * 9999}", "x" * 2000),
    ],
)
def test_a_metric_may_say_why(load_code: Any, returned: str, feedback: str | None) -> None:
    metric = load_code(f"def metric(example, prediction, trace=None):\n    return {returned}\n")
    judged = metric.judge(Example("1", {"q": "q"}), dspy.Prediction(a="a"))
    assert (judged.score, judged.feedback) == (0.5, feedback)


@pytest.mark.parametrize(
    ("returned", "wanted"),
    [
        ("None", "returned None; a metric returns a number from 0 to 1"),
        ("'1'", "returned '1'"),
        ("float('nan')", "returned nan; a score lies from 0 to 1"),
        ("-1", "returned -1.0; a score lies"),
        ("1.5", "returned 1.5"),
        ("[1]", "returned a list, not a number"),
        ("{'feedback': 'x'}", r"returned a dict with \['feedback'\]; it needs a `score`"),
        ("{'score': 2}", "returned 2.0; a score lies"),
        ("prediction.missing", "AttributeError: .*missing"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("__import__('sys').exit(3)", "SystemExit: 3"),
    ],
)
def test_what_is_no_score_is_an_error_and_never_a_number(load_code: Any, returned: str, wanted: str) -> None:
    metric = load_code(f"def metric(example, prediction, trace=None):\n    return {returned}\n")
    with pytest.raises(MetricError, match=wanted):
        metric(Example("1", {"q": "q"}), dspy.Prediction(a="a"))


@pytest.mark.parametrize(
    ("code", "wanted"),
    [
        ("metric = 7\n", "found int, not a function"),
        ("async def metric(example, prediction, trace=None): ...\n", "is async"),
        ("def metric(example): ...\n", r"cannot be called as metric\(example, prediction, trace=None\)"),
        ("import missing_thing\n", "metric.entrypoint.*No module named 'missing_thing'"),
    ],
)
def test_metric_that_cannot_work_is_refused_when_it_is_loaded(load_code: Any, code: str, wanted: str) -> None:
    with pytest.raises(ConfigurationError, match=wanted):
        load_code(code)
