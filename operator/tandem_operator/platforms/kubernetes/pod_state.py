"""Why a pod does not work yet, in one word for programs and in a sentence that says what to do. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from tandem_operator.platforms.kubernetes import names
from tandem_operator.settings import OperatorSettings

Object = dict[str, Any]

_IMAGE = frozenset({"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "RegistryUnavailable"})
_CREATE = frozenset({"CreateContainerConfigError", "CreateContainerError", "RunContainerError"})
_MOUNT = frozenset({"FailedMount", "FailedAttachVolume"})
#: Reasons of a pod that was put away by the cluster, through no fault of its own.
_DISRUPTED = frozenset({"Preempting", "Shutdown", "NodeShutdown", "Terminated", "NodeLost", "NodeAffinity"})
#: So long after its grace a pod is gone, if its node works.
_STUCK_SECONDS = 60
_MISSING = re.compile(r'(?P<kind>secret|configmap)s? "(?P<name>[^"]+)" not found', re.IGNORECASE)


@dataclass(frozen=True)
class Waiting:
    """What a pod waits for."""

    reason: str
    message: str
    is_hopeless: bool = False
    """It has waited for something that will not come: it is to be given up."""


def time_of(text: str | None) -> datetime | None:
    """A Kubernetes timestamp."""
    return datetime.fromisoformat(text) if text else None


def condition(thing: Object, kind: str) -> Object | None:
    """The condition of that type."""
    found = (thing.get("status") or {}).get("conditions") or []
    return next((c for c in found if c.get("type") == kind), None)


def holds(thing: Object, kind: str) -> bool:
    """Whether the condition is there and True."""
    found = condition(thing, kind)
    return found is not None and found.get("status") == "True"


def name_of(thing: Object) -> str:
    return str(thing["metadata"]["name"])


def has_owner(thing: Object, kind: str) -> bool:
    """Whether it belongs to an object of that kind."""
    return any(owner.get("kind") == kind for owner in thing["metadata"].get("ownerReferences") or [])


def is_orphan(pod: Object) -> bool:
    """Whether somebody has deleted its Job and told its pods to stay (`--cascade=orphan`): nobody would end or collect
    it."""
    return names.is_managed(pod) and not pod["metadata"].get("ownerReferences") and not is_going(pod)


def is_going(thing: Object) -> bool:
    """Whether it has been deleted and is not gone yet."""
    return bool(thing["metadata"].get("deletionTimestamp"))


def has_ended(pod: Object) -> bool:
    """Whether the pod will never work again."""
    return (pod.get("status") or {}).get("phase") in ("Succeeded", "Failed")


def container_status(pod: Object, container: str) -> Object:
    """The status of one container; empty before there is one."""
    found = (pod.get("status") or {}).get("containerStatuses") or []
    return next((status for status in found if status.get("name") == container), {})


def newest(pods: Iterable[Object]) -> Object | None:
    """The pod that was created last."""
    return max(pods, key=lambda pod: (pod["metadata"].get("creationTimestamp") or "", name_of(pod)), default=None)


def was_disrupted(pod: Object) -> bool:
    """Whether the cluster took the pod away: preemption, eviction from its node, the node's end."""
    status = pod.get("status") or {}
    if holds(pod, "DisruptionTarget") or status.get("reason") in _DISRUPTED:
        return True
    # A pod that uses more than it may is evicted for it, and would be again.
    return status.get("reason") == "Evicted" and "exceed" not in str(status.get("message", ""))


def waiting(pod: Object, events: Sequence[Object], now: datetime, settings: OperatorSettings) -> Waiting | None:
    """What a pod waits for that has not begun to work; None: nothing in particular, or it works.

    `events` are the pod's own, oldest first; they tell of what its status keeps quiet about (volumes, image pulls).
    """
    scheduled = condition(pod, "PodScheduled")
    if scheduled is not None and scheduled.get("status") == "False":
        return _not_scheduled(scheduled, now, settings)
    overdue = []
    for status in (pod.get("status") or {}).get("containerStatuses") or []:
        state = (status.get("state") or {}).get("waiting")
        if state is None:
            continue
        began = _waits_since(pod, status)
        overdue.append(began is not None and (now - began).total_seconds() > settings.start_failure_seconds)
        reason, said = str(state.get("reason")), str(state.get("message", ""))
        found = _container(pod, status, reason, said, is_overdue=overdue[-1])
        if found is not None:
            return found
    return _from_events(pod, events, is_overdue=all(overdue)) if overdue else None


def stuck(pod: Object, now: datetime) -> Waiting | None:
    """A deleted pod that does not go, most often because its node does not answer; None: it is not such a pod."""
    # The time at which its grace ends, not the one at which it was deleted.
    due = time_of(pod["metadata"].get("deletionTimestamp"))
    if due is None or has_ended(pod) or (now - due).total_seconds() <= _STUCK_SECONDS:
        return None
    name, namespace = name_of(pod), pod["metadata"].get("namespace")
    node = (pod.get("spec") or {}).get("nodeName")
    fix = f"if the node is off for good: kubectl -n {namespace} delete pod {name} --force --grace-period=0"
    return Waiting(
        "PodStuck",
        f"pod {name} on node {node} should have ended by {due:%Y-%m-%d %H:%M:%SZ} and has not; see whether the node "
        f"works (kubectl get node {node}); {fix}",
    )


def starts_slowly(pod: Object, now: datetime) -> bool:
    """Whether the pod is on a node and has not begun to work for so long that its events should be read."""
    status = pod.get("status") or {}
    began = time_of(status.get("startTime"))
    return status.get("phase") == "Pending" and began is not None and (now - began).total_seconds() > 5


def _waits_since(pod: Object, status: Object) -> datetime | None:
    """Since when a waiting container has: since it ended, or since its pod came to a node."""
    ended = (status.get("lastState") or {}).get("terminated") or {}
    moments = map(time_of, ((pod.get("status") or {}).get("startTime"), ended.get("finishedAt")))
    return max((moment for moment in moments if moment is not None), default=None)


def _not_scheduled(scheduled: Object, now: datetime, settings: OperatorSettings) -> Waiting:
    said, since = str(scheduled.get("message", "")), time_of(scheduled.get("lastTransitionTime"))
    if scheduled.get("reason") == "SchedulingGated":
        return Waiting("WaitingForQuota", f"the pod is held back until its queue admits it: {said}")
    if since is not None and (now - since).total_seconds() > settings.unschedulable_seconds:
        fix = "add such a node, free one, or ask for less (resources, nodeSelector, tolerations)"
        return Waiting(
            "Unschedulable", f"no node takes the pod since {since:%Y-%m-%d %H:%M:%SZ}: {said} To go on: {fix}"
        )
    return Waiting("Scheduling", f"waiting for a node: {said}")


def _container(pod: Object, status: Object, reason: str, said: str, *, is_overdue: bool) -> Waiting | None:
    name, image = status.get("name"), status.get("image")
    if reason == "InvalidImageName":
        text = f"container {name}: {image!r} is not an image's name; correct it"
        return Waiting("InvalidImageName", text, is_hopeless=True)
    if reason in _IMAGE:
        # The kubelet's own words change with every try; these stay as they are.
        text = (
            f"container {name}: the image {image!r} cannot be pulled; check its name, the registry and the pull secrets"
        )
        return Waiting("ImagePullBackOff", f"{text} (kubectl describe pod {name_of(pod)})", is_hopeless=is_overdue)
    if reason in _CREATE:
        return Waiting(*_missing(pod, f"container {name}: {said}"), is_hopeless=is_overdue)
    return None


def _from_events(pod: Object, events: Sequence[Object], *, is_overdue: bool) -> Waiting | None:
    for event in reversed(events):
        if event.get("reason") in _MOUNT:
            return Waiting(*_missing(pod, str(event.get("message", "")), "MissingVolume"), is_hopeless=is_overdue)
        if event.get("reason") == "Pulling":
            return Waiting("PullingImage", str(event.get("message", "")))
    return None


def _missing(pod: Object, said: str, otherwise: str = "CannotCreatePod") -> tuple[str, str]:
    """(reason, message) for a complaint of the kubelet's, with what is missing where it says so."""
    namespace, match = pod["metadata"].get("namespace"), _MISSING.search(said)
    lowered = said.lower()
    if match is not None:
        kind = match["kind"].lower()
        thing = "secret generic" if kind == "secret" else "configmap"
        fix = f"create it: kubectl -n {namespace} create {thing} {match['name']} ..."
        reason = "MissingSecret" if kind == "secret" else "MissingConfigMap"
        return reason, f"the {kind} {match['name']!r} does not exist in the namespace {namespace!r}; {fix}"
    if "in secret" in lowered or "in configmap" in lowered:
        return ("MissingSecret" if "in secret" in lowered else "MissingConfigMap"), f"{said}; add the key"
    return otherwise, said
