"""The steps and stages of a run, and what the steps so far came to (design.md, section 5)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

from pydantic import BaseModel

from tandem_api.v1alpha1 import Spec
from tandem_api.v1alpha1.status import (
    SELECT_STAGES,
    Artifact,
    Candidate,
    EpochAdapter,
    StageName,
    StageStatus,
    StepKindName,
    StepState,
    StepStatus,
    Usage,
)

M = TypeVar("M", bound=BaseModel)

#: The stages of each kind of step, in order. A `w` step that chooses among epochs gets more once it has trained.
STAGES: dict[StepKindName, tuple[StageName, ...]] = {
    "baseline": ("check", "evaluate"),
    "p": ("optimize",),
    "w": ("traces", "train", "evaluate"),
    "final": ("evaluate",),
}
#: States in which a step or stage does no more.
ENDED: frozenset[StepState] = frozenset({"Succeeded", "Skipped", "Stopped", "Failed"})


def changed(model: M, **changes: object) -> M:
    """A copy of a frozen model with some fields changed."""
    return model.model_copy(update=changes)


def planned_steps(spec: Spec) -> tuple[StepStatus, ...]:
    """Every step of the run, not yet begun: the baseline, the strategy's, the final test."""
    kinds: list[StepKindName] = ["baseline", *(step.kind for step in spec.steps), "final"]
    return tuple(
        StepStatus(index=index, kind=kind, stages=tuple(StageStatus(name=name) for name in STAGES[kind]))
        for index, kind in enumerate(kinds)
    )


def current_step(steps: tuple[StepStatus, ...]) -> StepStatus | None:
    """The step whose turn it is: the first that has not ended."""
    return next((step for step in steps if step.state not in ENDED), None)


def current_stage(step: StepStatus) -> StageStatus | None:
    """The stage whose turn it is, or None when all have ended."""
    return next((stage for stage in step.stages if stage.state not in ENDED), None)


def with_step(steps: tuple[StepStatus, ...], step: StepStatus) -> tuple[StepStatus, ...]:
    """`steps` with the one of the same index replaced."""
    return tuple(step if old.index == step.index else old for old in steps)


def with_stage(step: StepStatus, stage: StageStatus) -> StepStatus:
    """`step` with the stage of the same name replaced, and its sums brought up to date."""
    stages = tuple(stage if old.name == stage.name else old for old in step.stages)
    return changed(
        step,
        stages=stages,
        attempts=sum(s.attempt for s in stages),
        tokens=sum(s.usage.tokens for s in stages),
        gpu_seconds=sum(s.usage.gpu_seconds for s in stages),
    )


def with_epochs(step: StepStatus, epochs: tuple[EpochAdapter, ...]) -> StepStatus:
    """`step`, which has trained, with a select stage for each of `epochs`, in their order, before what is to come."""
    trained = next(n for n, stage in enumerate(step.stages, start=1) if stage.name == "train")
    selects = tuple(StageStatus(name=name) for name in SELECT_STAGES[: len(epochs)])
    return changed(step, epochs=epochs, stages=(*step.stages[:trained], *selects, *step.stages[trained:]))


def epoch_of(step: StepStatus, stage: StageStatus) -> EpochAdapter | None:
    """What a select stage scores; None for every other stage."""
    return step.selects.get(stage.name)


def best_stage(step: StepStatus) -> StageName | None:
    """The select stage that scored the step's adapter, the best so far; None while none has been scored."""
    if not step.candidates:
        return None
    return next((name for name, epoch in step.selects.items() if epoch.adapter == step.adapter), None)


@dataclass(frozen=True)
class ProgramState:
    """What a step builds on: the prompts and the adapter that are current."""

    prompt_set: Artifact | None = None
    adapter: Artifact | None = None


def program_before(steps: tuple[StepStatus, ...], index: int) -> ProgramState:
    """The program as the steps before `index` left it.

    A `p` step sets the prompts. A `w` step sets the adapter, and with it the better of the prompts that it was scored
    with (ties: the vanilla ones, which are shorter and which it was trained with).
    """
    state = ProgramState()
    for step in steps[:index]:
        if step.state != "Succeeded":
            continue
        if step.kind == "p":
            state = ProgramState(step.prompt_set, state.adapter)
        elif step.kind == "w" and step.adapter is not None:
            winner = best_candidate(step.candidates)
            state = ProgramState(winner.prompt_set if winner else None, step.adapter)
    return state


def best_candidate(candidates: Iterable[Candidate]) -> Candidate | None:
    """The candidate with the highest validation score; ties keep the earlier."""
    best: Candidate | None = None
    for candidate in candidates:
        if best is None or float(candidate.score) > float(best.score):
            best = candidate
    return best


def all_candidates(steps: tuple[StepStatus, ...]) -> tuple[Candidate, ...]:
    """Every candidate of the run, in the order of the steps."""
    return tuple(candidate for step in steps for candidate in step.candidates)


def total_usage(steps: tuple[StepStatus, ...]) -> Usage:
    """What all stages spent."""
    total = Usage()
    for step in steps:
        for stage in step.stages:
            total = total.plus(stage.usage)
    return total
