"""Runs on this machine: `tandem run --local` as a child process, and its folder."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from tandem.bundle import Bundle
from tandem.errors import RunGoneError, RunStoppedError
from tandem.handle import Deadline, Run, result_of
from tandem.state import State
from tandem_api.errors import ConfigurationError, TandemError
from tandem_api.v1alpha1 import OptimizationRun
from tandem_api.v1alpha1.run import ManifestError, parse_run

if TYPE_CHECKING:
    from tandem_operator.platforms.local.processes import Child

_LOOK_SECONDS = 0.2
#: How long a run may take to stop in good order before it is killed; nothing is lost by that.
_STOP_SECONDS = 60.0
_MANIFEST = "run.yaml"


def run_local(
    run: OptimizationRun,
    workdir: str | Path | None = None,
    *,
    folder: str | Path = ".",
    serving_port: int | None = None,
) -> LocalRun:
    """Start the run on this machine, or go on with it, and return at once. It ends with this process at the latest;
    the same call goes on where it was.

    `workdir`: the run's folder; default runs/NAME. `folder`: where its relative `file:` addresses and its code start.
    `serving_port`: the model server's port; default a free one. Raises ManifestError with everything that cannot work
    on this machine, ConfigurationError when the folder holds another run or is in use.
    """
    from tandem_operator.platforms.local.manifest import adopt, cluster_only, missing_files, missing_keys, resolve
    from tandem_operator.platforms.local.workdir import Workdir

    wanted = resolve(parse_run(run.to_json()), Path(folder))
    problems = [*cluster_only(wanted), *missing_files(wanted), *missing_keys(wanted, os.environ)]
    if problems:
        raise ManifestError(problems)
    files = Workdir(Path(workdir) if workdir is not None else Path("runs") / run.metadata.name)
    stored = files.read_run()
    if stored is not None:
        adopt(stored, wanted, stored.metadata.uid)
    handle = LocalRun(files.path, wanted, serving_port)
    handle.start()
    return handle


def open_local(workdir: str | Path) -> LocalRun:
    """The run in a folder, whoever started it. Raises ConfigurationError when there is none."""
    from tandem_operator.platforms.local.workdir import Workdir

    files = Workdir(Path(workdir))
    stored = files.read_run() if files.path.is_dir() else None
    if stored is None:
        raise ConfigurationError(f"{files.path} holds no run; run_local starts one")
    return LocalRun(files.path, stored)


class LocalRun(Run):
    """A run on this machine, by its folder."""

    def __init__(self, workdir: Path, run: OptimizationRun, serving_port: int | None = None) -> None:
        """`run`: as it is wanted, with absolute addresses."""
        from tandem_operator.platforms.local.workdir import Workdir

        self.name = run.metadata.name
        self.workdir = workdir
        self._files = Workdir(workdir)
        self._run = run
        self._options = ("--serving-port", str(serving_port)) if serving_port is not None else ()
        self._engine: _Engine | None = None

    def start(self) -> None:
        """Start the run's process, if it is not there. Raises ConfigurationError."""
        if self.is_running:
            return
        from tandem_operator.platforms.local.workdir import write_atomically

        document = self._run.to_json()
        del document["status"]
        manifest = self.workdir / _MANIFEST
        write_atomically(manifest, yaml.safe_dump(document, sort_keys=False).encode())
        command = (sys.executable, "-m", "tandem_operator.cli.main", "run", "-f", str(manifest), "--local")
        self._engine = _Engine((*command, "--workdir", str(self.workdir), *self._options), self._files.log("tandem"))

    @property
    def is_running(self) -> bool:
        """Whether its process is there: ours, or one that was started elsewhere."""
        if self._engine is not None and self._engine.is_running:
            return True
        return self._files.owner() is not None

    def state(self) -> State:
        if not self.workdir.is_dir():
            raise RunGoneError(f"the run {self.name!r} was deleted: {self.workdir} is not there")
        return State(self._files.read_run() or self._run)

    def watch(self, timeout: float | None = None) -> Iterator[State]:
        """As of every run. Raises RunStoppedError when its process ends before the run does, or has ended already."""
        deadline = Deadline(self.name, timeout)
        told: State | None = None
        version = self._files.version()
        state = self.state()
        while True:
            # Asked first: a process that is gone now has written all that it will write.
            is_running = self.is_running
            if (now := self._files.version()) != version:
                version, state = now, self.state()
            # The last state is told once the process is through: then the result is there, too.
            is_over = state.has_ended and not is_running
            if state != told and (is_over or not state.has_ended):
                told = state
                yield state
            if is_over:
                return
            if not is_running:
                raise RunStoppedError(self._why_stopped())
            time.sleep(deadline.step(_LOOK_SECONDS))

    def suspend(self) -> None:
        """Stop the run's processes in good order; what is done is kept."""
        self._require_unfinished("suspend")
        self._stop()

    def resume(self) -> None:
        self._require_unfinished("resume")
        self.start()

    def cancel(self) -> None:
        """Stop the run's processes. Its folder stays, and `resume` goes on with it all the same."""
        if not self.state().has_ended:
            self._stop()

    def delete(self) -> None:
        """Stop the run and remove its folder with everything in it."""
        self._stop()
        if self.workdir.exists():
            shutil.rmtree(self.workdir)

    def result(self, folder: str | Path | None = None) -> Bundle:
        """The result bundle in the run's folder; with `folder` a copy of it there."""
        result_of(self.state())
        if not self._files.result.is_dir():  # its process is fetching it, or died before that
            self.start()
            while self.is_running:
                time.sleep(_LOOK_SECONDS)
        bundle = Bundle.open(self._files.result)
        if folder is None:
            return bundle
        try:
            shutil.copytree(bundle.path, Path(folder).expanduser())
        except FileExistsError as error:
            raise ConfigurationError(f"{folder} exists already; choose another folder") from error
        return Bundle.open(folder)

    def _stop(self) -> None:
        if self._engine is not None:
            self._engine.stop()
        owner = self._files.owner()  # it may have been started elsewhere, too
        if owner is None:
            return
        owner.terminate()
        deadline = Deadline(self.name, _STOP_SECONDS)
        while self._files.owner() is not None:
            time.sleep(deadline.step(_LOOK_SECONDS))

    def _require_unfinished(self, verb: str) -> None:
        state = self.state()
        if state.has_ended:
            raise ConfigurationError(f"{self.name} has ended ({state.phase}); there is nothing to {verb}")

    def _why_stopped(self) -> str:
        said = self._engine.last_words() if self._engine is not None else ""
        told = f"; the end of {self._files.log('tandem')}:\n{said}" if said else ""
        return f"the run {self.name!r} in {self.workdir} has stopped; resume() goes on with it{told}"


class _Engine:
    """The process that carries out a run. A thread of its own starts it and lives as long as it does: the kernel ends
    a child with the *thread* that started it, and the caller's may be a short one."""

    def __init__(self, argv: tuple[str, ...], log: Path) -> None:
        """Returns when it is started. Raises ConfigurationError."""
        self._argv, self._log = argv, log
        self._started, self._ended, self._is_too_slow = (threading.Event() for _ in range(3))
        self._child: Child | None = None
        self._failure: TandemError | None = None
        threading.Thread(target=self._host, name=f"tandem-{log.parent.parent.name}", daemon=True).start()
        self._started.wait()
        if self._failure is not None:
            raise self._failure

    @property
    def is_running(self) -> bool:
        return not self._ended.is_set()

    def stop(self) -> None:
        """End it in good order, or kill it if that takes too long; returns when it is gone."""
        assert self._child is not None
        if not self._ended.is_set():
            self._child.terminate()
        if not self._ended.wait(_STOP_SECONDS):
            self._is_too_slow.set()
            self._ended.wait()

    def last_words(self) -> str:
        """The end of its log."""
        return self._child.tail() if self._child is not None else ""

    def _host(self) -> None:
        from tandem_operator.platforms.local.processes import Launch, spawn, wait_for_exit

        launch = Launch("tandem", self._argv, os.environ, Path.cwd(), self._log)
        try:
            child = self._child = spawn(launch, self._log.parent.parent)
        except TandemError as error:
            self._failure = error
            self._ended.set()
            return
        finally:
            self._started.set()
        while child.exit_code is None:
            wait_for_exit((child,), _LOOK_SECONDS)
            if self._is_too_slow.is_set():
                child.kill_tree()
        self._ended.set()
