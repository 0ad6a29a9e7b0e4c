"""What people and tools read: conditions, the current step, the phase. Derived from the rest of the status."""

from __future__ import annotations

from datetime import datetime, timedelta

from tandem_api import conditions
from tandem_api.v1alpha1 import Spec, Status
from tandem_api.v1alpha1.status import Condition, CurrentStep, StageStatus, StepStatus
from tandem_operator.actions import EmitEvent
from tandem_operator.decide.limits import REASONS
from tandem_operator.decide.names import camel_case, task_name
from tandem_operator.decide.plan import changed, current_stage, current_step
from tandem_operator.decide.requests import needs_server
from tandem_operator.decide.results import backoff_over, next_start
from tandem_operator.snapshot import Observed

_DOING = {
    "check": ("Checking", "checking the program, the metric and the data"),
    "evaluate": ("Evaluating", "evaluating"),
    "optimize": ("OptimizingPrompts", "optimizing prompts"),
    "traces": ("CollectingTraces", "collecting traces"),
    "train": ("TrainingWeights", "training weights"),
    "select": ("SelectingCheckpoint", "scoring an epoch's adapter"),
}


def summarize(spec: Spec, status: Status, observed: Observed) -> Status:
    """The status with conditions, current step and phase as the rest of it says."""
    ended = _how_it_ended(status)
    found = status.conditions
    for kind, state, reason, message in (
        (conditions.SUCCEEDED, *(ended or ("Unknown", "Running", ""))),
        (conditions.ACCEPTED, *_accepted(status, observed)),
        (conditions.SERVING_READY, *_serving(status, observed)),
        (conditions.PROGRESSING, *_progressing(spec, status, observed, ended is not None)),
        (conditions.SUSPENDED, *(_suspended(spec, ended is not None))),
        (conditions.READY, *_ready(ended)),
        (conditions.STALLED, *_stalled(ended)),
    ):
        found = conditions.with_condition(
            found, kind, state, reason, message, now=observed.now, generation=observed.generation
        )
    return changed(
        status,
        conditions=found,
        phase=_phase(found),
        step=None if ended else _current(status, observed),
        observed_generation=observed.generation,
    )


ConditionValue = tuple[conditions.ConditionStatus, str, str]


def waiting_events(before: Status, after: Status) -> list[EmitEvent]:
    """Told once: what a pod has come to wait for, where somebody may have to do something about it."""
    events = []
    for kind in (conditions.PROGRESSING, conditions.SERVING_READY, conditions.ACCEPTED):
        old, new = conditions.find(before.conditions, kind), conditions.find(after.conditions, kind)
        if kind == conditions.ACCEPTED and new is not None and new.status == "False":
            continue  # the run has failed, which is told as such
        if new is not None and new.reason in conditions.WAITING and (old is None or old.reason != new.reason):
            patient = new.reason in conditions.PATIENT
            events.append(EmitEvent("Normal" if patient else "Warning", new.reason, new.message[:1024]))
    return events


def _how_it_ended(status: Status) -> ConditionValue | None:
    failed = next((step for step in status.steps if step.state == "Failed"), None)
    if failed is not None:
        return "False", failed.reason or "Failed", f"step {failed.index} ({failed.kind}) failed: {failed.message or ''}"
    if status.finished is None:
        return None
    if status.best is None:
        cause = next((s for s in status.steps if s.state in ("Stopped", "Skipped")), None)
        why = cause.message if cause and cause.message else "no candidate was scored"
        return "False", (cause.reason if cause and cause.reason else "NoCandidate"), why
    stopped = next((s for s in status.steps if s.reason in REASONS), None)
    score = f"best validation score {status.best.score} (step {status.best.step})"
    if status.test is not None:
        score += f", test score {status.test.score}"
    if stopped is not None and stopped.reason is not None:
        return "True", stopped.reason, f"{stopped.message}; {score}"
    return "True", "Completed", score


def _accepted(status: Status, observed: Observed) -> ConditionValue:
    if observed.ignored_changes:
        why = f"the run goes on with the spec that it began with: {observed.ignored_changes}"
        return "True", conditions.CHANGE_IGNORED, why
    check = next((s for step in status.steps[:1] for s in step.stages if s.name == "check"), None)
    if check is None or check.state in ("Pending", "Running"):
        return "Unknown", "Checking", "the program, the metric and the data have not been checked yet"
    if check.state == "Failed":
        return "False", check.reason or "BadConfiguration", check.message or ""
    return "True", "Checked", check.message or "the program, the metric and the data passed every check"


def _serving(status: Status, observed: Observed) -> ConditionValue:
    name = status.serving.name
    if name is None:
        return "False", "NotNeeded", "no stage needs a model server now"
    seen = observed.serving
    if seen is None or seen.name != name:
        return "False", "Loading", f"waiting for the model server of {name!r}"
    if seen.state == "starting":
        return "False", camel_case(seen.reason, "Loading"), seen.message or f"waiting for the model server of {name!r}"
    if seen.state == "failed":
        return "False", "Failed", seen.message
    return "True", "Ready", f"{name!r} is served"


def _progressing(spec: Spec, status: Status, observed: Observed, ended: bool) -> ConditionValue:
    if ended:
        return "False", "Finished", ""
    if spec.suspend:
        return "False", "Suspended", "the run is suspended"
    step = current_step(status.steps)
    stage = current_stage(step) if step is not None else None
    if step is None or stage is None:
        return "True", "Finishing", "releasing what the run held"
    reason, doing = _DOING[stage.name.partition("-")[0]]
    where = f"step {step.index} ({step.kind}), attempt {max(1, stage.attempt)}: "
    task = observed.tasks.get(task_name(observed.name, step.index, step.kind, stage.name, stage.attempt))
    if task is not None and task.waiting:
        return "True", camel_case(task.waiting, "Waiting"), f"{where}{task.waiting_message}"
    held_up = _held_up(spec, status, observed, step, stage) if task is None or task.state != "running" else None
    if held_up is not None:
        return "True", held_up[0], f"{where}{held_up[1]}"
    return "True", reason, f"{where}{doing}"


def _held_up(
    spec: Spec, status: Status, observed: Observed, step: StepStatus, stage: StageStatus
) -> tuple[str, str] | None:
    """What a stage without a task waits for: (reason, message). In the order in which the engine looks."""
    seen = observed.serving
    if observed.blocked is not None:
        return camel_case(observed.blocked.reason, "Waiting"), observed.blocked.message
    if needs_server(spec, step, stage):
        state, why, message = _serving(status, observed)
        if state != "True":
            return "WaitingForServer", f"{why}: {message}"
    elif stage.name == "train" and spec.serving.handover == "release" and seen is not None:
        is_named = seen.name == "" and seen.reason == "Stopping"
        return "ReleasingServer", seen.message if is_named else "waiting for the model server to end"
    earliest = next_start(stage)
    if stage.state == "Pending" and earliest is not None and not backoff_over(observed, stage):
        ended = f"attempt {stage.attempt} ended ({stage.reason}), the next one starts at {earliest:%H:%M:%S} UTC"
        return "BackingOff", f"{ended}; {stage.message}" if stage.message else ended
    return None


def _suspended(spec: Spec, ended: bool) -> ConditionValue:
    if spec.suspend and not ended:
        return "True", "Suspended", "spec.suspend is true; set it to false to go on"
    return "False", "NotSuspended", ""


def _ready(ended: ConditionValue | None) -> ConditionValue:
    if ended is None:
        return "False", "Running", "the run goes on"
    state, reason, message = ended
    return "True" if state == "True" else "False", reason, message


def _stalled(ended: ConditionValue | None) -> ConditionValue:
    if ended is not None and ended[0] == "False":
        return "True", ended[1], ended[2]
    return "False", "NotStalled", ""


def _phase(found: tuple[Condition, ...]) -> str:
    succeeded = conditions.find(found, conditions.SUCCEEDED)
    if succeeded is not None and succeeded.status != "Unknown":
        return "Succeeded" if succeeded.status == "True" else "Failed"
    if conditions.is_true(found, conditions.SUSPENDED):
        return "Suspended"
    progressing = conditions.find(found, conditions.PROGRESSING)
    # A foreign reason may be longer than a phase.
    return progressing.reason[:32] if progressing is not None else "Pending"


def _current(status: Status, observed: Observed) -> CurrentStep | None:
    step = current_step(status.steps)
    stage = current_stage(step) if step is not None else None
    if step is None or stage is None:
        return None
    task = observed.tasks.get(task_name(observed.name, step.index, step.kind, stage.name, stage.attempt))
    progress = task.progress if task is not None else None
    percent = eta = None
    message = stage.message or ""
    if progress is not None:
        percent = min(100, 100 * progress.done // progress.total) if progress.total else None
        if progress.eta_seconds is not None:
            eta = _steady(status, observed.now + timedelta(seconds=progress.eta_seconds))
        message = progress.message
    return CurrentStep(
        index=step.index,
        kind=step.kind,
        stage=stage.name,
        attempt=stage.attempt,
        progress=percent,
        eta=eta,
        message=message[:2048],
    )


def _steady(status: Status, eta: datetime) -> datetime:
    """The expected end; as it was told before where the difference means nothing, so that the status rests."""
    before = status.step.eta if status.step is not None else None
    if before is not None and abs(eta - before) < timedelta(seconds=10):
        return before
    return eta.replace(microsecond=0)
