"""What a Job and its pods say about an attempt. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from typing import Any

from tandem_api.contract import Progress, parse_termination
from tandem_api.errors import EXIT_PREEMPTED
from tandem_operator.platforms.kubernetes import jobsets, names
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
    time_of,
    waiting,
    was_disrupted,
)
from tandem_operator.settings import OperatorSettings
from tandem_operator.snapshot import TaskObservation

Object = dict[str, Any]

#: How a worker ends that was asked to, in good order or by force (128 + SIGKILL).
_STOPPED = (EXIT_PREEMPTED, 137)
#: A JobSet's Job is there at once, if its controller works.
_NO_JOB_SECONDS = 60
EventsOf = Callable[[Object], Sequence[Object]]


def task_of(thing: Object) -> str:
    """The name of the task that a worker's object belongs to."""
    return str((thing["metadata"].get("labels") or {}).get(names.TASK, ""))


def is_over(job: Object) -> bool:
    """Whether the Job has ended, for better or worse."""
    return holds(job, "Complete") or holds(job, "Failed")


def ran_out_of_time(job: Object) -> bool:
    """Whether the Job was ended because its time was over."""
    return (condition(job, "Failed") or {}).get("reason") == "DeadlineExceeded"


def current(pods: Iterable[Object]) -> list[Object]:
    """The newest pod of each of the task's machines, the first machine's first."""
    pods = list(pods)
    of_nodes = (newest(pod for pod in pods if _node(pod) == node) for node in sorted(set(map(_node, pods))))
    return [pod for pod in of_nodes if pod is not None]


def lacks_pods(job: Object | None, pods: Iterable[Object]) -> bool:
    """Whether these may not be all pods of an attempt, or not as they are by now, and it would make a difference: they
    have the attempt's last word, and where there is no Job they alone tell that it has not ended."""
    pods = list(pods)
    alive = [pod for pod in pods if not has_ended(pod)]
    if job is None or is_going(job):
        return not alive
    status = job.get("status") or {}
    ended = int(status.get("succeeded") or 0) + int(status.get("failed") or 0)
    return is_over(job) and (bool(alive) or len(pods) < max(ended, 1))


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
        return _ended(job, _first(pods) if holds(job, "Complete") else _speaker(pods))
    if (job.get("spec") or {}).get("suspend"):
        queue = job["metadata"].get("labels", {}).get(names.QUEUE)
        what = f"the queue {queue!r} has not admitted the Job yet" if queue else "the Job is suspended by somebody else"
        return TaskObservation("running", waiting="WaitingForQuota", waiting_message=what)
    if alive:
        reasons = (stuck(pod, now) or waiting(pod, events(pod), now, settings) for pod in current(alive))
        held_up = next(filter(None, reasons), None)
    elif jobsets.is_jobset(job):
        held_up = _no_job(job, now)
    else:
        held_up = _no_pod(events(job), is_any=bool(pods))
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


def _no_job(jobset: Object, now: datetime) -> Waiting | None:
    """A JobSet that nothing becomes of says nothing: its controller does not work, or is not there."""
    made = time_of(jobset["metadata"].get("creationTimestamp"))
    if made is None or (now - made).total_seconds() <= _NO_JOB_SECONDS:
        return None
    return Waiting(
        "NoJob",
        f"the JobSet controller has made no Job for the JobSet {name_of(jobset)!r}; see whether it works: "
        "kubectl get pods --all-namespaces | grep jobset-controller",
    )


def _first(pods: Sequence[Object]) -> Object | None:
    """The pod of the first machine: it alone has the result."""
    return newest(pod for pod in pods if _node(pod) == 0)


def _speaker(pods: Sequence[Object]) -> Object | None:
    """The pod that says why an attempt failed. Of several machines the first one's, but where that was only stopped, or
    lost the others, because one of them was taken away or failed by itself: then that one's."""
    latest = current(pods)
    if len(latest) < 2:
        return next(iter(latest), None)
    first, others = latest[0], latest[1:]
    taken = [pod for pod in latest if was_disrupted(pod)]
    failed = [pod for pod in others if _failed_by_itself(pod)] if not _failed_by_itself(first) else []
    return next(iter([*taken, *failed]), first)


def _node(pod: Object) -> int:
    """The number of a pod among those of its Job; 0 where there is one pod at a time."""
    return int((pod["metadata"].get("annotations") or {}).get(jobsets.COMPLETION_INDEX, 0))


def _failed_by_itself(pod: Object) -> bool:
    ended = _ended_with(pod)
    return ended.get("reason") == "OOMKilled" or ended.get("exitCode") not in (None, 0, *_STOPPED)


def _ended_with(pod: Object) -> Object:
    """How the worker in a pod ended; empty before that."""
    state: Object = container_status(pod, names.WORKER_CONTAINER).get("state") or {}
    return state.get("terminated") or {}


def _ended(job: Object, pod: Object | None) -> TaskObservation:
    ended = _ended_with(pod) if pod is not None else {}
    said = str(ended.get("message") or "")
    spoken = said if parse_termination(said) is not None else ""
    if holds(job, "Complete"):
        return TaskObservation("succeeded", 0, termination=spoken)
    if ran_out_of_time(job):
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
