"""Processes that start in a tenth of a second: forked from one that has imported everything (`python -m` this module).

A forked process is a real one of its own: another id, another session, its own environment, working folder and log. It
dies with the zygote, the zygote with whoever started it.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib
import json
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn, Self

from tandem_operator.platforms.local.processes import Child, Launch, spawn

ROOT: Final = Path(__file__).parents[2]
_START_SECONDS: Final = 120.0
_PR_SET_PDEATHSIG: Final = 1


@dataclass(frozen=True)
class Start:
    """What is to be started: the function `module:function`, called with the arguments; it returns the exit code."""

    target: str
    arguments: tuple[str, ...]
    environment: Mapping[str, str]
    folder: Path
    log: Path


class Forked:
    """A process that a zygote has forked."""

    def __init__(self, connection: socket.socket, pid: int) -> None:
        self._connection = connection
        self._lock = threading.Lock()
        self.pid = pid
        self.exit_code: int | None = None

    def wait(self, seconds: float | None = None) -> int | None:
        """Its exit code, minus the signal's number if one ended it; None when it still runs after `seconds`."""
        if not self._lock.acquire(timeout=-1 if seconds is None else seconds):
            return None  # somebody else waits for it, in vain so far
        try:
            if self.exit_code is None:
                self._connection.settimeout(seconds)
                try:
                    line = _read_line(self._connection)
                except (TimeoutError, BlockingIOError):
                    return None
                # Without a word the zygote has died, and the process with it.
                self.exit_code = json.loads(line)["exit"] if line else -signal.SIGKILL
                self._connection.close()
            return self.exit_code
        finally:
            self._lock.release()

    def send(self, number: signal.Signals) -> None:
        """A signal, if it still runs."""
        if self.wait(0) is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    def kill(self) -> None:
        """kill -9; returns when it is gone."""
        self.send(signal.SIGKILL)
        self.wait(30)


class Zygote:
    """`with Zygote("trainer", folder, modules) as zygote: process = zygote.fork(Start(...))`."""

    def __init__(self, name: str, folder: Path, modules: Sequence[str]) -> None:
        self._name = name
        self._folder = folder
        self._modules = modules
        self._address = f"\0tandem-{name}-{secrets.token_hex(8)}"
        self._child: Child | None = None

    def __enter__(self) -> Self:
        argv = (sys.executable, "-m", "tests.faults.zygote", self._address[1:], *self._modules)
        # What a pod sets for its Python must be set for the zygote's.
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "0", "PYTHONUNBUFFERED": "1"}
        log = self._folder / f"zygote-{self._name}.log"
        launch = Launch(self._name, argv, environment, ROOT, log, death_signal=signal.SIGKILL)
        self._child = spawn(launch, self._folder)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._child is not None:
            self._child.stop(grace_seconds=0)

    def fork(self, start: Start) -> Forked:
        """Start a process. Waits for the zygote if it is still importing."""
        start.folder.mkdir(parents=True, exist_ok=True)
        start.log.parent.mkdir(parents=True, exist_ok=True)
        connection = self._connect()
        request = {
            "target": start.target,
            "arguments": list(start.arguments),
            "environment": dict(start.environment),
            "folder": str(start.folder),
            "log": str(start.log),
        }
        connection.sendall(json.dumps(request).encode() + b"\n")
        return Forked(connection, json.loads(_read_line(connection))["pid"])

    def _connect(self) -> socket.socket:
        assert self._child is not None, "the zygote was not entered"
        end = time.monotonic() + _START_SECONDS
        while True:
            connection = socket.socket(socket.AF_UNIX)
            try:
                connection.connect(self._address)
            except ConnectionRefusedError:
                connection.close()
                assert self._child.exit_code is None, f"the zygote has ended: {self._child.tail()}"
                assert time.monotonic() < end, f"the zygote does not answer: {self._child.tail()}"
                time.sleep(0.05)
            else:
                return connection


def _read_line(connection: socket.socket) -> bytes:
    """One line, without what may follow."""
    line = b""
    while not line.endswith(b"\n"):
        part = connection.recv(1)
        if not part:
            return b""
        line += part
    return line


# What follows runs in the zygote.


def serve(address: str, modules: Sequence[str]) -> NoReturn:
    """Import, then fork whatever is asked for; for ever."""
    listener = socket.socket(socket.AF_UNIX)
    for module in modules:
        importlib.import_module(module)
    # What was made by now is shared with the children, and stays so.
    gc.collect()
    gc.freeze()
    listener.bind(f"\0{address}")
    listener.listen(256)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            if key.data is None:
                connection, _ = listener.accept()
                pid = _fork(json.loads(_read_line(connection)))
                selector.register(os.pidfd_open(pid), selectors.EVENT_READ, (connection, pid))
                _tell(connection, {"pid": pid})
            else:
                connection, pid = key.data
                selector.unregister(key.fileobj)
                os.close(key.fd)
                _, status = os.waitpid(pid, 0)
                _tell(connection, {"exit": os.waitstatus_to_exitcode(status)})
                connection.close()


def _tell(connection: socket.socket, message: dict[str, int]) -> None:
    with contextlib.suppress(OSError):  # whoever asked is gone
        connection.sendall(json.dumps(message).encode() + b"\n")


def _fork(request: dict[str, Any]) -> int:
    parent = os.getpid()
    pid = os.fork()
    if pid:
        return pid
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)
        os.setsid()
        os.closerange(3, 4096)
        _redirect(request["log"])
        os.environ.clear()
        os.environ.update(request["environment"])
        os.chdir(request["folder"])
        module, _, function = request["target"].partition(":")
        code = int(getattr(importlib.import_module(module), function)(request["arguments"]) or 0)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _redirect(log: str) -> None:
    nothing = os.open(os.devnull, os.O_RDONLY)
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for source, target in ((nothing, 0), (out, 1), (out, 2)):
        os.dup2(source, target)
    os.close(nothing)
    os.close(out)


if __name__ == "__main__":
    serve(sys.argv[1], sys.argv[2:])
