"""Child processes that never outlive their run.

Every child leads a session of its own (a Ctrl-C on the terminal reaches the engine only), carries the run's folder in
its environment, and is sent a signal by the kernel when the engine dies. What even that misses (a grandchild whose
parent was killed) is found by its environment when the next engine starts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import psutil

from tandem_api.errors import ConfigurationError

#: The run's folder, in the environment of every child: how leftovers of a killed engine are found.
ENV_WORKDIR = "TANDEM_WORKDIR"
#: Which child it is and of which engine, in its environment: how its own children are found wherever they moved.
ENV_CHILD = "TANDEM_CHILD"
#: setproctitle (vLLM uses it) would otherwise write its title over the environment that /proc shows.
_KEEP_ENVIRONMENT = {"SPT_NOENV": "1"}
_PR_SET_PDEATHSIG = 1
#: How long the kernel may take to remove a killed process.
_KILL_SECONDS = 10.0
_LOOK_SECONDS = 0.01
#: An exception as Python prints it at the end of a trace, whatever a logger has put before it.
_EXCEPTION = re.compile(r"(?<!\S)(?:\w+\.)*\w*(?:Error|Exception): .{0,300}")
_LIBC = ctypes.CDLL(None, use_errno=True)


def never() -> bool:
    """Nobody is in a hurry."""
    return False


@dataclass(frozen=True)
class Launch:
    """How a child is started."""

    name: str
    """What it is, for its log's name and for people."""
    argv: tuple[str, ...]
    environment: Mapping[str, str]
    """All of it; the marks by which a child is found again are added."""
    cwd: Path
    log: Path
    death_signal: signal.Signals = signal.SIGTERM
    """What the kernel sends it when the engine dies."""


class Child:
    """A running or ended child process."""

    def __init__(self, launch: Launch, process: subprocess.Popen[bytes], mark: str, log_start: int) -> None:
        self.name = launch.name
        self.log = launch.log
        self.started = time.monotonic()
        self._process = process
        self._mark = mark
        self._log_start = log_start
        self._pidfd = _open_pidfd(process.pid)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; minus the signal's number if one ended it."""
        code = self._process.poll()
        if code is not None and self._pidfd is not None:
            os.close(self._pidfd)
            self._pidfd = None
        return code

    @property
    def pidfd(self) -> int | None:
        """Readable once the child has ended; None when its exit code has been read, or where there is no such thing."""
        return self._pidfd

    def terminate(self) -> None:
        """Ask it to end (SIGTERM)."""
        with contextlib.suppress(ProcessLookupError):
            self._process.terminate()

    def stop(self, grace_seconds: float, hurry: Callable[[], bool] = never) -> None:
        """Ask it to end, wait, then kill what is left of it and of everything that it started. Returns when they are
        gone; `hurry` ends the waiting. Without grace it is killed at once."""
        if grace_seconds > 0:
            self.terminate()
        self.wait_then_kill(grace_seconds, hurry)

    def wait_then_kill(self, grace_seconds: float, hurry: Callable[[], bool] = never) -> None:
        """The second half of `stop`, for a child that has been asked already."""
        deadline = time.monotonic() + grace_seconds
        while self.exit_code is None and time.monotonic() < deadline and not hurry():
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(timeout=0.05)
        self.kill_tree()

    def kill_tree(self) -> None:
        """Kill it (SIGKILL) and everything that it started, and wait until they are gone."""
        _kill(self._is_ours)
        self._process.wait()
        _ = self.exit_code

    def tail(self, lines: int = 15) -> str:
        """The last lines of its log since this start, at most 4 KiB."""
        text = self._read_log(4096)
        # A progress bar rewrites its line after a carriage return: its last state is enough.
        shown = [line.rstrip("\r").rpartition("\r")[2].rstrip() for line in text.split("\n")]
        return "\n".join([line for line in shown if line][-lines:])

    def errors(self, count: int = 3) -> str:
        """The last different lines of its log since this start that name an exception: where a server of several
        processes dies, the cause stands far above the end."""
        found = dict.fromkeys(match.group().strip() for match in _EXCEPTION.finditer(self._read_log(256 * 1024)))
        return "\n".join(list(found)[-count:])

    def _read_log(self, size_bytes: int) -> str:
        """The end of its log, of this start only."""
        try:
            with self.log.open("rb") as file:
                file.seek(max(self._log_start, file.seek(0, os.SEEK_END) - size_bytes))
                return file.read().decode(errors="replace")
        except OSError:
            return ""

    def _is_ours(self, process: psutil.Process) -> bool:
        with contextlib.suppress(ProcessLookupError):
            if os.getsid(process.pid) == self.pid:
                return True
        return process.environ().get(ENV_CHILD) == self._mark


def spawn(launch: Launch, workdir: Path) -> Child:
    """Start a child. Call it from a thread that lives as long as the engine: the kernel takes the death of the
    *thread* that started a child for the death of its parent.

    Raises ConfigurationError when the program cannot be started.
    """
    launch.log.parent.mkdir(parents=True, exist_ok=True)
    mark = f"{launch.name}.{os.getpid()}.{time.monotonic_ns()}"
    marks = {ENV_WORKDIR: str(workdir), ENV_CHILD: mark, **_KEEP_ENVIRONMENT}
    with launch.log.open("ab") as log:
        log.write(f"=== {datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} starting: {' '.join(launch.argv)}\n".encode())
        log.flush()
        start = log.tell()
        try:
            process = subprocess.Popen(
                launch.argv,
                cwd=launch.cwd,
                env={**launch.environment, **marks},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                # Only calls that were resolved before the fork: other threads may have held any lock at that moment.
                preexec_fn=partial(_die_with_parent, os.getpid(), launch.death_signal),
            )
        except (OSError, subprocess.SubprocessError) as error:
            raise ConfigurationError(f"{launch.name} cannot be started: {launch.argv[0]}: {error}") from error
    return Child(launch, process, mark, start)


def wait_for_exit(children: Iterable[Child], timeout_seconds: float) -> None:
    """Return when one of `children` has ended whose exit code has not been read; at the latest after the timeout."""
    ends = [fd for fd in (child.pidfd for child in children) if fd is not None]
    if not ends:
        time.sleep(timeout_seconds)
        return
    poll = select.poll()
    for fd in ends:
        poll.register(fd, select.POLLIN)
    poll.poll(timeout_seconds * 1000)


def kill_leftovers(workdir: Path, grace_seconds: float = 10.0) -> int:
    """End every process that an earlier engine left behind in this folder; returns how many there were.

    Only the holder of the folder's lock may call it: whatever carries the folder's mark then is an orphan.
    """
    me = psutil.Process()
    spared = {me.pid, *(parent.pid for parent in me.parents())}

    def is_leftover(process: psutil.Process) -> bool:
        return process.pid not in spared and process.environ().get(ENV_WORKDIR) == str(workdir)

    found = _matching(is_leftover)
    for process in found:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    deadline = time.monotonic() + grace_seconds
    while _matching(is_leftover) and time.monotonic() < deadline:
        time.sleep(_LOOK_SECONDS)
    _kill(is_leftover)
    return len(found)


def _kill(belongs: Callable[[psutil.Process], bool]) -> None:
    """SIGKILL until none is left: a process may start another one while it is being killed.

    psutil's own waiting would collect children of ours, and their exit codes would be lost to `subprocess`.
    """
    deadline = time.monotonic() + _KILL_SECONDS
    while (found := _matching(belongs)) and time.monotonic() < deadline:
        for process in found:
            with contextlib.suppress(psutil.Error):
                process.kill()
        time.sleep(_LOOK_SECONDS)


def _matching(belongs: Callable[[psutil.Process], bool]) -> list[psutil.Process]:
    """The live processes for which `belongs`; those that vanish or that we may not look into are passed over."""
    found = []
    for pid in psutil.pids():
        try:
            # Not psutil.process_iter(): it remembers ended processes, and refuses to signal those that reuse their ids.
            process = psutil.Process(pid)
            if belongs(process) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


def _die_with_parent(parent: int, death_signal: int) -> None:
    """Runs in the child between fork and exec."""
    if sys.platform == "linux":
        _LIBC.prctl(_PR_SET_PDEATHSIG, death_signal)
    # The parent may have died before the line above: then nobody will tell us.
    if os.getppid() != parent:
        os._exit(1)


def _open_pidfd(pid: int) -> int | None:
    try:
        return os.pidfd_open(pid)
    except (AttributeError, OSError):
        return None
