"""CloudEvents on their way to the receivers: from passes into bounded queues, and out of them, retried.

All of it happens in the operator's event loop, beside passes and never in one. Each receiver has a queue and a sender
of its own, so that a dead one holds up neither a pass nor another receiver. Events arrive in order.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections import Counter as Tally
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Final
from urllib.parse import urlsplit

import aiohttp
from prometheus_client import CollectorRegistry, Counter
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tandem_api.errors import ConfigurationError
from tandem_operator.app.cloudevents import CONTENT_TYPE, CloudEvent, SigningKeys, cloud_event
from tandem_operator.app.queue import Key, Outcome
from tandem_operator.app.transitions import Seen, Transition, deletion, transitions
from tandem_operator.settings import CloudEvents

FIRST_SECONDS, LONGEST_SECONDS = 1.0, 60.0
#: A receiver that answers so will not take the event later, either: it is malformed, too large, or unwanted.
_FINAL: Final = frozenset({400, 410, 413, 415, 422})
_LOG = logging.getLogger(__name__)


class DeliveryMetrics(Collector):
    """What became of events, by receiver (`host:port`)."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.delivered, self.failed, self.dropped = (
            Counter(f"tandem_cloudevents_{name}", text, labels, registry=registry)
            for name, text, labels in (
                ("delivered", "Events that a receiver has taken.", ("receiver",)),
                ("failed_attempts", "Attempts to deliver an event that failed.", ("receiver",)),
                ("dropped", "Events that a receiver has not got, by why.", ("receiver", "reason")),
            )
        )
        self._receivers: list[Receiver] = []
        registry.register(self)

    def watch(self, receiver: Receiver) -> None:
        """Show this receiver's queue, and its counters from 0 on."""
        self._receivers.append(receiver)
        for counter in (self.delivered, self.failed):
            counter.labels(receiver.name)

    def collect(self) -> Iterator[Metric]:
        """The gauge that is read off the queues."""
        waiting = GaugeMetricFamily(
            "tandem_cloudevents_waiting", "Events that wait for a receiver.", labels=("receiver",)
        )
        counts: Tally[str] = Tally()
        for receiver in self._receivers:
            # Two paths of one host are one series.
            counts[receiver.name] += receiver.waiting
        for name, count in counts.items():
            waiting.add_metric((name,), count)
        yield waiting


class Receiver:
    """One URL: its queue, and what is sent to it, one event after the other."""

    def __init__(
        self, url: str, settings: CloudEvents, metrics: DeliveryMetrics, clock: Callable[[], float] = time.monotonic
    ) -> None:
        parts = urlsplit(url)
        self.name = parts.netloc
        """For logs and metrics: a path may be a secret of the receiver's."""
        self._url = url
        self._settings = settings
        self._metrics = metrics
        self._clock = clock
        assert settings.signing_key_file is not None, "the settings demand it"
        self._keys = SigningKeys(settings.signing_key_file)
        self._events: deque[CloudEvent] = deque()
        self._in_flight = False
        self._wake = asyncio.Event()
        self.idle = asyncio.Event()
        """Set while nothing waits."""
        self.idle.set()
        self._trouble = False
        self._has_dropped = False
        metrics.watch(self)

    @property
    def waiting(self) -> int:
        """Events that it has not got yet. From any thread."""
        return len(self._events) + self._in_flight

    def put(self, event: CloudEvent) -> None:
        """Send this one after those that wait. Where there is no more room the oldest goes: the newest tells most."""
        if len(self._events) >= self._settings.queue_size:
            self._events.popleft()
            self._drop("QueueFull")
        self._events.append(event)
        self.idle.clear()
        self._wake.set()

    async def run(self, session: aiohttp.ClientSession) -> None:
        """Send for ever."""
        while True:
            while self._events:
                event, self._in_flight = self._events.popleft(), True
                await self._deliver(session, event)
                self._in_flight = False
            self.idle.set()
            self._wake.clear()
            await self._wake.wait()

    def give_up(self) -> None:
        """The process ends: what waits is left to the next leader."""
        for _ in range(self.waiting):
            self._metrics.dropped.labels(self.name, "Ended").inc()

    async def _deliver(self, session: aiohttp.ClientSession, event: CloudEvent) -> None:
        end, wait = self._clock() + self._settings.retry_seconds, FIRST_SECONDS
        while True:
            problem, is_final = await self._post(session, event)
            if problem is None:
                self._metrics.delivered.labels(self.name).inc()
                if self._trouble:
                    _LOG.info("the receiver of CloudEvents %s takes them again", self.name)
                self._trouble = self._has_dropped = False
                return
            self._metrics.failed.labels(self.name).inc()
            if not self._trouble:
                _LOG.warning("the receiver of CloudEvents %s does not take them: %s", self.name, problem)
            self._trouble = True
            if is_final or self._clock() + wait > end:
                self._drop("Refused" if is_final else "GivenUp")
                return
            # Spread, or all operators of a fleet would come back to it in the same moment.
            await asyncio.sleep(wait * random.uniform(0.75, 1.25))
            wait = min(wait * 2, LONGEST_SECONDS)

    async def _post(self, session: aiohttp.ClientSession, event: CloudEvent) -> tuple[str | None, bool]:
        """One attempt: (why it failed, whether that is final); (None, ...) when the receiver has it."""
        try:
            headers = {"Content-Type": CONTENT_TYPE, **self._keys.headers(event, datetime.now(UTC))}
            # Never on to where an answer points: only the administrator says who is called.
            async with session.post(self._url, data=event.body, headers=headers, allow_redirects=False) as answer:
                if 200 <= answer.status < 300:
                    return None, False
                return f"it answers {answer.status}", answer.status in _FINAL
        except TimeoutError:
            return f"no answer within {self._settings.timeout_seconds} s", False
        except ConfigurationError as error:
            return str(error), False
        except Exception as error:  # whatever it is, no receiver may be the operator's end
            return f"{type(error).__name__}: {_without_url(error)}", False

    def _drop(self, reason: str) -> None:
        self._metrics.dropped.labels(self.name, reason).inc()
        if not self._has_dropped:
            text = "CloudEvents for %s are dropped (%s); tandem_cloudevents_dropped_total counts them"
            _LOG.error(text, self.name, reason)
        self._has_dropped = True


class Deliveries:
    """All receivers. Hears of passes, as a monitor of the queue."""

    def __init__(
        self,
        settings: CloudEvents,
        registry: CollectorRegistry,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """Make it in the event loop in which it is to run."""
        self._settings = settings
        self._now = now
        self._since: datetime | None = None
        metrics = DeliveryMetrics(registry)
        self._receivers = [Receiver(url, settings, metrics) for url in settings.urls]
        self._seen: dict[Key, Seen] = {}

    def passed(self, key: Key, outcome: Outcome, seconds: float) -> None:
        """A pass ended: what has happened since the run was last seen is to be sent."""
        if not self._receivers:
            return
        now = outcome.refused or (Seen.of(outcome.run) if outcome.run is not None else None)
        if now is None and not outcome.is_gone:
            return
        if self._since is None:
            # Passes begin with the leadership, which a spare may have waited for for weeks.
            self._since = self._now() - timedelta(seconds=self._settings.replay_seconds)
        before = self._seen.pop(key, None)
        if before is not None and (now is None or now.uid != before.uid):
            self._put(before, [deletion(before, self._now())])
        if now is not None:
            self._seen[key] = now
            self._put(now, transitions(before, now, self._since))

    def failed(self, key: Key, error: Exception, seconds: float) -> None:
        """A pass raised: the next one that does not will tell what happened."""

    async def run(self) -> None:
        """Send, until it is cancelled."""
        timeout = aiohttp.ClientTimeout(total=self._settings.timeout_seconds)
        # trust_env: through the proxy that the environment names, as whatever else the operator calls.
        async with aiohttp.ClientSession(timeout=timeout, trust_env=True) as session, asyncio.TaskGroup() as senders:
            for receiver in self._receivers:
                senders.create_task(receiver.run(session))
            await asyncio.Event().wait()

    async def drain(self, seconds: float) -> None:
        """Wait so long until all is sent; the rest is left to the next leader."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                for receiver in self._receivers:
                    await receiver.idle.wait()
        for receiver in self._receivers:
            receiver.give_up()

    def _put(self, seen: Seen, found: Iterable[Transition]) -> None:
        for transition in found:
            event = cloud_event(seen, transition, self._settings.source)
            for receiver in self._receivers:
                receiver.put(event)


def _without_url(error: BaseException) -> str:
    """The reason alone: the client's texts may name the whole URL."""
    cause = getattr(error, "os_error", None) or error
    return str(getattr(cause, "strerror", None) or "the request failed")
