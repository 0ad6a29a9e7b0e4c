"""The model server a stage needs: asked for, waited for, started anew when it fails, within a budget."""

from __future__ import annotations

from dataclasses import dataclass

from tandem_api.v1alpha1 import Spec, Status
from tandem_api.v1alpha1.status import Artifact, ServingStatus
from tandem_operator.actions import Action, EmitEvent, EnsureServing, StopServing
from tandem_operator.decide.names import served_name
from tandem_operator.decide.plan import changed
from tandem_operator.decide.requests import adapter_mode
from tandem_operator.snapshot import Observed


@dataclass(frozen=True)
class ServerNeed:
    """Where the wanted server stands."""

    status: Status
    actions: tuple[Action, ...] = ()
    url: str | None = None
    """The server's base URL once it is ready."""
    failure: str | None = None
    """Why it is given up."""


def need_server(spec: Spec, status: Status, observed: Observed, adapter: Artifact | None) -> ServerNeed:
    """What it takes to have the model served with `adapter` (None: the base model)."""
    name = served_name(observed.name, adapter)
    serving = status.serving
    ensure = EnsureServing(name, adapter, adapter_mode(spec, adapter, observed.has_gpu), serving.restarts)
    if serving.name != name:
        wanted = ServingStatus(
            name=name, since=observed.now, load_seconds=serving.load_seconds, restarts=serving.restarts
        )
        return ServerNeed(changed(status, serving=wanted), (ensure,))
    seen = observed.serving
    if seen is not None and seen.name == name and seen.restart < serving.restarts:
        # Its failure is counted already; we died before the new one was started.
        return ServerNeed(status, (ensure,))
    if seen is None or seen.name != name:
        if serving.ready_since is not None:
            # It was there and is lost: the clock of this wait starts again, once.
            status = changed(status, serving=changed(serving, since=observed.now, ready_since=None))
        return ServerNeed(status, (ensure,))
    if seen.state == "ready":
        if serving.ready_since is None:
            waited = max(0, int((observed.now - (serving.since or observed.now)).total_seconds()))
            serving = changed(serving, ready_since=observed.now, load_seconds=serving.load_seconds + waited)
        return ServerNeed(changed(status, serving=serving), url=seen.url)
    if seen.state == "starting":
        return ServerNeed(status)
    failures = serving.failures + 1
    if seen.permanent or failures >= spec.attempts:
        failed = changed(status, serving=changed(serving, failures=failures))
        return ServerNeed(failed, failure=f"the model server for {name!r} failed: {seen.message}")
    restarts = serving.restarts + 1
    again = changed(serving, failures=failures, restarts=restarts, since=observed.now, ready_since=None)
    event = EmitEvent("Warning", "ServingFailed", f"the model server failed and is started anew: {seen.message}"[:1024])
    restart = EnsureServing(ensure.name, ensure.adapter, ensure.mode, restarts)
    return ServerNeed(changed(status, serving=again), (restart, event))


def release_server(status: Status, observed: Observed) -> tuple[Status, tuple[Action, ...], bool]:
    """(status, actions, whether nothing is served any more)."""
    if status.serving.name is not None:
        kept = status.serving
        status = changed(status, serving=ServingStatus(load_seconds=kept.load_seconds, restarts=kept.restarts))
    if observed.serving is None:
        return status, (), True
    return status, (StopServing(),), False
