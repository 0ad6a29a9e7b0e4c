"""What a Job and its pods say about an attempt. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

from tandem_api.contract import Progress, parse_termination
from tandem_api.errors import EXIT_PREEMPTED
from tandem_operator.platforms.kubernetes import names
from tandem_operator.platforms.kubernetes.pod_state import (
    Waiting,
    condition,
    container_status,
    has_ended,
    holds,
    is_going,
    name_of,
    newest,
    stuck,
    waiting,
    was_disrupted,
)
from tandem_operator.settings import OperatorSettings
from tandem_operator.snapshot import TaskObservation

Object = dict[str, Any]
EventsOf = Callable[[Object], Sequence[Object]]


def is_over(job: Object) -> bool:
    """Whether the Job has ended, for better or worse."""
    return holds(job, "Complete") or holds(job, "Failed")


def observe_task(
    job: Object | None,
    pods: Iterable[Object],
    *,
    events: EventsOf,
    progress: Progress | None,
    now: datetime,
    settings: OperatorSettings,
) -> TaskObservation | None:
    """One attempt from its Job and its pods; None: there is no such attempt (any more).

    A Job that is being deleted, or whose pods still are, counts as running: the next one waits for its end.
    """
    pods = list(pods)
    alive = [pod for pod in pods if not has_ended(pod)]
    if job is None or is_going(job):
        return _ending(alive, now) if alive or job is not None else None
    if holds(job, "Failed") and alive:
        return _ending(alive, now)  # older clusters say so before its pod has ended
    if is_over(job):
        return _ended(job, newest(pods))
    if (job.get("spec") or {}).get("suspend"):
        queue = job["metadata"].get("labels", {}).get(names.QUEUE)
        what = f"the queue {queue!r} has not admitted the Job yet" if queue else "the Job is suspended by somebody else"
        return TaskObservation("running", waiting="WaitingForQuota", waiting_message=what)
    pod = newest(alive)
    if pod is None:
        held_up = _no_pod(events(job), is_any=bool(pods))
    else:
        held_up = stuck(pod, now) or waiting(pod, events(pod), now, settings)
    if held_up is None:
        return TaskObservation("running", progress=progress)
    if held_up.is_hopeless:
        return TaskObservation("failed", reason=held_up.reason, message=held_up.message, is_permanent=True)
    return TaskObservation("running", waiting=held_up.reason, waiting_message=held_up.message)


def _ending(alive: Iterable[Object], now: datetime) -> TaskObservation:
    """An attempt that is over but for its pods."""
    held_up = next(filter(None, (stuck(pod, now) for pod in alive)), None)
    if held_up is None:
        return TaskObservation("running")
    return TaskObservation("running", waiting=held_up.reason, waiting_message=held_up.message)


def _no_pod(events: Sequence[Object], *, is_any: bool) -> Waiting | None:
    """A Job whose pods are refused (quota, admission) says so in its events only."""
    refused = [event for event in events if event.get("reason") == "FailedCreate"]
    if not refused or is_any:
        return None
    return Waiting("CannotCreatePod", f"the cluster refuses the worker's pod: {refused[-1].get('message', '')}")


def _ended(job: Object, pod: Object | None) -> TaskObservation:
    state = (container_status(pod, names.WORKER_CONTAINER).get("state") or {}) if pod is not None else {}
    ended = state.get("terminated") or {}
    said = str(ended.get("message") or "")
    spoken = said if parse_termination(said) is not None else ""
    if holds(job, "Complete"):
        return TaskObservation("succeeded", 0, termination=spoken)
    failed = condition(job, "Failed") or {}
    if failed.get("reason") == "DeadlineExceeded":
        # No exit code and no last word, so that a worker which stopped in good order is not taken for a preempted one
        # and given the same time again for ever.
        return TaskObservation(
            "failed", reason="DeadlineExceeded", message="the attempt took longer than spec.stageTimeoutSeconds"
        )
    if pod is None:
        return TaskObservation(
            "failed", reason="PodLost", message="the worker's pod is gone, and with it its last word"
        )
    if was_disrupted(pod):
        why = (pod.get("status") or {}).get("reason") or "DisruptionTarget"
        return TaskObservation("failed", EXIT_PREEMPTED, reason=str(why), termination=spoken)
    code, reason, status = ended.get("exitCode"), str(ended.get("reason") or ""), pod.get("status") or {}
    if reason == "OOMKilled":
        return TaskObservation("failed", code, reason=reason, message=_out_of_memory(pod))
    if status.get("reason"):
        # Evicted for what it used, or refused by the node: the container's own end says only that it was killed.
        why = str(status["reason"])
        return TaskObservation("failed", code, reason=why, message=str(status.get("message") or ""), termination=spoken)
    return TaskObservation(
        "failed",
        code,
        reason="" if reason == "Error" else reason,
        termination=spoken,
        log_tail="" if spoken else said,
    )


def _out_of_memory(pod: Object) -> str:
    container: Object = next((c for c in pod["spec"]["containers"] if c["name"] == names.WORKER_CONTAINER), {})
    limit = ((container.get("resources") or {}).get("limits") or {}).get("memory")
    stage = pod["metadata"].get("labels", {}).get(names.STAGE)
    field = "spec.training.resources" if stage == "train" else "spec.workers.resources"
    held = f"its limit of {limit}" if limit else "what its node has"
    return f"the worker in pod {name_of(pod)} needed more memory than {held} (OOMKilled); give it more in {field}"
