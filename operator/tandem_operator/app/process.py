"""The operator's life: listen, wait for the leadership, work, and end in good order."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

from tandem_operator.app.deliveries import Deliveries
from tandem_operator.app.endpoints import Endpoints
from tandem_operator.app.health import PROBE_SECONDS, Vitals
from tandem_operator.app.lease import LeaseElector
from tandem_operator.app.metrics import Metrics, ProcessState
from tandem_operator.app.queue import Key, Monitors, Reconcile, WorkQueue
from tandem_operator.app.retry import describe
from tandem_operator.app.tracking import Tracker, spread
from tandem_operator.app.watch import Watch
from tandem_operator.settings import OperatorSettings

#: How long passes that run may go on after SIGTERM.
GRACE_SECONDS = 20.0
_WATCH_END_SECONDS = 3.0
#: How long CloudEvents may still be sent at the end; the next leader sends the rest.
_DRAIN_SECONDS = 2.0
#: What runs are made of is listed at the start, after the runs themselves: a run was looked at then, or will be soon.
LISTED_SECONDS = 30.0
#: Each run is due once in a resync period: the rounds begin a little more often, and spread over the rest.
_RESYNC_ROUND, _RESYNC_SPREAD = 0.9, 0.1
_ASK_SECONDS = 10.0
_T = TypeVar("_T")
_LOG = logging.getLogger(__name__)


class Lister(Protocol):
    """What is asked of the API server beside passes; see RunLister."""

    def versions(self) -> dict[Key, str]:
        """The resourceVersion of every run."""

    def what_is_missing(self) -> str | None:
        """Why the runs cannot be listed; None when they can."""


@dataclass(frozen=True)
class Parts:
    """What the process is made of, beside what it makes itself."""

    reconcile: Reconcile
    lister: Lister
    elector: LeaseElector
    metrics: Metrics = field(default_factory=Metrics)


class Operator:
    """One replica. Make and run it in one event loop."""

    def __init__(self, settings: OperatorSettings, parts: Parts, clock: Callable[[], float] = time.monotonic) -> None:
        self._settings = settings
        self._parts = parts
        self._clock = clock
        self._tracker = Tracker(clock)
        self._deliveries = Deliveries(settings.cloud_events, parts.metrics.registry)
        monitors = Monitors(parts.metrics, self._deliveries)
        self._queue = WorkQueue(parts.reconcile, settings.workers, monitors, parts.elector.is_held, clock)
        self._watch = Watch(self, settings.namespaces, clock)
        parts.metrics.registry.register(ProcessState(parts.elector.is_held, lambda: self._queue.depth))
        self._may_list = False
        self._works = False
        self._loop = asyncio.get_running_loop()
        # Its threads are not waited for at the end: a call may last longer than the grace.
        self._calls = ThreadPoolExecutor(2, thread_name_prefix="call")
        self._endpoints = Endpoints(settings.health_port, settings.metrics_port, self.vitals, parts.metrics.registry)

    def vitals(self) -> Vitals:
        """What health is judged by, at this moment. Safe from any thread."""
        now = self._clock()
        return Vitals(
            may_list=self._may_list,
            leads=self._works,
            answered=self._parts.elector.answered_seconds_ago,
            queue_turned=now - self._queue.turned,
            watch_turned=now - self._watch.turned,
            unseen=self._tracker.unseen_seconds(),
            longest_pass=self._queue.longest_pass,
        )

    async def run(self, stop: asyncio.Event) -> bool:
        """Live until `stop`; whether everything ended in good order. Raises what ended it otherwise, also in order."""
        health, metrics = self._endpoints.start()
        _LOG.info("health on port %d, metrics on port %d", health, metrics)
        try:
            if await self._until_listed(stop) and await self._until_leader(stop):
                return await self._lead(stop)
            return True
        finally:
            self._endpoints.stop()
            self._calls.shutdown(wait=False, cancel_futures=True)

    # What the watch tells comes from its thread; the queue and the tracker belong to ours.

    def run_changed(self, key: Key, version: str, *, deleted: bool) -> None:
        """The watch tells of a run."""
        self._loop.call_soon_threadsafe(self._on_run, key, version, deleted)

    def child_changed(self, key: Key, *, listed: bool) -> None:
        """The watch tells of something that a run is made of."""
        self._loop.call_soon_threadsafe(self._queue.add, key, LISTED_SECONDS if listed else 0.0)

    def _on_run(self, key: Key, version: str, deleted: bool) -> None:
        if deleted:
            self._tracker.gone(key)
        else:
            self._tracker.delivered(key, version)
        self._queue.add(key)

    async def _until_listed(self, stop: asyncio.Event) -> bool:
        """Wait for the definition and the permission: Kopf would watch nothing, silently and for ever, without."""
        while not stop.is_set():
            try:
                missing = await self._call(self._parts.lister.what_is_missing)
            except Exception as error:
                missing = describe(error)
            if missing is None:
                self._may_list = True
                return True
            _LOG.error("%s; asked again in %.0f s", missing, _ASK_SECONDS)
            await _sleep_or(stop, _ASK_SECONDS)
        return False

    async def _until_leader(self, stop: asyncio.Event) -> bool:
        give_up = threading.Event()
        acquired = asyncio.ensure_future(self._call(lambda: self._parts.elector.acquire(give_up)))
        stopped = asyncio.create_task(stop.wait())
        await asyncio.wait((acquired, stopped), return_when=asyncio.FIRST_COMPLETED)
        give_up.set()
        stopped.cancel()
        return await acquired

    async def _lead(self, stop: asyncio.Event) -> bool:
        self._queue.turned = self._watch.turned = self._clock()
        self._works = True
        self._watch.start()
        jobs = {
            asyncio.create_task(self._queue.run(), name="the queue"),
            asyncio.create_task(self._resync(), name="the resync"),
            asyncio.create_task(self._probe(), name="the probe"),
            asyncio.create_task(self._deliveries.run(), name="the delivery of CloudEvents"),
            asyncio.create_task(_ended(self._watch), name="the watch"),
        }
        stopped = asyncio.create_task(stop.wait(), name="stop")
        ended: set[asyncio.Task[None]] = set()
        try:
            done, _ = await asyncio.wait({*jobs, stopped}, return_when=asyncio.FIRST_COMPLETED)
            ended = jobs & done
        finally:
            in_order = await self._end()
            for task in (*jobs, stopped):
                task.cancel()
            await asyncio.gather(*jobs, stopped, return_exceptions=True)
        for task in ended:
            task.result()
            raise RuntimeError(f"{task.get_name()} has ended by itself")
        return in_order

    async def _end(self) -> bool:
        _LOG.info("ending: no more passes are started")
        self._works = False
        self._watch.stop()
        finished = await self._queue.stop(GRACE_SECONDS)
        watch_ended = asyncio.wait((asyncio.wrap_future(self._watch.ended),), timeout=_WATCH_END_SECONDS)
        await asyncio.gather(watch_ended, self._deliveries.drain(_DRAIN_SECONDS))
        if finished:
            await self._call(self._parts.elector.release)
        else:
            # The Lease runs out by itself, long after the passes have died with the process.
            _LOG.warning("passes still run after %.0f s; the Lease is not released", GRACE_SECONDS)
        return finished

    async def _resync(self) -> None:
        """Look at every run once in each period, whatever the watch tells."""
        period = self._settings.resync_seconds
        while True:
            await asyncio.sleep(period * _RESYNC_ROUND)
            for key, delay in spread(self._tracker.known, period * _RESYNC_SPREAD):
                self._queue.add(key, delay)

    async def _probe(self) -> None:
        """Ask for the runs' versions, and look at those that the watch has not told of."""
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            asked_at = self._clock()
            try:
                versions = await self._call(self._parts.lister.versions)
            except Exception as error:
                _LOG.warning("the runs could not be listed: %s", describe(error))
                continue
            for key in self._tracker.compare(versions, asked_at):
                self._queue.add(key)

    async def _call(self, function: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._calls, function)


async def _ended(watch: Watch) -> None:
    await asyncio.wrap_future(watch.ended)


async def _sleep_or(stop: asyncio.Event, seconds: float) -> None:
    done = asyncio.create_task(stop.wait())
    await asyncio.wait((done,), timeout=seconds)
    done.cancel()
