"""Which replica leads: an elector over a coordination.k8s.io/v1 Lease, with the semantics of client-go's.

* A spare never compares clocks of machines: it takes the Lease over when, by its own monotonic clock, it has seen no
  change of it for the Lease's duration.
* A leader stops at two thirds of the duration since the last renewal that went through, counted from before that call,
  so a spare never starts before the leader has stopped. A pass may be running then and cannot be interrupted, so
  stopping means that the process ends at once. A thread of its own watches for that, whatever the renewal waits for.
* A process that was stopped (SIGSTOP, a paused virtual machine) finds its time over before it renews again.
* A released Lease has no holder, and a spare takes it at its next look.

The official client's `kubernetes.leaderelection` (37.0.1) is not used: it measures its deadline with the wall clock,
and only between calls that have no timeout; it can neither release a Lease nor be stopped; it does not count
leaseTransitions; and one renewal in a million is refused by the API server, because Python leaves out microseconds
that are zero.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from kubernetes.client import ApiException, V1Lease, V1LeaseSpec, V1ObjectMeta

from tandem_operator import settings
from tandem_operator.app.retry import describe

#: A leader that has not renewed for this part of the duration stops.
_DEADLINE = 2 / 3
#: A spare looks at least this often, and a leader that could not renew tries again after it.
_LOOK_SECONDS = 2.0
_WATCH_SECONDS = 0.5
_CALL_SECONDS = 3.0
_NOT_FOUND, _CONFLICT = 404, 409
_LOG = logging.getLogger(__name__)


class LeaseApi(Protocol):
    """What the elector uses of kubernetes.client.CoordinationV1Api."""

    def read_namespaced_lease(self, name: str, namespace: str, *, _request_timeout: float) -> V1Lease:
        """The Lease; ApiException 404 without one."""

    def create_namespaced_lease(self, namespace: str, body: V1Lease, *, _request_timeout: float) -> V1Lease:
        """Make it; ApiException 409 if it is there."""

    def replace_namespaced_lease(self, name: str, namespace: str, body: V1Lease, *, _request_timeout: float) -> V1Lease:
        """Write it; ApiException 409 if it has changed since it was read."""


def end_process(message: str) -> None:
    """End at once, with whatever runs: what this process does now may contradict the new leader."""
    _LOG.critical("%s; the process ends", message)
    logging.shutdown()
    os._exit(1)


@dataclass(frozen=True)
class _Seen:
    """What a Lease said, and when that was new to us."""

    record: tuple[object, ...]
    at: float


class LeaseElector:
    """One candidate. `acquire` and `release` are called by one thread; the rest is safe from any."""

    def __init__(
        self,
        api: LeaseApi,
        lease: settings.Lease,
        namespace: str,
        identity: str,
        on_lost: Callable[[str], None] = end_process,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._api = api
        self._lease = lease
        self._namespace = namespace
        self._identity = identity
        self._on_lost = on_lost
        self._clock = clock
        self._seen: _Seen | None = None
        self._renewed_at: float | None = None
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._holder = ""
        self._answered_at: float | None = None

    @property
    def answered_seconds_ago(self) -> float:
        """Since the API server last answered; infinite before its first answer."""
        return float("inf") if self._answered_at is None else self._clock() - self._answered_at

    def is_held(self) -> bool:
        """Whether this process may act as the leader at this very moment."""
        renewed_at = self._renewed_at
        return renewed_at is not None and self._clock() - renewed_at < self._lease.duration_seconds * _DEADLINE

    def acquire(self, stop: threading.Event) -> bool:
        """Wait until this process leads and keep the Lease renewed from then on; False when `stop` was set first."""
        while not stop.is_set():
            if self._try():
                for target in (self._renew, self._watch):
                    thread = threading.Thread(target=self._guarded, args=(target,), name="lease", daemon=True)
                    self._threads.append(thread)
                    thread.start()
                _LOG.info("%s leads", self._identity)
                return True
            stop.wait(min(self._lease.renew_seconds, _LOOK_SECONDS))
        return False

    def release(self) -> None:
        """Give the Lease up, so that a spare need not wait for its end. Nothing may be done as the leader any more."""
        self._stop.set()
        for thread in self._threads:
            thread.join(2 * _CALL_SECONDS)
        held, self._renewed_at = self.is_held(), None
        if not held:
            return
        try:
            lease = self._read()
            if lease is not None and lease.spec.holder_identity == self._identity:
                lease.spec.holder_identity = ""
                lease.spec.lease_duration_seconds = 1
                lease.spec.renew_time = lease.spec.acquire_time = _now()
                self._write(lease)
                _LOG.info("%s leads no more", self._identity)
        except Exception as error:
            _LOG.warning("the Lease was not released, a spare waits for its end: %s", describe(error))

    def _renew(self) -> None:
        """Renew until the end. Ends the process when another one leads; `_watch` does when the time is over."""
        wait = float(self._lease.renew_seconds)
        while not self._stop.wait(wait):
            if not self.is_held():
                # Stopped for longer than the Lease lasts: not a single write more.
                return self._lost("it could not renew its Lease in time")
            renewed = self._try()
            if not renewed and self._holder not in ("", self._identity):
                return self._lost(f"{self._holder} leads now")
            wait = float(self._lease.renew_seconds) if renewed else min(self._lease.renew_seconds, _LOOK_SECONDS / 2)
        return None

    def _watch(self) -> None:
        while not self._stop.wait(_WATCH_SECONDS):
            if not self.is_held():
                return self._lost("it could not renew its Lease in time")
        return None

    def _lost(self, why: str) -> None:
        if not self._stop.is_set():
            self._stop.set()
            self._renewed_at = None
            self._on_lost(f"{self._identity} has lost the leadership: {why}")

    def _guarded(self, target: Callable[[], None]) -> None:
        try:
            target()
        except BaseException as error:
            _LOG.exception("the elector failed")
            self._lost(describe(error))

    def _try(self) -> bool:
        """One attempt to get or to renew the Lease."""
        asked_at = self._clock()
        try:
            held = self._get_or_renew(asked_at)
        except Exception as error:
            conflict = isinstance(error, ApiException) and error.status == _CONFLICT
            # Two candidates wrote at once: the next look shows who it is.
            _LOG.log(logging.DEBUG if conflict else logging.WARNING, "the Lease: %s", describe(error))
            held = False
        if held:
            self._renewed_at = asked_at
        return held

    def _get_or_renew(self, asked_at: float) -> bool:
        lease = self._read()
        if lease is None:
            spec = self._spec(None)
            body = V1Lease(metadata=V1ObjectMeta(name=self._lease.name, namespace=self._namespace), spec=spec)
            self._api.create_namespaced_lease(self._namespace, body, _request_timeout=_CALL_SECONDS)
            self._answered_at = self._clock()
            self._set_holder(self._identity)
            return True
        old = lease.spec or V1LeaseSpec()
        holder = old.holder_identity or ""
        record = (holder, old.renew_time, old.acquire_time, old.lease_transitions, old.lease_duration_seconds)
        if self._seen is None or self._seen.record != record:
            self._seen = _Seen(record, self._clock())
        self._set_holder(holder)
        lasts = old.lease_duration_seconds or self._lease.duration_seconds
        if holder not in ("", self._identity) and asked_at < self._seen.at + lasts:
            return False
        lease.spec = self._spec(old)
        self._write(lease)
        self._set_holder(self._identity)
        return True

    def _spec(self, old: V1LeaseSpec | None) -> V1LeaseSpec:
        now = _now()
        mine = old is not None and old.holder_identity == self._identity
        transitions = (old.lease_transitions or 0) if old is not None else 0
        return V1LeaseSpec(
            holder_identity=self._identity,
            lease_duration_seconds=self._lease.duration_seconds,
            acquire_time=_micro(old.acquire_time) if old is not None and mine and old.acquire_time else now,
            renew_time=now,
            lease_transitions=transitions if old is None or mine else transitions + 1,
        )

    def _set_holder(self, holder: str) -> None:
        if holder != self._holder and holder not in ("", self._identity):
            _LOG.info("%s leads; %s is the spare", holder, self._identity)
        self._holder = holder

    def _read(self) -> V1Lease | None:
        try:
            lease: V1Lease = self._api.read_namespaced_lease(
                self._lease.name, self._namespace, _request_timeout=_CALL_SECONDS
            )
        except ApiException as error:
            if error.status != _NOT_FOUND:
                raise
            self._answered_at = self._clock()
            return None
        self._answered_at = self._clock()
        return lease

    def _write(self, lease: V1Lease) -> None:
        # With the resourceVersion that was read: refused when anybody wrote in between.
        self._api.replace_namespaced_lease(self._lease.name, self._namespace, lease, _request_timeout=_CALL_SECONDS)


def _now() -> datetime:
    return _micro(datetime.now(UTC))


def _micro(time_: datetime) -> datetime:
    """The API server refuses a MicroTime without a fraction, which is how Python writes zero microseconds."""
    return time_.replace(microsecond=time_.microsecond or 1)
