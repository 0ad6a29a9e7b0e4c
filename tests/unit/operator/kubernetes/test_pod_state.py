"""How long a pod has waited counts from when it began to wait; and pods that do not go are told about."""

from __future__ import annotations

from datetime import timedelta

import pytest
from tests.unit.operator.kubernetes.cluster import START, stamp
from tests.unit.operator.kubernetes.world import settings

from tandem_operator.platforms.kubernetes.pod_state import waiting
from tandem_operator.platforms.kubernetes.task_state import observe_task

NOW = START + timedelta(hours=3)
SET_UP = settings(startFailureSeconds=600)
MOUNT = [{"reason": "FailedMount", "message": 'configmap "x" not found'}]


def waiting_pod(*ended: float | None, reason: str = "ErrImagePull"):
    """A pod that began three hours ago; its containers wait since they ended so many seconds ago, or ever since."""
    statuses = [
        {
            "name": f"c{number}",
            "image": "i",
            "state": {"waiting": {"reason": reason, "message": "m"}},
            "lastState": {}
            if ago is None
            else {"terminated": {"exitCode": 1, "finishedAt": stamp(NOW - timedelta(seconds=ago))}},
        }
        for number, ago in enumerate(ended)
    ]
    status = {"phase": "Pending", "startTime": stamp(START), "containerStatuses": statuses}
    return {"metadata": {"name": "p", "namespace": "team"}, "spec": {}, "status": status}


@pytest.mark.parametrize("reason", ["ErrImagePull", "CreateContainerConfigError", "RunContainerError"])
@pytest.mark.parametrize(("ago", "is_hopeless"), [(10, False), (700, True), (None, True)])
def test_a_restarted_container_is_given_its_time_again(reason, ago, is_hopeless):
    assert waiting(waiting_pod(ago, reason=reason), [], NOW, SET_UP).is_hopeless is is_hopeless


@pytest.mark.parametrize(
    ("ended", "is_hopeless"), [((10,), False), ((700,), True), ((None,), True), ((None, 10), False)]
)
def test_so_are_volumes(ended, is_hopeless):
    held_up = waiting(waiting_pod(*ended, reason="ContainerCreating"), MOUNT, NOW, SET_UP)
    assert (held_up.reason, held_up.is_hopeless) == ("MissingConfigMap", is_hopeless)


JOB = {"metadata": {"name": "j", "namespace": "team"}, "spec": {}}
GOING = {**JOB, "metadata": {**JOB["metadata"], "deletionTimestamp": stamp(START)}}
FAILED = {**JOB, "status": {"conditions": [{"type": "Failed", "status": "True"}]}}


@pytest.mark.parametrize("job", [None, JOB, GOING, FAILED], ids=["gone", "active", "going", "over"])
@pytest.mark.parametrize(("seconds", "reason"), [(60, ""), (61, "PodStuck")])
def test_a_pod_that_does_not_go_is_told_about(job, seconds, reason):
    """deletionTimestamp is the moment at which the pod's grace ends."""
    pod = {
        "metadata": {"name": "p", "namespace": "team", "deletionTimestamp": stamp(START)},
        "spec": {"nodeName": "node-7"},
        "status": {"phase": "Running"},
    }
    nothing = {"events": lambda thing: [], "progress": None, "settings": SET_UP}
    task = observe_task(job, [pod], now=START + timedelta(seconds=seconds), **nothing)
    assert (task.state, task.waiting) == ("running", reason)
    if reason:
        assert "node-7" in task.waiting_message and "kubectl -n team delete pod p" in task.waiting_message
        later = observe_task(job, [pod], now=START + timedelta(hours=1), **nothing)
        assert later.waiting_message == task.waiting_message


def test_a_pod_that_has_been_replaced_holds_nothing_up():
    old = {
        "metadata": {"name": "a", "deletionTimestamp": stamp(START), "creationTimestamp": stamp(START)},
        "spec": {"nodeName": "node-7"},
        "status": {"phase": "Running"},
    }
    new = {"metadata": {"name": "b", "creationTimestamp": stamp(NOW)}, "spec": {}, "status": {"phase": "Running"}}
    nothing = {"events": lambda thing: [], "progress": None, "settings": SET_UP}
    assert observe_task(JOB, [old, new], now=NOW, **nothing).waiting == ""
