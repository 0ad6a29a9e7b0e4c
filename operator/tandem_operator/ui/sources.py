"""Where a run is read from: a folder on this machine, or a cluster with its bucket. Nothing is ever written there."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from tandem_api.contract import StorageRef
from tandem_api.errors import ConfigurationError, StorageUnavailableError, TandemError
from tandem_api.layout import RunLayout
from tandem_api.store import S3Store
from tandem_api.v1alpha1 import OptimizationRun
from tandem_operator.cli.cluster.client import Cluster, Tail
from tandem_operator.cli.cluster.pods import Pod, parse_pod
from tandem_operator.cli.cluster.resource import read
from tandem_operator.platforms.kubernetes.names import SERVING, VLLM_CONTAINER, WORKER, WORKER_CONTAINER, selector
from tandem_operator.platforms.local.machine import LOOPBACK
from tandem_operator.platforms.local.storage import BUCKET, REGION, EmbeddedStorage, client
from tandem_operator.platforms.local.workdir import Workdir
from tandem_operator.ui.mirror import Mirror

#: So much of a log's end is shown.
MAX_LOG_BYTES, MAX_LOG_LINES = 256 * 1024, 1000
#: So much of a pod's log is fetched at most. The kubelet counts from the first of those lines on: with a limit that
#: long lines reach, the log's end would be missing.
MAX_FETCHED_BYTES = 16 * MAX_LOG_BYTES
#: So long a pod's node may say nothing; other pages wait meanwhile.
LOG_QUIET_SECONDS = 5.0
MAX_EVENTS = 500


@dataclass(frozen=True)
class Log:
    """A process's log."""

    name: str
    note: str
    """Its size, or how its pod is."""


@dataclass(frozen=True)
class Event:
    """Something that happened."""

    time: str
    type: str
    reason: str
    message: str


class Source(Protocol):
    """One run, wherever it is. Methods are called one at a time, and may take seconds."""

    where: str
    """For people."""

    def read(self) -> OptimizationRun:
        """The run as it is now. Raises TandemError."""

    def sync(self, run: OptimizationRun, mirror: Mirror) -> None:
        """Bring the mirror of the run's objects up to date. Raises TandemError that says what is missing; the mirror
        keeps what it has."""

    def logs(self) -> list[Log]:
        """The logs that there are. Raises TandemError."""

    def log(self, name: str) -> str | None:
        """The end of a log; None when there is none of that name. Raises TandemError."""

    def events(self) -> list[Event]:
        """The last events, oldest first; empty where they are kept elsewhere."""

    def report(self) -> bytes | None:
        """The report, where it is in the run's folder."""


class Folder:
    """A run on this machine.

    Its embedded S3 server is the run's own and lives as long as the run does. When it is not there, it is started once,
    under the folder's lock, for as long as it takes to copy what pages need.
    """

    def __init__(self, workdir: Workdir) -> None:
        self.where = str(workdir.path)
        self._workdir = workdir
        self._settled: int | None = None
        """When the status was last written, as of the last copy that was made without the run."""
        self._server: tuple[tuple[int, dict[str, str]], S3Store] | None = None

    def read(self) -> OptimizationRun:
        run = self._workdir.read_run()
        if run is None:
            raise ConfigurationError(f"{self._workdir.status} is gone")
        return run

    def sync(self, run: OptimizationRun, mirror: Mirror) -> None:
        storage = run.spec.storage
        if storage is not None:
            s3 = storage.s3
            mirror.sync(bucket(StorageRef(bucket=s3.bucket, endpoint=s3.endpoint, region=s3.region)))
            return
        if self._sync_running(mirror):
            self._settled = None
            return
        written = self._workdir.status.stat().st_mtime_ns
        if self._settled != written:
            self._sync_stopped(mirror)
            self._settled = written

    def _sync_running(self, mirror: Mirror) -> bool:
        """Ask the run's own server; whether it answers."""
        found = _server(self._workdir.s3)
        if found is None:
            return False
        port, credentials = found
        try:
            socket.create_connection((LOOPBACK, port), timeout=1).close()
            if self._server is None or self._server[0] != found:
                ref = StorageRef(bucket=BUCKET, endpoint=f"http://{LOOPBACK}:{port}", region=REGION)
                self._server = (found, client(ref, credentials))
            mirror.sync(self._server[1])
        except (OSError, TandemError):
            # Nobody, or somebody else by now.
            return False
        return True

    def _sync_stopped(self, mirror: Mirror) -> None:
        if not self._workdir.s3.is_dir():
            return
        try:
            self._workdir.lock()
        except ConfigurationError as error:
            raise StorageUnavailableError(
                "The run is just being started or ended: its S3 server does not answer, and no other may be started "
                "meanwhile"
            ) from error
        try:
            environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
            storage = EmbeddedStorage(self._workdir, environment, lambda _: None)
            try:
                storage.start()
                storage.wait_until_ready()
                mirror.sync(client(storage.ref, storage.credentials))
            finally:
                storage.stop()
        finally:
            self._workdir.unlock()

    def logs(self) -> list[Log]:
        return [Log(path.stem, f"{path.stat().st_size / 1024:,.0f} KiB") for path in self._log_files()]

    def log(self, name: str) -> str | None:
        # Only names that the folder lists: a name is never made part of a path.
        path = next((path for path in self._log_files() if path.stem == name), None)
        if path is None:
            return None
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - MAX_LOG_BYTES))
            lines = file.read().decode(errors="replace").splitlines()
        return "\n".join(lines[-MAX_LOG_LINES:])

    def events(self) -> list[Event]:
        with suppress(OSError):
            lines = self._workdir.events.read_bytes().splitlines()[-MAX_EVENTS:]
            return list(_events(lines))
        return []

    def report(self) -> bytes | None:
        with suppress(OSError):
            return (self._workdir.result / "report.html").read_bytes()
        return None

    def _log_files(self) -> list[Path]:
        with suppress(OSError):
            files = [path for path in self._workdir.logs.glob("*.log") if path.is_file() and not path.is_symlink()]
            return sorted(files, key=lambda path: (path.stat().st_mtime, path.name), reverse=True)
        return []


class InCluster:
    """A run on a cluster: its status from the API server, its objects with the user's own key to the bucket."""

    def __init__(self, cluster: Cluster, namespace: str, name: str, endpoint: str | None) -> None:
        """`endpoint`: where the bucket is from here, if that is another address than in the cluster."""
        self.where = f"{namespace}/{name} on {cluster.server}"
        self._cluster = cluster
        self._namespace = namespace
        self._name = name
        self._endpoint = endpoint

    def read(self) -> OptimizationRun:
        return read(self._cluster.get(self._namespace, self._name))

    def sync(self, run: OptimizationRun, mirror: Mirror) -> None:
        storage = run.spec.storage
        if storage is None:
            raise ConfigurationError("the run names no bucket (spec.storage.s3)")
        s3 = storage.s3
        endpoint = self._endpoint or s3.endpoint
        try:
            mirror.sync(bucket(StorageRef(bucket=s3.bucket, endpoint=endpoint, region=s3.region)))
        except TandemError as error:
            raise type(error)(
                f"{error}. The bucket is read from this machine, with the key in AWS_ACCESS_KEY_ID and "
                "AWS_SECRET_ACCESS_KEY (or ~/.aws); where its address is one of the cluster's, forward its port "
                "(kubectl port-forward) and give --endpoint URL"
            ) from error

    def logs(self) -> list[Log]:
        return [Log(pod.name, f"{pod.title.removeprefix(pod.name)} {pod.state}".strip()) for pod, _ in self._pods()]

    def log(self, name: str) -> str | None:
        for pod, container in self._pods():
            if pod.name == name:
                end = Tail(MAX_LOG_LINES, MAX_FETCHED_BYTES)
                lines = self._cluster.log(
                    self._namespace, pod.name, container, tail=end, quiet_seconds=LOG_QUIET_SECONDS
                )
                return "\n".join(lines)[-MAX_LOG_BYTES:]
        return None

    def events(self) -> list[Event]:
        return []

    def report(self) -> bytes | None:
        return None

    def _pods(self) -> list[tuple[Pod, str]]:
        metadata = self.read().metadata
        found = []
        for component, container in ((WORKER, WORKER_CONTAINER), (SERVING, VLLM_CONTAINER)):
            labels = selector(metadata.name, metadata.uid, component)
            pods = self._cluster.pods(self._namespace, labels)
            found += [(parse_pod(pod, container), container) for pod in pods]
        return sorted(found, key=lambda one: one[0].created, reverse=True)


def layout_of(run: OptimizationRun) -> RunLayout:
    """Where the run's objects lie."""
    prefix = run.spec.storage.s3.prefix if run.spec.storage is not None else ""
    return RunLayout(prefix, run.metadata.namespace, run.metadata.name, run.metadata.uid)


@lru_cache(maxsize=4)
def bucket(ref: StorageRef) -> S3Store:
    """A bucket with the key that this user has; one that cannot be had is given up at once: it is asked again soon."""
    return S3Store(ref.bucket, ref.endpoint, ref.region, attempts=1)


def _server(folder: Path) -> tuple[int, dict[str, str]] | None:
    """The port and the key of a folder's embedded server, if there has been one."""
    try:
        port = json.loads((folder / "ports.json").read_bytes())["s3"]
        keys = json.loads((folder / "identity.json").read_bytes())["identities"][0]["credentials"][0]
        return int(port), {"AWS_ACCESS_KEY_ID": keys["accessKey"], "AWS_SECRET_ACCESS_KEY": keys["secretKey"]}
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _events(lines: list[bytes]) -> Iterator[Event]:
    for line in lines:
        try:
            event: Any = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(event, dict):
            yield Event(*(str(event.get(name, "")) for name in ("time", "type", "reason", "message")))
