"""The way from worker threads to the event loop that the clients live on."""

from __future__ import annotations

import asyncio
import concurrent.futures
import threading
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from tandem_trainer.lm.failures import CallFailedError

T = TypeVar("T")
#: Makes the coroutine that is to be run; called once the bridge is known to be open.
Work = Callable[[], Coroutine[Any, Any, T]]


class Bridge:
    """Carries work from other threads and event loops to the one on which it was made."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._thread = threading.get_ident()
        self._waiting: set[concurrent.futures.Future[Any]] = set()
        self._running: set[asyncio.Task[Any]] = set()
        self._closed = False

    def call(self, work: Work[T]) -> T:
        """What the work comes to; blocks a worker thread until then. Raises CallFailedError after the end."""
        self._check_open()
        if threading.get_ident() == self._thread:
            raise RuntimeError(
                "a predictor was called synchronously inside aforward, which would block every other run; "
                "write `await predictor.acall(...)` there, or give the program a plain forward"
            )
        return self._start(work).result()

    async def acall(self, work: Work[T]) -> T:
        """What the work comes to, on any event loop. Raises CallFailedError after the end."""
        self._check_open()
        if asyncio.get_running_loop() is self._loop:
            return await work()
        return await asyncio.wrap_future(self._start(work))

    async def run_in_thread(self, function: Callable[[], T]) -> T:
        """Run `function` in a thread. When it ends, or this is cancelled, no work is taken, and none goes on."""
        try:
            return await asyncio.to_thread(function)
        finally:
            self.close()
            await asyncio.gather(*self._running, return_exceptions=True)

    @property
    def is_closed(self) -> bool:
        """Whether no work is taken any more."""
        return self._closed

    def close(self) -> None:
        """Fail what other threads wait for, so that no thread outlives its stage for long."""
        self._closed = True
        for future in tuple(self._waiting):
            future.cancel()

    def _check_open(self) -> None:
        if self._closed:
            raise CallFailedError("the stage has ended, but the program still calls the model")

    def _start(self, work: Work[T]) -> concurrent.futures.Future[T]:
        future = asyncio.run_coroutine_threadsafe(self._tracked(work), self._loop)
        self._waiting.add(future)
        future.add_done_callback(self._waiting.discard)
        return future

    async def _tracked(self, work: Work[T]) -> T:
        task = asyncio.current_task()
        assert task is not None
        self._running.add(task)
        task.add_done_callback(self._running.discard)
        return await work()
