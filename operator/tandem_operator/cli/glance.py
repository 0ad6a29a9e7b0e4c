"""What displays show of a run beside its status: how far the stage is and how the model server is."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from tandem_api.conditions import PROGRESSING, SERVING_READY, find, is_held_up
from tandem_api.contract import Progress
from tandem_api.v1alpha1 import OptimizationRun, Status
from tandem_operator.cli.narration import duration, seconds_between
from tandem_operator.decide.names import task_name
from tandem_operator.snapshot import Observed


@dataclass(frozen=True)
class Glance:
    """One look at a run that goes on."""

    now: datetime
    progress: Progress | None = None
    """Of the worker of the current stage; None: nobody works."""
    amount: str = ""
    """How much of the stage is done: `90 of 360`, or `25%` where no more is known. Empty: not known."""
    serving: str = "none"
    """The model server in a few words."""


def from_platform(run: OptimizationRun, seen: Observed) -> Glance:
    """What the local platform saw."""
    progress = _local_progress(run, seen)
    amount = f"{progress.done} of {progress.total}" if progress is not None and progress.total else ""
    return Glance(seen.now, progress, amount, _local_serving(run.status, seen))


def from_resource(run: OptimizationRun, now: datetime) -> Glance:
    """What a cluster's resource says. A stage whose pod waits has begun, but nobody works."""
    current = run.status.step
    serving = _serving_of(run.status, now)
    if current is None or not _is_running(run.status) or is_held_up(run.status.conditions, PROGRESSING):
        return Glance(now, serving=serving)
    left = seconds_between(now, current.eta)
    progress = Progress(
        done=current.progress or 0,
        total=100 if current.progress is not None else 0,
        eta_seconds=max(0.0, left) if left is not None else None,
        message=current.message,
    )
    return Glance(now, progress, f"{current.progress}%" if current.progress is not None else "", serving)


def _local_progress(run: OptimizationRun, seen: Observed) -> Progress | None:
    current = run.status.step
    if current is None or current.stage is None:
        return None
    task = seen.tasks.get(task_name(seen.name, current.index, current.kind, current.stage, current.attempt))
    return task.progress if task is not None and task.state == "running" else None


def _local_serving(status: Status, seen: Observed) -> str:
    server = seen.serving
    if server is None:
        return "none"
    if server.state != "starting":
        return f"{server.name}, {server.state}"
    return _loading(server.name, seconds_between(status.serving.since, seen.now))


def _is_running(status: Status) -> bool:
    current = status.step
    return current is not None and any(
        stage.state == "Running"
        for step in status.steps
        if step.index == current.index
        for stage in step.stages
        if stage.name == current.stage
    )


def _serving_of(status: Status, now: datetime) -> str:
    server = status.serving
    if server.name is None:
        return "none"
    ready = find(status.conditions, SERVING_READY)
    if ready is not None and ready.status == "True":
        return f"{server.name}, ready"
    why = "" if ready is None or ready.reason in ("NotNeeded", "Loading") else f": {ready.reason}"
    return _loading(server.name, seconds_between(server.since, now)) + why


def _loading(name: str, waited: float | None) -> str:
    return f"{name}, loading" + (f" for {duration(waited)}" if waited is not None else "")
