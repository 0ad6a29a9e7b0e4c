"""What has happened to a run, read off its status. Pure.

A status holds when each step began and ended and how the run ended, so what has happened can be told from it alone, by
whoever reads it: a new leader finds the same transitions as the one before, under the same ids.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal, get_args

from tandem_api import conditions
from tandem_api.v1alpha1 import OptimizationRun, Status
from tandem_api.v1alpha1.status import StepStatus
from tandem_operator.decide.plan import ENDED

What = Literal[
    "run.started",
    "run.suspended",
    "run.resumed",
    "run.succeeded",
    "run.failed",
    "run.deleted",
    "step.started",
    "step.finished",
]
#: All of them.
KINDS: tuple[What, ...] = get_args(What)


@dataclass(frozen=True)
class Seen:
    """A run as a pass left it. Its spec may be anything: a run that is refused has transitions, too."""

    namespace: str
    name: str
    uid: str
    status: Status

    @classmethod
    def of(cls, run: OptimizationRun) -> Seen:
        """The same of a run that can be read."""
        return cls(run.metadata.namespace, run.metadata.name, run.metadata.uid, run.status)


@dataclass(frozen=True)
class Transition:
    """One thing that happened to one run."""

    id: str
    """The same whenever and by whomever it is told; no other transition has it."""
    what: What
    time: datetime
    """When it happened, in UTC."""
    step: int | None = None
    """Of a step's transitions its index."""


def happened(seen: Seen) -> list[Transition]:
    """Everything that the status tells, in the order in which it happened."""
    status, found = seen.status, []
    if status.started is not None:
        found.append(Transition(f"{seen.uid}-run-started", "run.started", status.started))
    for step in status.steps:
        found += _of_step(seen, step)
    # Steps that follow each other do so within the same moment: their order is kept.
    return sorted([*found, *_held(seen), *_end(seen)], key=lambda transition: transition.time)


def transitions(before: Seen | None, after: Seen, since: datetime) -> list[Transition]:
    """What happened between the two. Of a run that was not seen before: what happened no earlier than `since`."""
    if before is None or before.uid != after.uid:
        return [transition for transition in happened(after) if transition.time >= since]
    known = {transition.id for transition in happened(before)}
    return [transition for transition in happened(after) if transition.id not in known]


def deletion(seen: Seen, now: datetime) -> Transition:
    """The run is no longer there. Its status went with it, so nobody can find this again."""
    return Transition(f"{seen.uid}-run-deleted", "run.deleted", now)


def _of_step(seen: Seen, step: StepStatus) -> list[Transition]:
    found: list[Transition] = []
    place = f"{seen.uid}-step-{step.index}"
    if step.started is not None:
        found.append(Transition(f"{place}-started", "step.started", step.started, step.index))
    ended = step.finished or _crossed_out(seen.status, step)
    if step.state in ENDED and ended is not None:
        found.append(Transition(f"{place}-finished", "step.finished", ended, step.index))
    return found


def _crossed_out(status: Status, step: StepStatus) -> datetime | None:
    """When a step that never began was skipped: as the last one before it ended."""
    ends = [other.finished for other in status.steps if other.index < step.index and other.finished is not None]
    return max(ends, default=status.started)


def _held(seen: Seen) -> list[Transition]:
    """The last time that the run was suspended, or went on after it."""
    status = seen.status
    suspended = conditions.find(status.conditions, conditions.SUSPENDED)
    if suspended is None:
        return []
    when = suspended.last_transition_time
    if suspended.status == "True":
        return [Transition(f"{seen.uid}-run-suspended-{_second(when)}", "run.suspended", when)]
    # A run that was never held has the condition since it started, and one that ends is held no longer.
    if status.started is None or when <= status.started or status.finished is not None:
        return []
    return [Transition(f"{seen.uid}-run-resumed-{_second(when)}", "run.resumed", when)]


def _end(seen: Seen) -> list[Transition]:
    succeeded = conditions.find(seen.status.conditions, conditions.SUCCEEDED)
    if succeeded is None or succeeded.status == "Unknown":
        return []
    when = succeeded.last_transition_time
    if succeeded.status == "True":
        return [Transition(f"{seen.uid}-run-succeeded", "run.succeeded", when)]
    # A manifest may be refused, corrected, and refused again.
    return [Transition(f"{seen.uid}-run-failed-{_second(when)}", "run.failed", when)]


def _second(when: datetime) -> int:
    return int(when.timestamp())
