"""Which examples may become demos, and which candidate wins. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from tandem_api.canonical import canonical_json
from tandem_api.contract import CandidateScore
from tandem_trainer.evaluate.examples import Example


def without_overlap(
    train: Sequence[Example], validation: Sequence[Example], inputs: Sequence[str]
) -> tuple[Example, ...]:
    """The training examples whose inputs no validation example has: a demo must never give away a score."""
    held_out = {canonical_json(example.inputs(inputs)) for example in validation}
    return tuple(example for example in train if canonical_json(example.inputs(inputs)) not in held_out)


def best(scores: Sequence[float]) -> int:
    """The index of the highest score; of equal ones the earliest."""
    return max(range(len(scores)), key=lambda index: (scores[index], -index))


def best_of_full(scores: Sequence[CandidateScore | None]) -> int | None:
    """The same of those that have a score, which the full evaluation gave; None: there is none."""
    full = {index: found.score for index, found in enumerate(scores) if found is not None}
    return list(full)[best(list(full.values()))] if full else None


def not_in(subset: Sequence[Example], examples: Sequence[Example]) -> list[Example]:
    """The rest of `examples`, in their order."""
    searched = {example.id for example in subset}
    return [example for example in examples if example.id not in searched]
