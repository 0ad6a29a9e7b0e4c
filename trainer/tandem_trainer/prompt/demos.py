"""Demos: what passing traces and labelled examples offer each predictor.

A demo is a plain dict of a predictor's input and output fields. A bootstrapped demo is one call of a trace that
passed, so it holds what the model itself wrote; a labelled one is cut from an example's own fields.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tandem_api.canonical import digest
from tandem_api.records import PredictorCall, PredictorPrompt, PromptSet, ScoredExample
from tandem_trainer.evaluate.examples import Example

Demo = dict[str, Any]

#: The field that `dspy.ChainOfThought` puts before the signature's own outputs; data sets seldom hold it.
REASONING = "reasoning"


@dataclass(frozen=True)
class PredictorFields:
    """The field names of a predictor's signature, in its order."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True)
class ExampleDemos:
    """What one example offers a predictor: one demo per different call of its passing traces, or the labelled one."""

    example: str
    """The example's id."""
    demos: tuple[Demo, ...]


@dataclass(frozen=True)
class PredictorPool:
    """All demos that a predictor can be given, in the order of the examples."""

    bootstrapped: tuple[ExampleDemos, ...] = ()
    labeled: tuple[ExampleDemos, ...] = ()
    """Holding every field, but for the `reasoning` of a chain of thought, which may be missing."""
    complete: tuple[ExampleDemos, ...] = ()
    """Those of `labeled` that hold every field: only they may stand beside bootstrapped demos."""


#: The demos of every predictor, by its name.
DemoPool = Mapping[str, PredictorPool]


def build_pool(
    fields: Mapping[str, PredictorFields], examples: Sequence[Example], passed: Iterable[ScoredExample]
) -> DemoPool:
    """What `examples` and their passing runs offer the predictors in `fields`.

    `passed` may come in any order, with several runs of an example; it is put into the order of `examples` and of
    their samples. Runs of other examples are left out.
    """
    runs: dict[str, list[ScoredExample]] = {example.id: [] for example in examples}
    for record in sorted(passed, key=lambda record: record.sample):
        if record.example in runs:
            runs[record.example].append(record)
    return {name: _pool(name, of_predictor, examples, runs) for name, of_predictor in fields.items()}


def call_demo(call: PredictorCall, fields: PredictorFields) -> Demo | None:
    """The demo that a call makes, or None when its completion could not be parsed or lacks a field."""
    if call.outputs is None:
        return None
    values = {**call.inputs, **call.outputs}
    names = fields.inputs + fields.outputs
    return {name: values[name] for name in names} if all(name in values for name in names) else None


def is_made_from(demo: Demo, example: Example, inputs: Sequence[str]) -> bool:
    """Whether a demo shows `example`: the program's inputs that it holds are that example's own.

    By content, not by id: a data set may hold a row twice. A demo without any of the program's inputs shows nothing.
    """
    shared = [name for name in inputs if name in demo]
    return bool(shared) and all(demo[name] == example.fields.get(name) for name in shared)


def without_own_demos(prompts: PromptSet, example: Example, inputs: Sequence[str]) -> PromptSet:
    """`prompts` for a run on a training example: without the demos that would show it its own answer."""
    if not any(is_made_from(demo, example, inputs) for prompt in prompts.predictors.values() for demo in prompt.demos):
        return prompts
    return PromptSet(
        predictors={
            name: PredictorPrompt(
                instruction=prompt.instruction,
                demos=tuple(demo for demo in prompt.demos if not is_made_from(demo, example, inputs)),
            )
            for name, prompt in prompts.predictors.items()
        }
    )


def _pool(
    predictor: str,
    fields: PredictorFields,
    examples: Sequence[Example],
    runs: Mapping[str, Sequence[ScoredExample]],
) -> PredictorPool:
    labeled = _distinct(
        ExampleDemos(example.id, (demo,)) for example in examples if (demo := _labeled(example, fields)) is not None
    )
    return PredictorPool(
        bootstrapped=_distinct(
            ExampleDemos(example, _called(of_example, predictor, fields)) for example, of_example in runs.items()
        ),
        labeled=labeled,
        complete=tuple(offer for offer in labeled if all(name in offer.demos[0] for name in fields.outputs)),
    )


def _called(runs: Sequence[ScoredExample], predictor: str, fields: PredictorFields) -> tuple[Demo, ...]:
    demos = (call_demo(call, fields) for run in runs for call in run.calls if call.predictor == predictor)
    return tuple({digest(demo): demo for demo in demos if demo is not None}.values())


def _labeled(example: Example, fields: PredictorFields) -> Demo | None:
    names = fields.inputs + fields.outputs
    demo = {name: example.fields[name] for name in names if example.fields.get(name) is not None}
    missing = set(names) - set(demo)
    only_reasoning = missing == {REASONING} and REASONING in fields.outputs and len(fields.outputs) > 1
    return demo if not missing or only_reasoning else None


def _distinct(offers: Iterable[ExampleDemos]) -> tuple[ExampleDemos, ...]:
    """Without examples that offer nothing, or only what an earlier one offers (rows that occur twice)."""
    first: dict[str, ExampleDemos] = {}
    for offer in offers:
        if offer.demos:
            first.setdefault(digest(list(offer.demos)), offer)
    return tuple(first.values())
