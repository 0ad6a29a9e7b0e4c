"""What GEPA's model is shown of a candidate's runs: per predictor its calls, and what was said of the answers. Pure.

Source: GEPA (arXiv 2507.19457), section 3: execution traces and textual feedback, not only scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tandem_api.canonical import canonical_json
from tandem_api.records import PredictorCall, ScoredExample
from tandem_trainer.evaluate.examples import Example

#: Calls of a predictor that are shown of one run; a loop may make many that differ little.
MAX_CALLS = 4
#: A field's value is cut to this many characters.
MAX_VALUE = 4000


def reflective_dataset(
    runs: Sequence[tuple[Example, ScoredExample]], predictors: Sequence[str], inputs: Sequence[str]
) -> dict[str, list[dict[str, Any]]]:
    """For each predictor that was called its inputs, outputs and feedback, in gepa's form. `inputs`: the program's."""
    dataset: dict[str, list[dict[str, Any]]] = {}
    for example, record in runs:
        for name in predictors:
            calls = [call for call in record.calls if call.predictor == name]
            for call in calls[:MAX_CALLS]:
                dataset.setdefault(name, []).append(
                    {
                        "Inputs": _texts(call.inputs),
                        "Generated Outputs": _text(call.completion) if call.outputs is None else _texts(call.outputs),
                        "Feedback": feedback(example, record, call, inputs),
                    }
                )
    return dataset


def feedback(example: Example, record: ScoredExample, call: PredictorCall, inputs: Sequence[str]) -> str:
    """What a reader of one call should know: the run's score, the metric's words, the expected answer, the error."""
    parts = [f"The program's final answer scored {record.score:g}; the best score is 1."]
    if call.outputs is None:
        parts.append("This output could not be read: it is not in the format that was asked for.")
    if record.error:
        parts.append(f"The run failed: {record.error}")
    if record.feedback:
        parts.append(record.feedback)
    expected = {name: value for name, value in example.fields.items() if name not in inputs and name != "id"}
    parts += [f"Expected {name}: {_text(value)}" for name, value in expected.items() if value is not None]
    return "\n".join(parts)


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {name: _text(value) for name, value in values.items()}


def _text(value: Any) -> str:
    return (value if isinstance(value, str) else canonical_json(value))[:MAX_VALUE]
