"""What the serving Deployment, its pods and the servers themselves say about the model server. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tandem_api.errors import PERMANENT_EXIT_CODES
from tandem_operator.platforms.kubernetes import names
from tandem_operator.platforms.kubernetes.pod_state import (
    condition,
    container_status,
    has_ended,
    holds,
    is_going,
    name_of,
    time_of,
    waiting,
)
from tandem_operator.settings import OperatorSettings
from tandem_operator.snapshot import ServingObservation

#: Rules of a network take a moment to reach a new pod, and a busy server may answer late.
_SILENCE_SECONDS = 20

Object = dict[str, Any]
EventsOf = Callable[[Object], Sequence[Object]]


@dataclass(frozen=True)
class Answer:
    """What a pod answered when it was asked."""

    models: frozenset[str] = frozenset()
    """The names that vLLM serves."""
    refused: Mapping[str, str] = field(default_factory=dict)
    """Why its sidecar will never load an adapter, by the adapter's name."""
    reached: bool = False
    """Whether vLLM has said what it serves, now or a moment ago."""
    silent_seconds: float = 0.0
    """If not: for how long this operator has asked in vain."""


def pods_to_ask(deployment: Object | None, pods: Iterable[Object]) -> list[Object]:
    """The pods of the present template that are up: those whose own word counts."""
    return [pod for pod in _current(deployment, pods) if (pod.get("status") or {}).get("podIP")]


def observe_serving(
    deployment: Object | None,
    pods: Iterable[Object],
    answers: Mapping[str, Answer],
    *,
    url: str,
    startup_seconds: int,
    events: EventsOf,
    now: datetime,
    settings: OperatorSettings,
) -> ServingObservation | None:
    """The server as it is; None when there is none and none of its pods is left. `answers` are by pod name.

    Ready means: as many pods as are wanted are ready, and each of them has said that it serves the wanted names.
    """
    pods = [pod for pod in pods if not has_ended(pod)]
    wanted = (deployment or {}).get("spec", {}).get("replicas", 0) if deployment and not is_going(deployment) else 0
    notes = (deployment or {"metadata": {}})["metadata"].get("annotations") or {}
    name, restart = notes.get(names.SERVED_NAME, ""), int(notes.get(names.RESTARTS) or 0)
    # A Deployment of the release before this one has no list.
    served = frozenset((notes.get(names.SERVED_NAMES) or name).split(","))
    if not wanted:
        if not pods:
            return None
        left = ", ".join(sorted(map(name_of, pods)))
        return ServingObservation("", "starting", message=f"waiting for {left} to end", reason="Stopping")
    current = _current(deployment, pods)
    ready = [pod for pod in current if holds(pod, "Ready")]
    serving = [pod for pod in ready if served <= answers.get(name_of(pod), Answer()).models]
    if len(serving) >= wanted:
        return ServingObservation(name, "ready", url=url, restart=restart)

    def starting(reason: str, message: str) -> ServingObservation:
        return ServingObservation(name, "starting", message=message, reason=reason, restart=restart)

    def failed(message: str, *, permanent: bool = False) -> ServingObservation:
        return ServingObservation(name, "failed", message=message, permanent=permanent, restart=restart)

    for pod in current:
        refused = answers.get(name_of(pod), Answer()).refused
        for each in sorted(served & refused.keys()):
            return failed(f"the adapter {each!r} cannot be loaded: {refused[each]}", permanent=True)
        crashed = _crash(pod)
        if crashed is not None and crashed[1]:
            return failed(crashed[0], permanent=crashed[1] == "permanent")
        held_up = waiting(pod, events(pod), now, settings)
        if held_up is not None:
            if held_up.is_hopeless:
                return failed(held_up.message, permanent=True)
            return starting(held_up.reason, held_up.message)
        if crashed is not None:
            return starting("Restarting", crashed[0])
        if pod not in ready and _unchanged_seconds(pod, now) > startup_seconds:
            return failed(
                f"pod {name_of(pod)} was not ready within {startup_seconds} s (spec.serving.startupTimeoutSeconds)"
            )
    refusal = condition(deployment or {}, "ReplicaFailure")
    if refusal is not None and refusal.get("status") == "True" and not current:
        return starting("CannotCreatePod", f"the cluster refuses the server's pod: {refusal.get('message', '')}")
    silent = {name_of(pod): _silent_seconds(pod, answers, now) for pod in ready}
    for pod in ready:
        if silent[name_of(pod)] > startup_seconds:
            return failed(_unreachable(pod))
    for pod in ready:
        if silent[name_of(pod)] > _SILENCE_SECONDS:
            return starting("ServerUnreachable", _unreachable(pod))
    if len(ready) >= wanted:
        return starting("LoadingAdapter", f"{len(serving)} of {wanted} replicas serve {name!r}")
    return starting("", f"{len(ready)} of {wanted} replicas are ready; the model server is loading")


def _current(deployment: Object | None, pods: Iterable[Object]) -> list[Object]:
    """Pods of the present template that are to stay, in a fixed order."""
    if deployment is None:
        return []
    version = (deployment["metadata"].get("annotations") or {}).get(names.TEMPLATE)
    found = [
        pod
        for pod in pods
        if not is_going(pod)
        and not has_ended(pod)
        and (pod["metadata"].get("annotations") or {}).get(names.TEMPLATE) == version
    ]
    return sorted(found, key=name_of)


def _crash(pod: Object) -> tuple[str, str] | None:
    """(message, "permanent" | "repeated" | ""), if a container of a pod that is not ready has ended before."""
    for container in (names.VLLM_CONTAINER, names.ADAPTERS_CONTAINER):
        status = container_status(pod, container)
        state = status.get("state") or {}
        ended = state.get("terminated") or (status.get("lastState") or {}).get("terminated")
        if status.get("ready") or ended is None:
            continue
        code, reason = ended.get("exitCode"), ended.get("reason") or ""
        words = str(ended.get("message") or "").strip()
        why = f" ({reason})" if reason not in ("", "Error") else ""
        fix = "; give it more memory in spec.serving.resources" if reason == "OOMKilled" else ""
        tail = f"; the end of its log:\n{words}" if words else ""
        message = f"container {container} of pod {name_of(pod)} ended with exit code {code}{why}{fix}{tail}"
        if code in PERMANENT_EXIT_CODES:
            return message, "permanent"
        is_looping = (state.get("waiting") or {}).get("reason") == "CrashLoopBackOff"
        return message, "repeated" if is_looping else ""
    return None


def _silent_seconds(pod: Object, answers: Mapping[str, Answer], now: datetime) -> float:
    """For how long a ready pod has not answered: at most since it is ready, and since this operator asks it."""
    answer = answers.get(name_of(pod), Answer())
    return 0.0 if answer.reached else min(answer.silent_seconds, _unchanged_seconds(pod, now))


def _unreachable(pod: Object) -> str:
    where = f"{(pod.get('status') or {}).get('podIP')}:{names.VLLM_PORT}"
    return (
        f"pod {name_of(pod)} is ready, but the operator gets no answer from http://{where}/v1/models; check the "
        "NetworkPolicies of both namespaces (the run's lets in the operator's namespace by its label "
        "kubernetes.io/metadata.name) and whether a service mesh demands mTLS"
    )


def _unchanged_seconds(pod: Object, now: datetime) -> float:
    """For how long a pod that is on a node has been ready, or not ready, as it is now."""
    ready = condition(pod, "Ready") or {}
    moments = [ready.get("lastTransitionTime"), (pod.get("status") or {}).get("startTime")]
    latest = max((moment for moment in map(time_of, moments) if moment is not None), default=None)
    return (now - latest).total_seconds() if latest is not None else 0.0
