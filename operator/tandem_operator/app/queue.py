"""The work queue: which runs are due, and the passes over them.

A run is a key. It is in the queue at most once, with the earliest of the times that were asked for; it is worked on
by at most one pass at a time; one that is added during its own pass is done again after it. A pass is synchronous and
runs in a thread. Everything else happens in one event loop, so nothing here needs a lock.
"""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import logging
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from tandem_api.v1alpha1 import OptimizationRun
from tandem_operator.app import retry
from tandem_operator.app.transitions import Seen

#: (namespace, name) of a run.
Key = tuple[str, str]

#: Between two passes over a run. What happens meanwhile comes in bursts, and a pass answers all of it.
APART_SECONDS = 1.0
#: After a failure, an event brings a run back no sooner than this.
EVENT_PAUSE_SECONDS = 5.0
#: The dispatcher looks up at least this often, so that its life can be told from its death.
TURN_SECONDS = 5.0
#: Entries beyond two for each run that is due, before those that are left behind are removed.
MOST_LEFT_BEHIND = 100
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What a pass over a run came to."""

    requeue_seconds: float | None
    """When to look at the run again; None: when something happens to it, or at the next resync."""
    run: OptimizationRun | None
    """The run as it is now; None: it is gone, or is none that can be read."""
    is_refused: bool = False
    """Whether its spec was refused: it has failed before it began."""
    refused: Seen | None = None
    """With the status that tells so, if it could be written."""
    is_gone: bool = False
    """Whether the run is being deleted, or is no longer there."""


Reconcile = Callable[[str, str], Outcome]
"""One pass over the run (namespace, name). Raises any Exception when it fails."""


class Monitor(Protocol):
    """Who hears how passes went."""

    def passed(self, key: Key, outcome: Outcome, seconds: float) -> None:
        """A pass ended."""

    def failed(self, key: Key, error: Exception, seconds: float) -> None:
        """A pass raised."""


class Monitors:
    """Several of them as one. What one of them raises is logged: one run must not end the queue, which is for all."""

    def __init__(self, *monitors: Monitor) -> None:
        self._monitors = monitors

    def passed(self, key: Key, outcome: Outcome, seconds: float) -> None:
        """A pass ended."""
        for monitor in self._monitors:
            with _logged(key):
                monitor.passed(key, outcome, seconds)

    def failed(self, key: Key, error: Exception, seconds: float) -> None:
        """A pass raised."""
        for monitor in self._monitors:
            with _logged(key):
                monitor.failed(key, error, seconds)


@contextlib.contextmanager
def _logged(key: Key) -> Iterator[None]:
    try:
        yield
    except Exception:
        _LOG.exception("after a pass over %s/%s: what is told of it is not complete", *key)


class WorkQueue:
    """The queue and its workers. Make and use it in one event loop."""

    def __init__(
        self,
        reconcile: Reconcile,
        workers: int,
        monitor: Monitor,
        may_work: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`workers`: passes at once. `may_work` is asked, in the pass's thread, right before each pass."""
        self._reconcile = reconcile
        self._workers = workers
        self._monitor = monitor
        self._may_work = may_work
        self._clock = clock
        self._pool = ThreadPoolExecutor(workers, thread_name_prefix="pass")
        self._due: dict[Key, float] = {}
        # By time; an entry that is no longer what `_due` says is left behind and skipped.
        self._heap: list[tuple[float, Key]] = []
        self._active: dict[Key, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._failures: dict[Key, int] = {}
        self._not_before: dict[Key, float] = {}
        self._wake = asyncio.Event()
        self._stopping = False
        self.turned = clock()
        """When the dispatcher last looked up."""

    @property
    def depth(self) -> int:
        """Runs that are due and wait for a worker. May be read from any thread."""
        now = self._clock()
        return sum(due <= now for due in list(self._due.values()))

    @property
    def longest_pass(self) -> float:
        """Seconds since the oldest of the passes that run now began; 0 without any. From any thread."""
        now = self._clock()
        return max((now - started for started in list(self._active.values())), default=0.0)

    def add(self, key: Key, delay: float = 0.0) -> None:
        """Have a pass over the run after `delay` seconds, or earlier if that was asked for already."""
        when = max(self._clock() + delay, self._not_before.get(key, 0.0))
        known = self._due.get(key)
        if known is not None and known <= when:
            return
        self._due[key] = when
        heapq.heappush(self._heap, (when, key))
        if len(self._heap) > 2 * len(self._due) + MOST_LEFT_BEHIND:
            self._heap = [(when, key) for key, when in self._due.items()]
            heapq.heapify(self._heap)
        self._wake.set()

    async def run(self) -> None:
        """Work until `stop`. Raises whatever went wrong outside of a pass: then nothing can be relied on."""
        while not self._stopping:
            self.turned = self._clock()
            self._wake.clear()
            self._start_due()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._wake.wait(), self._until_next())
            for task in [task for task in self._tasks if task.done()]:
                self._tasks.discard(task)
                task.result()

    async def stop(self, seconds: float) -> bool:
        """Start nothing any more and wait so long for the passes that run; whether all of them ended."""
        self._stopping = True
        self._wake.set()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=seconds)
        self._pool.shutdown(wait=False, cancel_futures=True)
        return not self._active

    def _start_due(self) -> None:
        now = self._clock()
        while self._heap and len(self._active) < self._workers and self._heap[0][0] <= now:
            due, key = heapq.heappop(self._heap)
            # One that is being worked on comes back into the heap when its pass ends.
            if self._due.get(key) == due and key not in self._active:
                del self._due[key]
                self._not_before.pop(key, None)
                self._active[key] = now
                self._tasks.add(asyncio.create_task(self._work(key)))

    def _until_next(self) -> float:
        if not self._heap or len(self._active) >= self._workers:
            return TURN_SECONDS
        return min(max(self._heap[0][0] - self._clock(), 0.0), TURN_SECONDS)

    async def _work(self, key: Key) -> None:
        started = self._clock()
        try:
            outcome = await asyncio.get_running_loop().run_in_executor(self._pool, self._pass, key)
        except Exception as error:
            self._after_failure(key, error, self._clock() - started)
        else:
            if outcome is not None:
                self._after_success(key, outcome, self._clock() - started)
        finally:
            del self._active[key]
            if key in self._due:
                heapq.heappush(self._heap, (self._due[key], key))
            self._wake.set()

    def _pass(self, key: Key) -> Outcome | None:
        if not self._may_work():
            _LOG.warning("no pass over %s/%s: this process does not lead", *key)
            return None
        return self._reconcile(*key)

    def _after_success(self, key: Key, outcome: Outcome, seconds: float) -> None:
        self._failures.pop(key, None)
        self._monitor.passed(key, outcome, seconds)
        if outcome.run is not None:
            self._not_before[key] = self._clock() + APART_SECONDS
            if key in self._due:
                self._due[key] = max(self._due[key], self._not_before[key])
        if outcome.requeue_seconds is not None:
            self.add(key, outcome.requeue_seconds)

    def _after_failure(self, key: Key, error: Exception, seconds: float) -> None:
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        again = retry.after(error, failures)
        self._monitor.failed(key, error, seconds)
        if not again.is_quiet:
            # The traceback of an API error says no more than its message.
            trace = None if retry.error_type(error).startswith("Api") else error
            text = "pass over %s/%s failed (%d in a row), next in %.0f s: %s"
            _LOG.error(text, *key, failures, again.seconds, retry.describe(error), exc_info=trace)
        # What happened meanwhile may have put it right, so it need not wait as long; but a pass that fails after it has
        # written must not be called at once by the event of its own writing.
        pause = again.seconds if again.is_binding else min(again.seconds, EVENT_PAUSE_SECONDS)
        self._not_before[key] = self._clock() + pause
        was_asked = self._due.pop(key, None) is not None
        self.add(key, 0.0 if was_asked else again.seconds)
