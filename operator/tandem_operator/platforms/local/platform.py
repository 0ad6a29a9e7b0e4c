"""`LocalPlatform`: the engine's actions carried out on one machine, with child processes.

    with LocalPlatform(Path("runs/demo"), run) as platform:
        while not reconcile(platform).finished:
            platform.wait(0.2)
        platform.fetch_result()

Inside the `with` the folder is locked, and nothing that an earlier engine left behind runs any more. After it,
whatever happened, no process of the run is left, and the same lines go on where this one stopped.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from tandem_api.contract import ENV_MLFLOW, StageRequest
from tandem_api.v1alpha1 import OptimizationRun, Status
from tandem_operator.actions import Action, EmitEvent, EnsureServing, StartTask, StopServing, StopTask
from tandem_operator.platforms.local.commands import Commands
from tandem_operator.platforms.local.machine import child_environment, foreign_environment, has_accelerator
from tandem_operator.platforms.local.manifest import adopt
from tandem_operator.platforms.local.processes import kill_leftovers, never, wait_for_exit
from tandem_operator.platforms.local.serving import Serving
from tandem_operator.platforms.local.storage import EmbeddedStorage, ExternalStorage, Storage, client
from tandem_operator.platforms.local.tasks import Tasks
from tandem_operator.platforms.local.workdir import Workdir
from tandem_operator.platforms.other_models import models_of
from tandem_operator.snapshot import Observed


def _ignore(event: EmitEvent) -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class LocalSettings:
    """How a run is carried out here; none of it changes what it computes."""

    commands: Commands = field(default_factory=Commands)
    serving_port: int | None = None
    """The model server's port; None: a free one."""
    has_gpu: bool | None = None
    """None: look."""
    on_event: Callable[[EmitEvent], None] = _ignore
    """Told of every event, beside `events.jsonl`."""
    hurry: Callable[[], bool] = never
    """Whether children that have been asked to stop are to be killed without waiting."""


class LocalPlatform:
    """A `Platform` for one run in one folder."""

    def __init__(self, workdir: Path, run: OptimizationRun, settings: LocalSettings | None = None) -> None:
        """`run` is the manifest with absolute addresses (`manifest.resolve`); its status is not looked at."""
        self._settings = settings or LocalSettings()
        self._workdir = Workdir(workdir)
        self._wanted = run
        self._run = run
        self._seen: Observed | None = None
        self._has_gpu = has_accelerator() if self._settings.has_gpu is None else self._settings.has_gpu
        self._tasks = Tasks(self._workdir, self._settings.commands.worker)
        self._serving = Serving(
            self._workdir,
            self._settings.commands,
            fixed_port=self._settings.serving_port,
            hurry=self._settings.hurry,
        )
        self._storage: Storage = self._build_storage()
        self._acted = False
        self._open = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._storage.require_credentials()
            self._workdir.lock()
            stack.callback(self._workdir.unlock)
            kill_leftovers(self._workdir.path)
            self._run = adopt(self._workdir.read_run(), self._wanted, uid=str(uuid.uuid4()))
            self._workdir.write_run(self._run)
            for unfinished in self._workdir.path.glob(f".{self._workdir.result.name}.*"):
                shutil.rmtree(unfinished, ignore_errors=True)
            self._tasks.load(self._run.metadata.uid)
            # Workers need the storage to keep what they have: it is the last to go.
            stack.callback(self._storage.stop)
            self._storage.start()
            stack.callback(self._serving.stop)
            stack.callback(lambda: self._tasks.close(self._settings.hurry))
            self._open = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    @property
    def workdir(self) -> Workdir:
        """The run's folder."""
        return self._workdir

    @property
    def seen(self) -> Observed | None:
        """What the last pass saw, for displays."""
        return self._seen

    def load(self) -> OptimizationRun:
        """The resource; this engine holds the folder's lock, so its own copy is the stored one."""
        return self._run

    def observe(self, run: OptimizationRun) -> Observed:
        metadata = run.metadata
        self._seen = Observed(
            namespace=metadata.namespace,
            name=metadata.name,
            uid=metadata.uid,
            generation=metadata.generation,
            now=datetime.now(UTC),
            storage=self._storage.ref,
            serving=self._serving.observe(),
            tasks=self._tasks.observe(),
            has_gpu=self._has_gpu,
            serving_accelerators=int(self._has_gpu),
            training_accelerators=int(self._has_gpu),
        )
        return self._seen

    def save(self, run: OptimizationRun, status: Status) -> None:
        stored = run.model_copy(update={"status": status})
        self._workdir.write_run(stored)
        self._run = stored

    def execute(self, run: OptimizationRun, action: Action) -> None:
        match action:
            case EnsureServing():
                if action.adapter is not None:
                    self._storage.wait_until_ready()
                self._serving.ensure(action, run.spec, self._environment())
            case StopServing():
                self._acted |= self._serving.stop()
            case StartTask():
                self._storage.wait_until_ready()
                self._tasks.start(action.name, action.request, {**self._environment(), **_keys(action.request)})
            case StopTask():
                self._tasks.stop(action.name)
            case EmitEvent():
                self._workdir.add_event(action)
                self._settings.on_event(action)

    def wait(self, timeout_seconds: float) -> None:
        """Until something may have changed: a child has ended, or the time is over. Looks after what runs.

        Raises StorageUnavailableError or StorageRefusedError when the storage cannot go on.
        """
        if not self._acted:
            running = (*self._tasks.children, *self._serving.children, *self._storage.children)
            wait_for_exit(running, timeout_seconds)
        self._acted = False
        self._storage.check()

    def fetch_result(self) -> Path | None:
        """Download the result bundle to `result/`, whole or not at all, unless it is there. None: there is none."""
        result = self._run.status.result
        if result is None:
            return None
        if not self._workdir.result.exists():
            self._storage.wait_until_ready()
            client(self._storage.ref, self._storage.credentials).fetch_folder(result, self._workdir.result)
        return self._workdir.result

    def _build_storage(self) -> Storage:
        if self._wanted.spec.storage is not None:
            return ExternalStorage(self._wanted.spec.storage.s3)
        return EmbeddedStorage(self._workdir, foreign_environment(os.environ), self._warn)

    def _warn(self, message: str) -> None:
        self.execute(self._run, EmitEvent("Warning", "StorageRestarted", message))

    def _environment(self) -> dict[str, str]:
        """What every worker and server gets."""
        ref = self._storage.ref
        location = {"AWS_ENDPOINT_URL": ref.endpoint or "", "AWS_REGION": ref.region or ""}
        return {
            **child_environment(os.environ),
            **self._storage.credentials,
            **{name: value for name, value in location.items() if value},
        }


def _keys(request: StageRequest) -> dict[str, str]:
    """The keys of the other models that an attempt asks and the account at MLflow, out of our environment."""
    wanted = {model.variable for model in models_of(request) if model.key_secret is not None}
    mlflow = request.spec.mlflow
    if mlflow is not None and mlflow.credentials_secret is not None:
        wanted |= set(ENV_MLFLOW)
    return {name: value for name, value in os.environ.items() if name in wanted}
