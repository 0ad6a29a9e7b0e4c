"""What every stage is given: its request, the store, where to report, and whether it should stop.

`main` builds one `StageContext` a process and hands it to the stage's `run(context) -> StageResult`. A stage that
works asynchronously runs its coroutine with `StageContext.run`, which cancels it when the worker is asked to stop.
"""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from tandem_api.contract import StageRequest
from tandem_api.errors import PreemptedError
from tandem_api.store import ObjectStore
from tandem_api.v1alpha1.status import Usage
from tandem_trainer.progress import ProgressReporter

T = TypeVar("T")


class Stopping:
    """Set once, by SIGTERM; then the stage keeps what it has and ends with PreemptedError.

    Without locks on purpose: `set` runs inside a signal handler, where waiting for a lock that the interrupted code
    holds would never end.
    """

    def __init__(self) -> None:
        self._is_set = False
        self._callbacks: list[Callable[[], object]] = []

    def is_set(self) -> bool:
        return self._is_set

    def set(self) -> None:
        """Ask the stage to stop. The callbacks run here, once each."""
        if not self._is_set:
            self._is_set = True
            for callback in tuple(self._callbacks):
                callback()

    @contextmanager
    def calling(self, callback: Callable[[], object]) -> Iterator[None]:
        """While the block runs, `set` calls `callback` (from the signal handler: it must be quick and not block)."""
        self._callbacks.append(callback)
        try:
            yield
        finally:
            self._callbacks.remove(callback)


@dataclass
class Meter:
    """What the stage has spent, all its attempts together; read by `main` when the stage fails."""

    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True)
class StageContext:
    """One attempt of a stage."""

    request: StageRequest
    store: ObjectStore
    progress: ProgressReporter
    cache: Path
    """Folder for models and unpacked code; shared by the processes of one machine, so write atomically."""
    stopping: Stopping = field(default_factory=Stopping)
    meter: Meter = field(default_factory=Meter)

    def should_stop(self) -> bool:
        """Whether the worker was asked to stop. Synchronous stages ask between two units of work."""
        return self.stopping.is_set()

    def raise_if_stopping(self) -> None:
        """Raises PreemptedError if the worker was asked to stop."""
        if self.stopping.is_set():
            raise _preempted()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a stage's coroutine to its end. Raises PreemptedError if the worker is asked to stop meanwhile."""

        async def cancellable() -> T:
            loop = asyncio.get_running_loop()
            task = asyncio.ensure_future(work)
            with self.stopping.calling(lambda: loop.call_soon_threadsafe(task.cancel)):
                if self.stopping.is_set():
                    task.cancel()
                return await task

        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            try:
                return runner.run(cancellable())
            except asyncio.CancelledError:
                if self.stopping.is_set():
                    raise _preempted() from None
                raise


def _preempted() -> PreemptedError:
    return PreemptedError("the worker was asked to stop (SIGTERM); what it had is kept and will be continued")


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed (it comes with vLLM): it halves what a call costs on the loop."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop

    return uvloop.new_event_loop
