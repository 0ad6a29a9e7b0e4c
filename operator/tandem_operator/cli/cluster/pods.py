"""Which pod's log is meant, and how that pod is. Pure."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tandem_api.v1alpha1 import OptimizationRun
from tandem_api.v1alpha1.status import SELECT_STAGES, StageStatus
from tandem_operator.cli.cluster.client import Resource
from tandem_operator.cli.cluster.resource import has_ended
from tandem_operator.platforms.kubernetes.names import TASK

_KINDS = {"b": "baseline", "p": "p", "w": "w", "f": "final"}


@dataclass(frozen=True)
class Attempt:
    """What a worker pod was made for."""

    step: int
    kind: str
    stage: str
    attempt: int

    def __str__(self) -> str:
        return f"step {self.step} ({self.kind}), {self.stage}, attempt {self.attempt}"


@dataclass(frozen=True)
class Choice:
    """The attempts that the user wants to see; None: any."""

    step: int | None = None
    stage: str | None = None
    attempt: int | None = None

    @property
    def is_any(self) -> bool:
        """Whether nothing was chosen."""
        return (self.step, self.stage, self.attempt) == (None, None, None)

    @property
    def options(self) -> str:
        """As the user wrote it."""
        given = (("--step", self.step), ("--stage", self.stage), ("--attempt", self.attempt))
        return " ".join(f"{option} {value}" for option, value in given if value is not None)

    def fits(self, found: Attempt | None) -> bool:
        """Whether that attempt is wanted."""
        if self.is_any:
            return True
        return found is not None and all(
            wanted in (None, value)
            for wanted, value in (
                (self.step, found.step),
                (self.stage, found.stage),
                (self.attempt, found.attempt),
            )
        )


@dataclass(frozen=True)
class Pod:
    """A pod of a run, and how the container is whose log is wanted."""

    name: str
    uid: str
    created: str
    """RFC 3339, in UTC: the texts sort as the times do."""
    attempt: Attempt | None
    """None: no worker."""
    state: str
    """`waiting`, `running` or `terminated`."""
    why: str
    """What it waits for, or why it ended."""
    has_run: bool = False
    """Whether its container ran and ended before: `--previous` has that log."""

    @property
    def title(self) -> str:
        """For people."""
        return f"{self.name} ({self.attempt})" if self.attempt is not None else self.name


def parse_pod(pod: Resource, container: str) -> Pod:
    """The pod as the API server has it, seen from one of its containers."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    labels = metadata.get("labels") or {}
    state, why = _state(status, container, restarts=(pod.get("spec") or {}).get("restartPolicy") != "Never")
    return Pod(
        name=metadata["name"],
        uid=metadata.get("uid", ""),
        created=metadata.get("creationTimestamp") or "",
        attempt=parse_task(str(labels.get(TASK, ""))),
        state=state,
        why=why,
        has_run=_has_run(status, container),
    )


def parse_task(name: str) -> Attempt | None:
    """The attempt that a task's name tells (`decide.names.task_name`); None for any other text."""
    found = re.fullmatch(r".+-([0-9]+)([bpwf])-([a-z]+(?:-[1-8])?)-([0-9]+)", name)
    if found is None:
        return None
    step, kind, stage, attempt = found.groups()
    return Attempt(int(step), _KINDS[kind], stage, int(attempt))


def chosen(pods: Sequence[Pod], choice: Choice) -> list[Pod]:
    """Those that are wanted, the oldest first."""
    return sorted((pod for pod in pods if choice.fits(pod.attempt)), key=lambda pod: (pod.created, pod.name))


def expects_more(run: OptimizationRun, choice: Choice) -> bool:
    """Whether another pod that is wanted may still come."""
    if has_ended(run):
        return False
    if choice.is_any or not run.status.steps:
        return True
    return any(
        stage.state in ("Pending", "Running") and _may_bring(stage, choice)
        for step in run.status.steps
        if choice.step in (None, step.index)
        for stage in step.stages
    )


def _may_bring(stage: StageStatus, choice: Choice) -> bool:
    """Whether a pod that is wanted may come of a stage that goes on."""
    if choice.stage in SELECT_STAGES and stage.name == "train":
        return True  # the select stages are not in the status before their step has trained
    return choice.stage in (None, stage.name) and (choice.attempt is None or stage.attempt <= choice.attempt)


def _state(status: dict[str, Any], container: str, *, restarts: bool) -> tuple[str, str]:
    over = status.get("phase") in ("Succeeded", "Failed")
    listed = [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]
    own = next((item.get("state") or {} for item in listed if item.get("name") == container), {})
    if "running" in own:
        return "running", ""
    if "terminated" in own:
        ended = own["terminated"]
        why = f"{ended.get('reason', 'ended')} with exit code {ended.get('exitCode')}"
        return ("waiting", f"it starts again after {why}") if restarts and not over else ("terminated", why)
    if over:
        return "terminated", _text(status, "the pod has ended")
    for condition in status.get("conditions") or []:
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return "waiting", _text(condition, "it is not scheduled yet")
    # An earlier container that cannot start holds up ours.
    held_up = [item["state"]["waiting"] for item in listed if "waiting" in (item.get("state") or {})]
    return "waiting", _text(own.get("waiting") or next(iter(held_up), {}), "its containers are being created")


def _has_run(status: dict[str, Any], container: str) -> bool:
    found = (item for item in status.get("containerStatuses") or [] if item.get("name") == container)
    return any("terminated" in (item.get("lastState") or {}) or item.get("restartCount") for item in found)


def _text(source: dict[str, Any], otherwise: str) -> str:
    return ": ".join(str(source[key]) for key in ("reason", "message") if source.get(key)) or otherwise
