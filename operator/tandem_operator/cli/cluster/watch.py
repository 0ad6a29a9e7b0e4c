"""`tandem watch`: a run on a cluster while it goes on, from nothing but its resource."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime

from rich.console import Console

from tandem_api.conditions import (
    ACCEPTED,
    PATIENT,
    PROGRESSING,
    SERVING_READY,
    SUCCEEDED,
    SUSPENDED,
    WAITING,
    find,
    is_true,
)
from tandem_api.errors import TandemError
from tandem_api.v1alpha1 import OptimizationRun, Status
from tandem_api.v1alpha1.status import Condition
from tandem_operator.cli.cluster.access import Access
from tandem_operator.cli.cluster.client import Cluster
from tandem_operator.cli.cluster.feed import Feed, Gone, Lost, Restored
from tandem_operator.cli.cluster.resource import has_ended, read
from tandem_operator.cli.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED
from tandem_operator.cli.glance import from_resource
from tandem_operator.cli.invocation import program
from tandem_operator.cli.live import LiveDisplay, PlainDisplay
from tandem_operator.cli.tables import results
from tandem_operator.cli.terminal import console

#: Seconds between two looks of the display at the clock.
_TICK_SECONDS = 0.25
#: An operator takes a new run up within seconds.
_OPERATOR_SECONDS = 30.0
_NO_OPERATOR = (
    "nobody has taken up the run yet: is the operator running? kubectl get pods -A -l app.kubernetes.io/name=tandem"
)


def watch_run(cluster: Cluster, namespace: str, name: str, access: Access) -> int:
    """Show the run until it ends. Returns the exit code. Raises TandemError when it is deleted before, or when the
    cluster is out of reach for long; the run itself goes on whatever happens here."""
    out = console()
    run = read(cluster.get(namespace, name))
    if not has_ended(run):
        display = LiveDisplay(out) if out.is_terminal else PlainDisplay(out)
        again = f"{name}{access.at(namespace).arguments}"
        try:
            with Feed(cluster, namespace, name) as feed, display:
                run = _follow(feed, display, run, again)
        except KeyboardInterrupt:
            out.print(
                f"stopped watching; the run goes on\n"
                f"to watch it again: {program()} watch {again}\nto end it: {program()} cancel {again}",
                markup=False,
                soft_wrap=True,
            )
            return EXIT_INTERRUPTED
    return _show_end(out, run)


def _follow(
    feed: Feed, display: PlainDisplay, run: OptimizationRun, again: str, clock: Callable[[], float] = time.monotonic
) -> OptimizationRun:
    """Until the run has ended: the run at its end. `again`: its name and where it is, for other commands."""
    display.begin(run.status)
    for line in waits((), run.status.conditions, again):
        display.say(line)
    began, reminded = clock(), False
    while not has_ended(run):
        display.update(run, from_resource(run, datetime.now(UTC)))
        if not run.status.conditions and not reminded and clock() - began > _OPERATOR_SECONDS:
            reminded = True
            display.say(_NO_OPERATOR)
        match feed.next(_TICK_SECONDS):
            case None:
                pass
            case Gone():
                raise TandemError(f"the run {run.metadata.name!r} was deleted while it was watched")
            case Lost(error):
                display.say(f"warning: connection lost, trying again: {error}")
            case Restored():
                display.say("connected again")
            case resource:
                before, run = run, read(resource)
                if run.metadata.uid != before.metadata.uid:
                    raise TandemError(f"the run {run.metadata.name!r} was deleted, and another of its name was made")
                for line in obstacles(before.status, run.status, again):
                    display.say(line)
    display.update(run, from_resource(run, datetime.now(UTC)))
    return run


def obstacles(old: Status, new: Status, again: str) -> list[str]:
    """What keeps a run from going on, in a line each, when it is new: what is an event on one machine. Pure."""
    lines = []
    before = {(step.index, stage.name): stage.failures for step in old.steps for stage in step.stages}
    for step in new.steps:
        for stage in step.stages:
            failed_again = stage.failures > before.get((step.index, stage.name), 0)
            if failed_again and stage.state != "Failed":
                why = stage.message or stage.reason or "no reason is known"
                lines.append(f"warning: step {step.index} ({step.kind}), {stage.name}: an attempt failed: {why}")
    return lines + waits(old.conditions, new.conditions, again)


def waits(old: tuple[Condition, ...], new: tuple[Condition, ...], again: str) -> list[str]:
    """What of that the conditions tell, when it is new. Pure."""
    lines = []
    for kind in (ACCEPTED, PROGRESSING, SERVING_READY):
        was, now = find(old, kind), find(new, kind)
        known = was is not None and now is not None and was.reason == now.reason
        if now is not None and not known and (now.reason in WAITING or (kind, now.reason) == (SERVING_READY, "Failed")):
            lines.append(f"{'' if now.reason in PATIENT else 'warning: '}{now.reason}: {now.message}")
    suspended = is_true(new, SUSPENDED)
    if suspended != is_true(old, SUSPENDED):
        lines.append(f"suspended; to go on: {program()} resume {again}" if suspended else "resumed")
    return lines


def _show_end(out: Console, run: OptimizationRun) -> int:
    out.print()
    out.print(results(run))
    if run.status.result is not None:
        out.print(f"result      {run.status.result.uri}", markup=False, soft_wrap=True)
    return EXIT_DONE if is_true(run.status.conditions, SUCCEEDED) else EXIT_FAILED
