"""What pods and nodes say about themselves. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from tandem_operator.cli.cluster.client import Resource

_PULL: Final = frozenset({"ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "InvalidImageName"})


def is_ready(thing: Resource) -> bool:
    """Whether a pod or node is ready."""
    conditions = (thing.get("status") or {}).get("conditions") or []
    return any(one.get("type") == "Ready" and one.get("status") == "True" for one in conditions)


def images_of(pods: list[Resource]) -> list[str]:
    """The images that they name."""
    return sorted({one["image"] for pod in pods for one in pod["spec"].get("containers") or []})


def why_not_ready(pod: Resource) -> str:
    """What its container waits for, or its phase."""
    status = pod.get("status") or {}
    for one in status.get("containerStatuses") or []:
        waits = (one.get("state") or {}).get("waiting")
        if waits:
            return f"{waits.get('reason')}: {waits.get('message') or 'no more is known'}"
    return f"{pod['metadata']['name']} is {status.get('phase')}"


def _statuses(pod: Resource) -> list[Resource]:
    status = pod.get("status") or {}
    return [*(status.get("initContainerStatuses") or []), *(status.get("containerStatuses") or [])]


def not_pulled(pod: Resource) -> Iterator[tuple[str, str, str]]:
    """(image, reason, message) of each that its node could not pull."""
    for one in _statuses(pod):
        waits = (one.get("state") or {}).get("waiting") or {}
        if waits.get("reason") in _PULL:
            yield str(one.get("image")), waits["reason"], str(waits.get("message") or f"pod {pod['metadata']['name']}")


def pulled(pod: Resource) -> Iterator[str]:
    """The images that its node has."""
    for one in _statuses(pod):
        if one.get("imageID"):
            yield str(one.get("image"))
