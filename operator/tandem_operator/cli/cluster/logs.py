"""`tandem logs`: what a run's workers or its model server print, across the pods of its stages."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import typer

from tandem_api.errors import ConfigurationError, TandemError
from tandem_api.v1alpha1 import OptimizationRun
from tandem_operator.cli.cluster.access import Access, connect
from tandem_operator.cli.cluster.client import Cluster
from tandem_operator.cli.cluster.failures import NoLogError, NoSuchObjectError, UnreachableError
from tandem_operator.cli.cluster.patience import Patience
from tandem_operator.cli.cluster.pods import Choice, Pod, chosen, expects_more, parse_pod
from tandem_operator.cli.cluster.resource import read
from tandem_operator.cli.errors import EXIT_DONE, EXIT_INTERRUPTED
from tandem_operator.cli.invocation import program
from tandem_operator.platforms.kubernetes.names import SERVING, VLLM_CONTAINER, WORKER, WORKER_CONTAINER, selector

#: Seconds between two looks for what is not there yet.
_POLL_SECONDS = 2.0
#: A container's end is in its pod's status a moment after the end of its log.
_SETTLE_SECONDS = 0.5
#: A read that fails before this, without a line, has not reached the container.
_CONNECTED_SECONDS = 60.0
#: A clock here and one on a node may differ by this without a line being lost after a reconnect.
_SKEW_SECONDS = 300

Stamp = tuple[str, str]
"""A time that sorts: seconds as text, and nanoseconds with nine digits."""


@dataclass(frozen=True)
class Wanted:
    """What the user wants to read."""

    choice: Choice
    serving: bool = False
    """The model server instead of the workers."""
    previous: bool = False
    """The container's life before its last restart."""

    @property
    def container(self) -> str:
        """The name of the container."""
        return VLLM_CONTAINER if self.serving else WORKER_CONTAINER


def show_logs(name: str, access: Access, wanted: Wanted, *, follow: bool) -> int:
    """Print the log of the newest pod that is wanted; with `follow` go on until no other can come. The log goes to the
    standard output, all else to the standard error. Returns the exit code."""
    if wanted.serving and not wanted.choice.is_any:
        raise ConfigurationError(
            f"--serving shows the model server, which belongs to no stage; drop {wanted.choice.options}"
        )
    if wanted.previous and follow:
        raise ConfigurationError("--previous shows a container that has ended; drop --follow")
    cluster = connect(access.kubeconfig, access.context)
    namespace = access.namespace or cluster.namespace
    reader = Reader(cluster, namespace, wanted)
    run = read(cluster.get(namespace, name))
    try:
        if follow:
            _follow(reader, run)
        else:
            _print_newest(reader, run)
    except KeyboardInterrupt:
        typer.echo("stopped reading; the run goes on", err=True)
        return EXIT_INTERRUPTED
    return EXIT_DONE


class Reader:
    """Prints logs of one run's pods."""

    def __init__(self, cluster: Cluster, namespace: str, wanted: Wanted) -> None:
        self.cluster = cluster
        self.namespace = namespace
        self.wanted = wanted

    def pods(self, run: OptimizationRun) -> list[Pod]:
        """All pods of the run that are of the wanted kind, the oldest first."""
        kind = SERVING if self.wanted.serving else WORKER
        labels = selector(run.metadata.name, run.metadata.uid, kind)
        found = self.cluster.pods(self.namespace, labels)
        return chosen([parse_pod(pod, self.wanted.container) for pod in found], Choice())

    def look(self, pod: Pod) -> Pod | None:
        """The pod as it is now; None: it is gone."""
        found = self.cluster.pod(self.namespace, pod.name)
        if found is None or found["metadata"].get("uid") != pod.uid:
            return None
        return parse_pod(found, self.wanted.container)

    def print_log(self, pod: Pod, *, follow: bool = False, after: Stamp | None = None) -> Stamp | None:
        """Print what comes after that moment, or all. Returns the latest moment of all lines: those of the standard
        output and of the standard error need not come in the order of their moments.

        An interrupted read raises `Interrupted` with how far it came.
        """
        last = after
        lines = self.cluster.log(
            self.namespace,
            pod.name,
            self.wanted.container,
            follow=follow,
            previous=self.wanted.previous,
            since_seconds=_seconds_since(after) if after is not None else None,
        )
        try:
            for line in lines:
                stamp, text = split_stamp(line)
                if stamp is not None:
                    if after is not None and stamp <= after:
                        continue
                    last = stamp if last is None else max(last, stamp)
                typer.echo(text)
        except UnreachableError as error:
            raise InterruptedRead(last, error) from error
        return last


class InterruptedRead(Exception):  # noqa: N818 (the connection failed, the log did not)
    """The connection was lost in the middle of a log."""

    def __init__(self, last: Stamp | None, cause: UnreachableError) -> None:
        super().__init__(str(cause))
        self.last = last
        self.cause = cause


def split_stamp(line: str) -> tuple[Stamp | None, str]:
    """A log line as the kubelet gives it: its moment and its text; a line without one as it is."""
    stamp, space, text = line.partition(" ")
    if not space or len(stamp) < 20 or stamp[10] != "T":
        return None, line
    fraction = stamp[20:] if stamp[19] == "." else ""
    digits = fraction[: len(fraction) - len(fraction.lstrip("0123456789"))]
    return (stamp[:19], digits.ljust(9, "0")), text


def _seconds_since(stamp: Stamp) -> int:
    moment = datetime.fromisoformat(stamp[0]).replace(tzinfo=UTC)
    return max(1, math.ceil((datetime.now(UTC) - moment).total_seconds())) + _SKEW_SECONDS


def _print_newest(reader: Reader, run: OptimizationRun) -> None:
    pods = reader.pods(run)
    fitting = chosen(pods, reader.wanted.choice)
    if not fitting:
        raise ConfigurationError(_nothing(run, reader.wanted, pods))
    pod = fitting[-1]
    if pod.state == "waiting" and not reader.wanted.previous:
        if pod.has_run:
            raise TandemError(f"{pod.title} waits: {pod.why}; --previous shows how it ended, -f waits for its start")
        raise TandemError(f"{pod.title} has no log yet: {pod.why}; -f waits for it")
    others = f"; {len(fitting) - 1} others are there" if reader.wanted.serving and len(fitting) > 1 else ""
    typer.echo(f"==> {pod.title}{others}", err=True)
    try:
        reader.print_log(pod)
    except InterruptedRead as error:
        raise error.cause from error


def _nothing(run: OptimizationRun, wanted: Wanted, pods: list[Pod]) -> str:
    name = run.metadata.name
    if wanted.serving:
        return f"{name} has no model server now (no stage needs one, or it is starting); -f waits for it"
    if pods:
        there = "; ".join(str(pod.attempt) for pod in pods[-8:])
        return f"no worker of {name} fits {wanted.choice.options}; there are: {there}"
    return (
        f"{name} has no workers now; -f waits for the next. Those of stages that are over are removed after a while: "
        f"{program()} status shows what they came to"
    )


def _follow(
    reader: Reader,
    run: OptimizationRun,
    sleep: Callable[[float], None] = time.sleep,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """The newest pod, and each that comes after it, until no more can come."""
    told, done, patience = "", set[str](), Patience(clock)
    name = run.metadata.name
    begun = False
    while True:
        try:
            # First the run, then its pods: a run that had ended by then can have no newer ones.
            run = read(reader.cluster.get(reader.namespace, name)) if begun else run
            fitting = [pod for pod in chosen(reader.pods(run), reader.wanted.choice) if pod.uid not in done]
            patience.restored()
        except UnreachableError as error:
            sleep(patience.pause_after(error))
            continue
        if not begun:
            done |= {pod.uid for pod in fitting[:-1]}
            fitting = fitting[-1:]
        begun = True
        for pod in fitting:
            _follow_pod(reader, pod, sleep, clock)
            done.add(pod.uid)
        if fitting:
            continue
        if not expects_more(run, reader.wanted.choice):
            return
        waits = "waiting for the model server" if reader.wanted.serving else "waiting for the next worker"
        if told != waits:
            typer.echo(f"==> {waits}", err=True)
            told = waits
        sleep(_POLL_SECONDS)


def _follow_pod(reader: Reader, pod: Pod, sleep: Callable[[float], None], clock: Callable[[], float]) -> None:
    """One pod to its end, over lost connections and restarts of its container."""
    typer.echo(f"==> {pod.title}", err=True)
    last: Stamp | None = None
    patience, told = Patience(clock), ""
    while True:
        try:
            now = reader.look(pod)
        except UnreachableError as error:
            sleep(patience.pause_after(error))
            continue
        if now is None:
            return
        if now.state == "waiting":
            if now.why != told:
                typer.echo(f"==> {pod.name} waits: {now.why}", err=True)
                told = now.why
            sleep(_POLL_SECONDS)
            continue
        began = clock()
        try:
            last = reader.print_log(pod, follow=True, after=last)
            patience.restored()
        except InterruptedRead as error:
            # It did read, and then the connection broke, or the container was quiet for as long as one is read.
            if error.last != last or clock() - began > _CONNECTED_SECONDS:
                patience.restored()
            last = error.last
            sleep(patience.pause_after(error.cause))
            continue
        except (NoLogError, NoSuchObjectError) as error:
            if now.state == "terminated":
                typer.echo(f"==> {error}", err=True)
        # It had ended before we read: nothing can follow what we have.
        if now.state == "terminated":
            return
        sleep(_SETTLE_SECONDS)
