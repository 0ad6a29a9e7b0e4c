"""The folder of a run on one machine: who may use it, what lies where, and the resource in `status.yaml`."""

from __future__ import annotations

import contextlib
import errno
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
import yaml
from filelock import FileLock, Timeout

from tandem_api.errors import ConfigurationError, StorageRefusedError
from tandem_api.v1alpha1 import OptimizationRun
from tandem_api.v1alpha1.run import ManifestError, parse_run
from tandem_operator.actions import EmitEvent

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class Workdir:
    """The paths in a run's folder, and how its files are read and written."""

    def __init__(self, path: Path) -> None:
        self.path = path.expanduser().resolve()
        self.status = self.path / "status.yaml"
        self.events = self.path / "events.jsonl"
        self.logs = self.path / "logs"
        self.tasks = self.path / "tasks"
        self.s3 = self.path / "s3"
        self.result = self.path / "result"
        self._lock = FileLock(str(self.path / ".lock"))
        self._owner = self.path / ".lock.pid"
        self._head: tuple[OptimizationRun, str] | None = None

    def log(self, name: str) -> Path:
        """The log of the process of that name."""
        return self.logs / f"{name}.log"

    def lock(self) -> None:
        """Make the folder ours until `unlock` or our end. Raises ConfigurationError when it is somebody's."""
        with storing(self.path):
            self.path.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            with contextlib.suppress(OSError):
                owner = f" (process {self._owner.read_text().strip()})"
                raise ConfigurationError(
                    f"{self.path} is in use by another `tandem run`{owner}; wait for it or stop it, "
                    "or use another --workdir"
                ) from None
            raise ConfigurationError(f"{self.path} is in use by another `tandem run`; use another --workdir") from None
        write_atomically(self._owner, f"{os.getpid()}\n".encode())

    def unlock(self) -> None:
        """Give the folder back."""
        self._owner.unlink(missing_ok=True)
        self._lock.release()

    def owner(self) -> psutil.Process | None:
        """The process that holds the folder, as far as another one can tell."""
        try:
            since = self._owner.stat().st_mtime
            process = psutil.Process(int(self._owner.read_text()))
            # A younger one has only been given its number.
            is_it = process.create_time() <= since + 1 and process.status() != psutil.STATUS_ZOMBIE
        except (OSError, ValueError, psutil.Error):
            return None
        return process if is_it else None

    def version(self) -> tuple[int, int] | None:
        """Changes whenever `write_run` has stored something; reading that takes far longer. None: nothing is stored."""
        try:
            stored = self.status.stat()
        except OSError:
            return None
        return stored.st_ino, stored.st_mtime_ns

    def read_run(self) -> OptimizationRun | None:
        """The stored resource with its status; None when there is none yet. Raises ConfigurationError."""
        try:
            return parse_run(load_yaml(self.status.read_bytes()))
        except FileNotFoundError:
            return None
        except (yaml.YAMLError, ManifestError) as error:
            raise ConfigurationError(
                f"{self.status} is not an OptimizationRun of this version: {error}; use another --workdir"
            ) from error

    def write_run(self, run: OptimizationRun) -> None:
        """Store the resource, whole and durable."""
        body = _dump({"status": run.status.to_json()})
        write_atomically(self.status, (self._head_of(run) + body).encode())

    def _head_of(self, run: OptimizationRun) -> str:
        """Everything but the status as YAML; it hardly ever changes, so it is not rendered anew for every write."""
        if self._head is None or (self._head[0].metadata, self._head[0].spec) != (run.metadata, run.spec):
            document = run.to_json()
            del document["status"]
            self._head = (run, _dump(document))
        return self._head[1]

    def add_event(self, event: EmitEvent) -> None:
        """Append to `events.jsonl`."""
        line = {"time": f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}", "type": event.type}
        line |= {"reason": event.reason, "message": event.message}
        with storing(self.events), self.events.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")


def write_atomically(path: Path, data: bytes, mode: int | None = None) -> None:
    """Write a file so that it is there whole, and stays so after a power cut, or is as it was before. `mode` sets its
    rights before anything is in it.

    Raises StorageRefusedError when the disk is full.
    """
    staging = path.with_name(f".{path.name}.tmp")
    with storing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        with staging.open("wb") as file:
            if mode is not None:
                os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        staging.replace(path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


@contextlib.contextmanager
def storing(path: Path) -> Iterator[None]:
    """Turns what a file system says into our errors, for writing at `path`."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageRefusedError(
                f"{path} cannot be written: no space left on the disk; free some and start the same command again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
            raise ConfigurationError(
                f"{path} cannot be written: {error.strerror}; use another --workdir or correct its rights"
            ) from error
        raise


def load_yaml(data: bytes) -> Any:
    """The document as plain values. Raises yaml.YAMLError."""
    return yaml.load(data, Loader=_LOADER)  # noqa: S506 (both loaders are safe ones)


def _dump(document: dict[str, Any]) -> str:
    return str(yaml.dump(document, Dumper=_DUMPER, sort_keys=False, allow_unicode=True, width=120))
