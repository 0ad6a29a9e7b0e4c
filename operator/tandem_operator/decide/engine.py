"""`decide(spec, status, observed) -> actions, status`: the heart of Tandem.

Called by `reconcile`, again and again. It is level-based: it looks at what is, not at what changed, and it may be
called with the same arguments any number of times. Whatever it must remember is in the status it returns.
"""

from __future__ import annotations

from dataclasses import dataclass

from tandem_api.v1alpha1 import Spec, Status
from tandem_api.v1alpha1.status import StageStatus, StepStatus
from tandem_operator.actions import Action, EmitEvent, StartTask, StopTask
from tandem_operator.decide.limits import deadline_passed, skip_remaining, stop_reason
from tandem_operator.decide.names import task_name
from tandem_operator.decide.plan import (
    changed,
    current_stage,
    current_step,
    planned_steps,
    with_stage,
    with_step,
)
from tandem_operator.decide.requests import build_request, needs_server, program_for
from tandem_operator.decide.results import backoff_over, fail_stage, keep_clock, record_end
from tandem_operator.decide.serving import need_server, release_server
from tandem_operator.decide.summary import summarize, waiting_events
from tandem_operator.snapshot import Observed


@dataclass(frozen=True)
class Decision:
    """What is to be stored, then done."""

    status: Status
    actions: tuple[Action, ...]
    finished: bool
    """The run has ended (or is suspended) and holds nothing any more."""


def decide(spec: Spec, status: Status, observed: Observed) -> Decision:
    """One step towards the run's end. Pure: equal arguments, equal decision."""
    if not status.steps:
        status = changed(status, steps=planned_steps(spec), strategy=spec.strategy_text)
    actions: list[Action] = []
    released = False
    if status.finished is None:
        if status.started is None and not spec.suspend:
            status = changed(status, started=observed.now)
        # 1. What has ended enters the status.
        status, events = _record(spec, status, observed)
        status = _keep_clock(spec, status, observed)
        actions += events
        # 2. What is no longer to be done is crossed out.
        status = _stop_early(spec, status, observed)
        # 3. What is to be done now, if anything.
        if spec.suspend and not _is_over(status):
            status, held, released = _release(status, observed)
            actions += held
        elif not _is_over(status):
            status, more = _pursue(spec, status, observed)
            actions += more
        if _is_over(status):
            status = changed(status, finished=observed.now)
            actions.append(_final_event(spec, status, observed))
    if status.finished is not None:
        status, held, released = _release(status, observed)
        actions += held
    summary = summarize(spec, status, observed)
    return Decision(summary, (*actions, *waiting_events(status, summary)), released)


def _now(status: Status) -> tuple[StepStatus, StageStatus] | None:
    step = current_step(status.steps)
    stage = current_stage(step) if step is not None else None
    return (step, stage) if step is not None and stage is not None else None


def _place(now: tuple[StepStatus, StageStatus] | None) -> tuple[int, str] | None:
    return (now[0].index, now[1].name) if now is not None else None


def _record(spec: Spec, status: Status, observed: Observed) -> tuple[Status, list[EmitEvent]]:
    now = _now(status)
    if now is None:
        return status, []
    step, stage = now
    task = observed.tasks.get(_task(observed, step, stage))
    if stage.state != "Running" or task is None or task.state == "running":
        return status, []
    status, events = record_end(spec, status, observed, step, stage, task)
    if _place(now) != _place(_now(status)):
        # A stage got through: the server's failures before it are forgiven.
        status = changed(status, serving=changed(status.serving, failures=0))
    return status, list(events)


def _keep_clock(spec: Spec, status: Status, observed: Observed) -> Status:
    """GPU time is counted neither while a task waits for a place (or is not there) nor while the run is suspended."""
    now = _now(status)
    if now is None or now[1].state != "Running":
        return status
    task = observed.tasks.get(_task(observed, *now))
    works = task is not None and not task.waiting and not spec.suspend
    return keep_clock(spec, status, observed, *now, works=works)


def _stop_early(spec: Spec, status: Status, observed: Observed) -> Status:
    step = current_step(status.steps)
    if step is None or step.kind == "final":
        return status
    if step.state == "Running":
        stage = current_stage(step)
        at_rest = stage is not None and (stage.state == "Pending" or _task(observed, step, stage) not in observed.tasks)
        if at_rest and deadline_passed(spec, status, observed):
            # The running stage was asked to stop and has (its Job is gone): the step ends with what it has.
            message = f"{spec.budget.deadline_seconds} seconds have passed since the start"
            stopped = changed(step, state="Stopped", reason="DeadlineReached", message=message, finished=observed.now)
            status = changed(status, steps=with_step(status.steps, stopped))
        else:
            return status
    why = stop_reason(spec, status, observed)
    return status if why is None else changed(status, steps=skip_remaining(status.steps, *why))


def _is_over(status: Status) -> bool:
    """Every step has ended, or one has failed, or the baseline has nothing to show."""
    if any(step.state == "Failed" for step in status.steps) or current_step(status.steps) is None:
        return True
    return status.best is None and status.steps[0].state in ("Stopped", "Skipped")


def _final_event(spec: Spec, status: Status, observed: Observed) -> EmitEvent:
    summary = next(c for c in summarize(spec, status, observed).conditions if c.type == "Succeeded")
    if summary.status == "True":
        return EmitEvent("Normal", "RunSucceeded", summary.message[:1024])
    return EmitEvent("Warning", "RunFailed", f"{summary.reason}: {summary.message}"[:1024])


def _release(status: Status, observed: Observed) -> tuple[Status, list[Action], bool]:
    """Give everything back: (status, actions, whether nothing is held any more)."""
    running: list[Action] = [StopTask(name) for name, task in observed.tasks.items() if task.state == "running"]
    status, stops, gone = release_server(status, observed)
    return status, [*running, *stops], gone and not running


def _pursue(spec: Spec, status: Status, observed: Observed) -> tuple[Status, list[Action]]:
    now = _now(status)
    if now is None:
        return status, []
    step, stage = now
    actions: list[Action] = []
    if step.state == "Pending":
        step = changed(step, state="Running", started=observed.now)
        actions.append(EmitEvent("Normal", "StepStarted", f"step {step.index} ({step.kind}) started"))
    if stage.requested is None:
        stage = changed(stage, requested=observed.now)
    status = changed(status, steps=with_step(status.steps, with_stage(step, stage)))
    task = observed.tasks.get(_task(observed, step, stage)) if stage.state == "Running" else None
    if task is not None and step.kind != "final" and deadline_passed(spec, status, observed):
        return status, [*actions, StopTask(_task(observed, step, stage))]
    if task is None and observed.blocked is not None and observed.blocked.is_permanent:
        blocked = observed.blocked
        return fail_stage(status, observed, step, stage, blocked.reason, blocked.message), actions
    # The server first: it is looked after while a task runs, too.
    url = ""
    if needs_server(spec, step, stage):
        need = need_server(spec, status, observed, program_for(status, step, stage).adapter)
        status, actions = need.status, [*actions, *need.actions]
        if need.failure is not None:
            return fail_stage(status, observed, step, stage, "ServingFailed", need.failure), actions
        if need.url is None:
            return status, actions
        url = need.url
    elif stage.name == "train" and spec.serving.handover == "release":
        status, stops, gone = release_server(status, observed)
        actions += stops
        if not gone:
            return status, actions
    # A request that somebody has deleted before its pod began is made again.
    if task is not None and not task.lacks_request:
        return status, actions
    # Nothing runs: the next attempt, or, after a crash of ours, the same one again.
    if stage.state == "Pending":
        if not backoff_over(observed, stage):
            return status, actions
        stage = changed(
            stage,
            state="Running",
            attempt=stage.attempt + 1,
            ready=stage.ready or observed.now,
            started=stage.started or observed.now,
            attempt_started=observed.now,
        )
        step = with_stage(step, stage)
        status = changed(status, steps=with_step(status.steps, step))
    request = build_request(spec, status, observed, step, stage, url)
    return status, [*actions, StartTask(_task(observed, step, stage), request)]


def _task(observed: Observed, step: StepStatus, stage: StageStatus) -> str:
    return task_name(observed.name, step.index, step.kind, stage.name, stage.attempt)
