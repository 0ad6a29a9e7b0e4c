"""What an answer is worth: the builtin metrics and the user's own, as a number in [0, 1].

One contract everywhere: `metric(example, prediction, trace=None) -> float`; `trace` is never given, in no stage. A
metric that has more to say returns a dict or a `dspy.Prediction` with `score` and `feedback`: optimizers that reflect
(GEPA) read the feedback.
"""

from __future__ import annotations

import inspect
import re
import string
import unicodedata
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from functools import lru_cache
from pathlib import Path
from typing import Any

import dspy

from tandem_api.errors import ConfigurationError
from tandem_api.v1alpha1 import Spec
from tandem_trainer.evaluate.examples import Example
from tandem_trainer.program.code import import_entrypoint

#: What a metric says of an answer is cut to this many characters.
MAX_FEEDBACK = 2000

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)
#: A sign right after a digit is a minus between two numbers, not a part of the second.
_NUMBER = re.compile(r"(?:(?<!\d)[-+])?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


class MetricError(Exception):
    """The metric gave no score for one example: it raised, or returned something that is no number in [0, 1]."""


@dataclass(frozen=True)
class Judgement:
    """What a metric says of one answer."""

    score: float
    feedback: str | None = None
    """Why, and what a better answer would have; at most `MAX_FEEDBACK` characters."""


@dataclass(frozen=True)
class Metric:
    """A metric, ready to be called."""

    name: str
    """For messages and ledger keys: `builtin exact-match on 'label'`, or the entry point."""
    judge: Callable[[Example, dspy.Prediction], Judgement]
    """Raises MetricError where there is no score."""
    in_thread: bool
    """Whether it is user code, which may be slow and must not hold up the calls in flight."""

    def __call__(self, example: Example, prediction: dspy.Prediction) -> float:
        """The score alone. Raises MetricError where there is none."""
        return self.judge(example, prediction).score


def load_metric(spec: Spec, *, code_path: Path | None = None) -> Metric:
    """The run's metric; `code_path` is the folder of the user's code, put first on the import path.

    Raises ConfigurationError if the entry point does not import or cannot be called as a metric.
    """
    if spec.metric.builtin is not None:
        assert spec.metric.field is not None
        return _builtin(spec.metric.builtin, spec.metric.field)
    assert spec.metric.entrypoint is not None
    return _entrypoint(spec.metric.entrypoint, spec.data.inputs, code_path)


def exact_match(gold: Any, answer: str) -> float:
    """1 if both are equal after SQuAD's normalisation (case, punctuation, articles, white space)."""
    return float(any(_normalise(answer) == _normalise(one) for one in _golds(gold)))


def f1(gold: Any, answer: str) -> float:
    """SQuAD's F1 of the normalised words, as bags; the best over several gold answers."""
    return max(_f1(_normalise(one).split(), _normalise(answer).split()) for one in _golds(gold))


def contains(gold: Any, answer: str) -> float:
    """1 if the normalised answer contains the normalised gold answer, as whole words."""
    text = f" {_normalise(answer)} "
    return float(any(f" {_normalise(one)} " in text for one in _golds(gold)))


def numeric(gold: Any, answer: str) -> float:
    """1 if the last number on the answer's first line equals gold's last number (GSM8K; BetterTogether, section 4).

    Thousands separators are ignored, and 7 equals 7.0.
    """
    lines = answer.strip().splitlines()
    found = _last_number(lines[0]) if lines else None
    wanted = [_last_number(one) for one in _golds(gold)]
    if None in wanted:
        raise MetricError(f"the gold answer {gold!r} holds no number")
    return float(found is not None and found in wanted)


BUILTINS: dict[str, Callable[[Any, str], float]] = {
    "exact-match": exact_match,
    "numeric": numeric,
    "f1": f1,
    "contains": contains,
}


def _builtin(name: str, field: str) -> Metric:
    compare = BUILTINS[name]

    def judge(example: Example, prediction: dspy.Prediction) -> Judgement:
        gold = example.fields.get(field)
        if gold is None:
            raise MetricError(f"the example {example.id!r} has no field {field!r} to compare with")
        answer = prediction.get(field)
        if answer is None:
            raise MetricError(f"the prediction has no field {field!r}; it has: {', '.join(prediction.keys())}")
        return Judgement(compare(gold, _text(answer)))

    return Metric(f"builtin {name} on {field!r}", judge, in_thread=False)


def _entrypoint(entrypoint: str, inputs: tuple[str, ...], code_path: Path | None) -> Metric:
    function = import_entrypoint(entrypoint, field="metric.entrypoint", code_path=code_path)
    if not callable(function):
        raise ConfigurationError(f"metric.entrypoint {entrypoint}: found {type(function).__name__}, not a function")
    if inspect.iscoroutinefunction(function):
        raise ConfigurationError(f"metric.entrypoint {entrypoint} is async; a metric is a plain function")
    _check_signature(entrypoint, function)

    def judge(example: Example, prediction: dspy.Prediction) -> Judgement:
        try:
            value = function(dspy.Example(**example.fields).with_inputs(*inputs), prediction, trace=None)
        except (Exception, SystemExit) as error:
            raise MetricError(f"{type(error).__name__}: {error}") from error
        return _judgement(value)

    return Metric(entrypoint, judge, in_thread=True)


def _check_signature(entrypoint: str, function: Callable[..., Any]) -> None:
    try:
        inspect.signature(function).bind(None, None, trace=None)
    except TypeError as error:
        raise ConfigurationError(
            f"metric.entrypoint {entrypoint} cannot be called as metric(example, prediction, trace=None): {error}"
        ) from error
    except ValueError:  # a builtin without a signature: the check stage tries it on an example anyway
        return


def _judgement(value: Any) -> Judgement:
    """What a user's metric returned: a score, or a score with feedback."""
    if isinstance(value, (dict, dspy.Prediction)):
        fields = dict(value.items())
        if "score" not in fields:
            raise MetricError(f"returned a {type(value).__name__} with {sorted(fields)}; it needs a `score`")
        feedback = fields.get("feedback")
        return Judgement(_score(fields["score"]), None if feedback is None else str(feedback)[:MAX_FEEDBACK])
    return Judgement(_score(value))


def _score(value: Any) -> float:
    """What a user's metric returned, as a score. Also numpy's numbers."""
    if value is None or isinstance(value, str):
        raise MetricError(f"returned {value!r}; a metric returns a number from 0 to 1, or True or False")
    try:
        number = float(value)
    except (TypeError, ValueError) as error:
        raise MetricError(f"returned a {type(value).__name__}, not a number from 0 to 1") from error
    if not 0 <= number <= 1:  # NaN, too, fails this
        raise MetricError(f"returned {number}; a score lies from 0 to 1")
    return number


def _golds(gold: Any) -> list[str]:
    """Several gold answers may be given as a list: any of them counts."""
    return [_text(one) for one in gold] if isinstance(gold, (list, tuple)) and gold else [_text(gold)]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else str(value)


@lru_cache(maxsize=65_536)
def _normalise(text: str) -> str:
    """As SQuAD's evaluation does, but never to nothing: "A" stays an answer, and so does "-"."""
    lowered = unicodedata.normalize("NFC", text).lower()
    words = lowered.translate(_PUNCTUATION)
    return _squeeze(_ARTICLES.sub(" ", words)) or _squeeze(words) or _squeeze(lowered)


def _squeeze(text: str) -> str:
    return " ".join(text.split())


def _f1(gold: list[str], answer: list[str]) -> float:
    same = sum((Counter(gold) & Counter(answer)).values())
    return 2 * same / (len(gold) + len(answer)) if same else float(gold == answer)


def _last_number(text: str) -> Decimal | None:
    found = _NUMBER.findall(text)
    if not found:
        return None
    try:
        return Decimal(found[-1].replace(",", ""))
    except InvalidOperation:
        return None
