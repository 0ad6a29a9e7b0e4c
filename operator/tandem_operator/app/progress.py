"""Whether and when a run came forward: by that one that is stuck is told from one that takes long. Pure."""

from __future__ import annotations

from datetime import datetime

from tandem_api import conditions
from tandem_api.v1alpha1 import OptimizationRun, Status
from tandem_operator.decide.plan import ENDED


def last_progress(known: tuple[OptimizationRun, datetime] | None, run: OptimizationRun, now: datetime) -> datetime:
    """When a run, as it is seen now, last came forward. `known`: how it was last seen, and the answer to that.

    An attempt that begins is no step forward: one that is tried again and again is stuck, too.
    """
    if known is None or known[0].metadata.uid != run.metadata.uid:
        # When a stage's percentage last rose is not in the status: whoever has just begun to look takes it for now.
        step = run.status.step
        return now if step is not None and step.progress else _last_told(run.status) or now
    before, progressed = known
    return now if _came_forward(before, run) else progressed


def _came_forward(before: OptimizationRun, run: OptimizationRun) -> bool:
    if _mark(before.status) != _mark(run.status) or before.spec.suspend != run.spec.suspend:
        return True
    old, new = before.status.step, run.status.step
    # An attempt that begins anew begins at nothing, which is none.
    return old is not None and new is not None and (new.progress or 0) > (old.progress or 0)


def _mark(status: Status) -> object:
    """What changes when work is done."""
    steps = [step.state for step in status.steps]
    stages = [(stage.started, stage.state in ENDED) for step in status.steps for stage in step.stages]
    return status.started, status.finished, steps, stages, status.usage.calls


def _last_told(status: Status) -> datetime | None:
    """The newest time in the status at which work was done, or might go on: all that an operator that starts knows."""
    held = conditions.find(status.conditions, conditions.SUSPENDED)
    told = [status.started, status.finished, held.last_transition_time if held is not None else None]
    for step in status.steps:
        told += [step.started, step.finished]
        for stage in step.stages:
            told += [stage.started, stage.finished if stage.state in ENDED else None]
    return max((at for at in told if at is not None), default=None)
