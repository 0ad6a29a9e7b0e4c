"""Stage attempts as child processes: started once, watched, stopped, and remembered after the engine's own death.

An attempt that has ended is known by its exit record (`exit.json`), written when the child is collected. One without
a record (the engine died first, or stopped the child itself in order to end) is simply not there: the engine starts
the same attempt anew, and the worker goes on from its ledger or repeats the result that it has.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tandem_api.contract import ENV_PROGRESS, ENV_REQUEST, ENV_TERMINATION, Progress, StageRequest
from tandem_operator.platforms.local.machine import oom_kills
from tandem_operator.platforms.local.processes import Child, Launch, never, spawn
from tandem_operator.platforms.local.workdir import Workdir, storing, write_atomically
from tandem_operator.snapshot import TaskObservation

#: How long a worker may take to checkpoint and end after SIGTERM, before it is killed.
GRACE_SECONDS = 30.0
_EXIT = "exit.json"
_TERMINATION = "termination.json"
_PROGRESS = "progress.json"


@dataclass
class _Running:
    """An attempt whose process is alive, as far as we know."""

    child: Child
    folder: Path
    uid: str
    deadline: float
    """Monotonic time at which the attempt has taken too long."""
    oom_kills: int
    """The kernel's count when it was started."""
    kill_at: float | None = None
    """Monotonic time at which its grace is over; None while nobody has asked it to stop."""
    timed_out: bool = False
    progress: tuple[int, Progress | None] = (0, None)
    """The progress file's modification time (ns) and its content."""


class Tasks:
    """All attempts of one run."""

    def __init__(self, workdir: Workdir, argv: tuple[str, ...]) -> None:
        self._workdir = workdir
        self._argv = argv
        self._running: dict[str, _Running] = {}
        self._ended: dict[str, TaskObservation] = {}

    @property
    def children(self) -> tuple[Child, ...]:
        """The processes that run."""
        return tuple(task.child for task in self._running.values())

    def load(self, uid: str) -> None:
        """Remember the attempts of the run `uid` that ended before we began, and forget those of any other run."""
        for folder in sorted(self._workdir.tasks.glob("*/")):
            record = _read_record(folder / _EXIT)
            if record is not None and record.get("uid") == uid:
                self._ended[folder.name] = _ended(record, _read(folder / _TERMINATION))
            elif record is not None:
                shutil.rmtree(folder)

    def start(self, name: str, request: StageRequest, environment: Mapping[str, str]) -> None:
        """Start an attempt, unless it runs or has ended."""
        if name in self._running or name in self._ended:
            return
        folder = self._workdir.tasks / name
        files = {
            ENV_REQUEST: folder / "request.json",
            ENV_TERMINATION: folder / _TERMINATION,
            ENV_PROGRESS: folder / _PROGRESS,
        }
        with storing(folder):
            folder.mkdir(parents=True, exist_ok=True)
            # What a start before a crash of ours left behind says nothing about this one.
            for leftover in (_TERMINATION, _PROGRESS):
                (folder / leftover).unlink(missing_ok=True)
        write_atomically(files[ENV_REQUEST], request.model_dump_json(by_alias=True, exclude_none=True).encode())
        variables = {key: str(path) for key, path in files.items()}
        # Sets of names, in a program or in a library, are walked in the same order by every attempt.
        variables["PYTHONHASHSEED"] = "0"
        log = self._workdir.log(name)
        launch = Launch(name, self._argv, {**environment, **variables}, folder, log)
        kills = oom_kills()
        child = spawn(launch, self._workdir.path)
        deadline = time.monotonic() + request.spec.stage_timeout_seconds
        self._running[name] = _Running(child, folder, request.uid, deadline, kills)

    def stop(self, name: str) -> None:
        """Ask a running attempt to checkpoint and end; after its grace `check` kills it."""
        task = self._running.get(name)
        if task is not None and task.kill_at is None:
            task.kill_at = time.monotonic() + GRACE_SECONDS
            task.child.terminate()

    def check(self) -> None:
        """Collect what has ended, stop what has taken too long, kill what does not stop."""
        now = time.monotonic()
        for name, task in list(self._running.items()):
            if task.child.exit_code is not None:
                self._collect(name, task)
            elif task.kill_at is not None and now >= task.kill_at:
                task.child.kill_tree()
                self._collect(name, task)
            elif now >= task.deadline and not task.timed_out:
                task.timed_out = True
                self.stop(name)

    def observe(self) -> dict[str, TaskObservation]:
        """Every attempt that runs or has ended."""
        self.check()
        running = {name: TaskObservation("running", progress=_progress(task)) for name, task in self._running.items()}
        return {**self._ended, **running}

    def close(self, hurry: Callable[[], bool] = never) -> None:
        """End all attempts because the engine ends: the same attempts go on when it starts again."""
        for name in self._running:
            self.stop(name)
        for task in self._running.values():
            task.child.wait_then_kill((task.kill_at or 0.0) - time.monotonic(), hurry)
            if task.child.exit_code == 0:
                self._write_record(task, 0, "")
        self._running.clear()

    def _collect(self, name: str, task: _Running) -> None:
        # Whatever it started and left behind.
        task.child.kill_tree()
        code = task.child.exit_code
        assert code is not None
        reason = ""
        if task.timed_out and code != 0:
            reason = "DeadlineExceeded"
        elif code == -signal.SIGKILL and task.kill_at is not None:
            reason = "KilledAfterGrace"
        elif code == -signal.SIGKILL:
            reason = "OOMKilled" if oom_kills() > task.oom_kills else "Killed"
        record = self._write_record(task, code, reason)
        del self._running[name]
        self._ended[name] = _ended(record, _read(task.folder / _TERMINATION))

    def _write_record(self, task: _Running, code: int, reason: str) -> dict[str, object]:
        tail = "" if code == 0 else task.child.tail()
        record: dict[str, object] = {"uid": task.uid, "exitCode": code, "reason": reason, "logTail": tail}
        write_atomically(task.folder / _EXIT, json.dumps(record).encode())
        return record


def _ended(record: Mapping[str, object], termination: str) -> TaskObservation:
    code, reason, tail = int(str(record["exitCode"])), str(record["reason"]), str(record["logTail"])
    if reason == "DeadlineExceeded":
        # As a Job past its deadline: no exit code and no last word, so that a worker which stopped in good order is
        # not taken for a preempted one and given the same time again for ever.
        why = "the attempt took longer than spec.stageTimeoutSeconds"
        return TaskObservation(state="failed", reason=reason, log_tail=f"{why}\n{tail}")
    return TaskObservation(
        state="succeeded" if code == 0 else "failed",
        # As a shell and Kubernetes say it: 128 plus the signal's number.
        exit_code=code if code >= 0 else 128 - code,
        reason=reason,
        termination=termination,
        log_tail=tail,
    )


def _read_record(path: Path) -> dict[str, object] | None:
    with contextlib.suppress(OSError, ValueError):
        record = json.loads(path.read_text())
        if isinstance(record, dict) and {"uid", "exitCode", "reason", "logTail"} <= record.keys():
            return record
    return None


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace")
    return ""


def _progress(task: _Running) -> Progress | None:
    """The worker's last report; read only when the file has changed."""
    path = task.folder / _PROGRESS
    with contextlib.suppress(OSError, ValueError):
        changed = path.stat().st_mtime_ns
        if changed != task.progress[0]:
            task.progress = (changed, Progress.model_validate_json(path.read_bytes()))
    return task.progress[1]
