"""Statuses of pods that do not get to work, as a kubelet and a scheduler write them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.unit.operator.kubernetes.cluster import Object, labels_of, stamp
from tests.unit.operator.kubernetes.controllers import Controllers, status_of

from tandem_operator.platforms.kubernetes import names

Hold = Callable[[Object], Object | None]


def of(component: str, hold: Hold, stage: str = "") -> Hold:
    """Hold up only pods of this component, and stage."""

    def held(pod: Object) -> Object | None:
        labels = labels_of(pod)
        is_meant = labels[names.COMPONENT] == component and stage in ("", labels.get(names.STAGE))
        return hold(pod) if is_meant else None

    return held


def waits(*reasons: tuple[str, str]) -> Hold:
    """On a node, with containers that wait for one of these reasons in turn: (reason, message)."""
    seen: list[int] = []

    def held(pod: Object) -> Object:
        seen.append(1)
        reason, message = reasons[len(seen) % len(reasons)]
        state = {"waiting": {"reason": reason, "message": f"{message} (try {len(seen)})" if message else ""}}
        return {
            "phase": "Pending",
            "startTime": status_of(pod).get("startTime") or stamp(),
            "conditions": [{"type": "PodScheduled", "status": "True"}],
            "containerStatuses": [
                {"name": c["name"], "image": c["image"], "ready": False, "state": state}
                for c in pod["spec"]["containers"]
            ],
        }

    return held


def unscheduled(pod: Object, reason: str = "Unschedulable") -> Object:
    """No node takes it."""
    known = [c for c in status_of(pod).get("conditions", []) if c["type"] == "PodScheduled"]
    since = known[0]["lastTransitionTime"] if known else stamp()
    said = "0/3 nodes are available: 3 Insufficient nvidia.com/gpu."
    scheduled = {"type": "PodScheduled", "status": "False", "reason": reason, "message": said}
    return {"phase": "Pending", "conditions": [{**scheduled, "lastTransitionTime": since}]}


def crashing(code: int = 1, reason: str = "Error", words: str = "CUDA out of memory") -> Hold:
    """vLLM has ended, and the kubelet waits before it starts it again."""
    ended = {"terminated": {"exitCode": code, "reason": reason, "message": words}}

    def held(pod: Object) -> Object | None:
        if status_of(pod)["phase"] != "Running":
            return None
        state = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container"}}
        statuses = [{"name": "vllm", "image": "i", "ready": False, "state": state, "lastState": ended}]
        return {"containerStatuses": statuses}

    return held


def failed_mount(controllers: Controllers, message: str) -> Hold:
    """The kubelet waits for a volume, and says so in an event only."""
    told: set[str] = set()
    waiting = waits(("ContainerCreating", ""))

    def held(pod: Object) -> Object | None:
        if pod["metadata"]["uid"] not in told:
            told.add(pod["metadata"]["uid"])
            controllers.cluster.tell(pod, "Pod", "FailedMount", message)
        return waiting(pod)

    return held


def nothing(_: Any) -> None:
    """Nothing holds a pod up."""
