"""Condition types, their reasons and the pure functions that set and find them (Kubernetes API conventions)."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from tandem_api.v1alpha1.status import Condition

#: The summary: True when the result is there, False when the run failed, Unknown while it goes on.
SUCCEEDED = "Succeeded"
#: The spec passed every check, those that need the program and the data included.
ACCEPTED = "Accepted"
#: The model server answers under the wanted name.
SERVING_READY = "ServingReady"
#: A stage is being worked on.
PROGRESSING = "Progressing"
#: The run is held by `spec.suspend`.
SUSPENDED = "Suspended"

#: For tools that know no condition of ours (kstatus, so Flux and `kubectl wait`-like scripts): the same as Succeeded.
READY = "Ready"
#: For the same tools: the run has failed, and waiting will not help.
STALLED = "Stalled"

#: Accepted, but a later change of the spec was not.
CHANGE_IGNORED = "SpecChangeIgnored"
#: Accepted is False, and the run has not begun: the manifest cannot be carried out.
INVALID = "InvalidSpec"
#: Reasons of pods that wait without anybody's fault.
PATIENT = frozenset({"WaitingForQuota"})
#: Reasons of pods that wait for something outside of the run.
WAITING = PATIENT | {
    "Unschedulable", "ImagePullBackOff", "InvalidImageName", "MissingSecret", "MissingConfigMap", "MissingVolume",
    "CannotCreatePod", "JobRefused", "ServerRefused", "NameTaken", "ServerUnreachable", "PodStuck", CHANGE_IGNORED,
}  # fmt: skip

ConditionStatus = Literal["True", "False", "Unknown"]


def find(conditions: tuple[Condition, ...], kind: str) -> Condition | None:
    """The condition of that type, or None."""
    return next((c for c in conditions if c.type == kind), None)


def is_true(conditions: tuple[Condition, ...], kind: str) -> bool:
    """Whether the condition is there and True."""
    condition = find(conditions, kind)
    return condition is not None and condition.status == "True"


def is_held_up(conditions: tuple[Condition, ...], *kinds: str) -> bool:
    """Whether the run is suspended, or one of these conditions tells of pods that wait."""
    return is_true(conditions, SUSPENDED) or any(c.type in kinds and c.reason in WAITING for c in conditions)


def with_condition(
    conditions: tuple[Condition, ...],
    kind: str,
    status: ConditionStatus,
    reason: str,
    message: str,
    *,
    now: datetime,
    generation: int,
) -> tuple[Condition, ...]:
    """`conditions` with this one set; the transition time moves only when the status changes."""
    old = find(conditions, kind)
    moved = old is None or old.status != status
    new = Condition(
        type=kind,
        status=status,
        reason=reason,
        message=message[:32768],
        last_transition_time=now if moved or old is None else old.last_transition_time,
        observed_generation=generation,
    )
    if old is None:
        return (*conditions, new)
    return tuple(new if c.type == kind else c for c in conditions)
