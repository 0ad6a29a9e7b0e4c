"""The Lease: one leader, taken over in time, released at the end, and never trusted longer than it lasts."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from kubernetes.client import ApiException, V1Lease
from tests.unit.operator.app.helpers import Clock, until

from tandem_operator.app import lease as module
from tandem_operator.app.lease import LeaseElector
from tandem_operator.settings import Lease

SETTINGS = Lease(name="operator", duration_seconds=3, renew_seconds=1)


class FakeApi:
    """One Lease with optimistic locking, and faults on demand."""

    def __init__(self) -> None:
        self.lease: V1Lease | None = None
        self.writes: list[str] = []
        self.fault: Exception | None = None
        self.before_write: Callable[[], None] = lambda: None
        self._version = 0
        self._lock = threading.RLock()

    def read_namespaced_lease(self, name: str, namespace: str, *, _request_timeout: float) -> V1Lease:
        self._fail()
        with self._lock:
            if self.lease is None:
                raise ApiException(status=404)
            return copy.deepcopy(self.lease)

    def create_namespaced_lease(self, namespace: str, body: V1Lease, *, _request_timeout: float) -> V1Lease:
        self.before_write()
        self._fail()
        with self._lock:
            if self.lease is not None:
                raise ApiException(status=409)
            return self._store(body)

    def replace_namespaced_lease(self, name: str, namespace: str, body: V1Lease, *, _request_timeout: float) -> V1Lease:
        self.before_write()
        self._fail()
        with self._lock:
            assert self.lease is not None
            if body.metadata.resource_version != self.lease.metadata.resource_version:
                raise ApiException(status=409)
            return self._store(body)

    def _store(self, body: V1Lease) -> V1Lease:
        self._version += 1
        self.lease = copy.deepcopy(body)
        self.lease.metadata.resource_version = str(self._version)
        assert self.lease.spec.renew_time.microsecond != 0
        self.writes.append(self.lease.spec.holder_identity)
        return copy.deepcopy(self.lease)

    def _fail(self) -> None:
        if self.fault is not None:
            raise self.fault


@pytest.fixture
def api() -> FakeApi:
    return FakeApi()


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOOK_SECONDS", 0.05)
    monkeypatch.setattr(module, "_WATCH_SECONDS", 0.05)


class Candidate:
    def __init__(self, api: FakeApi, name: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.lost: list[str] = []
        self.elector = LeaseElector(api, SETTINGS, "tandem", name, self.lost.append, clock)
        self.stop = threading.Event()
        self.won: list[bool] = []

    def wait_in_background(self) -> None:
        threading.Thread(target=lambda: self.won.append(self.elector.acquire(self.stop)), daemon=True).start()


@contextmanager
def candidates(api: FakeApi, *names: str) -> Iterator[list[Candidate]]:
    found = [Candidate(api, name) for name in names]
    yield found
    for candidate in found:
        candidate.stop.set()
        candidate.elector._stop.set()


def test_the_first_leads_and_renews(api: FakeApi) -> None:
    with candidates(api, "one") as [one]:
        assert one.elector.answered_seconds_ago == float("inf")
        assert not one.elector.is_held()
        assert one.elector.acquire(one.stop)
        assert one.elector.is_held()
        assert one.elector.answered_seconds_ago < 1
        first = api.lease
        until(lambda: len(api.writes) >= 3)
        assert one.elector.is_held()
    assert first is not None
    assert api.lease is not None
    assert api.lease.spec.acquire_time == first.spec.acquire_time
    assert api.lease.spec.renew_time > first.spec.renew_time
    assert (api.lease.spec.lease_transitions, api.lease.spec.lease_duration_seconds) == (0, 3)
    assert one.lost == []


def test_a_spare_waits_and_takes_over_when_the_lease_has_run_out(api: FakeApi) -> None:
    with candidates(api, "one", "two") as [one, two]:
        assert one.elector.acquire(one.stop)
        two.wait_in_background()
        time.sleep(1.5)
        assert two.won == []
        assert not two.elector.is_held()
        # It dies: nothing renews any more.
        one.elector._stop.set()
        died = time.monotonic()
        until(lambda: two.won)
        assert time.monotonic() - died > 1.5
        assert two.elector.is_held()
        assert not one.elector.is_held()
    assert api.lease is not None
    assert api.lease.spec.lease_transitions == 1


def test_the_clocks_of_machines_are_not_compared(api: FakeApi) -> None:
    first = Candidate(api, "one")
    assert first.elector.acquire(first.stop)
    first.elector._stop.set()
    assert api.lease is not None
    # The leader's clock is ten years behind; that must not look like an old renewal.
    api.lease.spec.renew_time = api.lease.spec.renew_time.replace(year=2016)
    clock = Clock()
    spare = Candidate(api, "two", clock)
    assert not spare.elector._try()
    clock.now += 2.9
    assert not spare.elector._try()
    # A renewal, whatever it says, begins the wait anew.
    api.lease.spec.renew_time = api.lease.spec.renew_time.replace(year=2015)
    clock.now += 0.2
    assert not spare.elector._try()
    clock.now += 2.9
    assert not spare.elector._try()
    clock.now += 0.2
    assert spare.elector._try()


def test_a_released_lease_is_taken_at_once(api: FakeApi) -> None:
    with candidates(api, "one", "two") as [one, two]:
        assert one.elector.acquire(one.stop)
        two.wait_in_background()
        time.sleep(0.2)
        one.elector.release()
        released = time.monotonic()
        assert not one.elector.is_held()
        until(lambda: two.won)
        assert time.monotonic() - released < SETTINGS.duration_seconds
    assert one.lost == []
    assert api.writes[-2:] == ["", "two"]


def test_a_lease_of_another_is_not_released(api: FakeApi) -> None:
    with candidates(api, "one") as [one]:
        assert one.elector.acquire(one.stop)
        assert api.lease is not None
        api.lease.spec.holder_identity = "two"
        one.elector.release()
    assert api.lease.spec.holder_identity == "two"


def test_a_spare_can_be_stopped_and_releases_nothing(api: FakeApi) -> None:
    with candidates(api, "one", "two") as [one, two]:
        assert one.elector.acquire(one.stop)
        two.wait_in_background()
        two.stop.set()
        until(lambda: two.won)
        two.elector.release()
        assert two.won == [False]
        assert one.elector.is_held()


def test_of_two_that_write_at_once_one_leads(api: FakeApi) -> None:
    barrier = threading.Barrier(2)
    api.before_write = lambda: barrier.wait(60)
    with candidates(api, "one", "two") as both:
        tries = [threading.Thread(target=lambda c=c: c.won.append(c.elector._try())) for c in both]
        for thread in tries:
            thread.start()
        for thread in tries:
            thread.join()
        assert sorted(c.won[0] for c in both) == [False, True]
        assert sorted(c.elector.is_held() for c in both) == [False, True]
    assert len(api.writes) == 1


def test_a_leader_survives_faults_that_pass(api: FakeApi) -> None:
    with candidates(api, "one") as [one]:
        assert one.elector.acquire(one.stop)
        api.fault = ApiException(status=500)
        time.sleep(1.3)
        assert one.elector.is_held()
        api.fault = None
        until(lambda: len(api.writes) >= 2)
        time.sleep(1.5)
        assert one.elector.is_held()
    assert one.lost == []


def test_a_leader_that_cannot_renew_stops_before_a_spare_may_begin(api: FakeApi) -> None:
    with candidates(api, "one") as [one]:
        assert one.elector.acquire(one.stop)
        began = time.monotonic()
        api.fault = OSError("no route to host")
        until(lambda: not one.elector.is_held())
        assert 1.0 < time.monotonic() - began < SETTINGS.duration_seconds
        until(lambda: one.lost)
    assert one.lost == ["one has lost the leadership: it could not renew its Lease in time"]


def test_a_call_that_hangs_does_not_keep_a_leader_alive(api: FakeApi) -> None:
    with candidates(api, "one") as [one]:
        assert one.elector.acquire(one.stop)
        release = threading.Event()
        api.before_write = lambda: bool(release.wait(10)) and None
        until(lambda: one.lost)
        assert not release.is_set()
        release.set()


def test_a_leader_that_was_paused_writes_nothing_more(api: FakeApi) -> None:
    clock = Clock()
    paused = Candidate(api, "one", clock)
    assert paused.elector.acquire(paused.stop)
    clock.now += 2.1  # two thirds of three seconds have passed in one go
    assert not paused.elector.is_held()
    until(lambda: paused.lost)
    time.sleep(1.2)
    assert api.writes == ["one"]


def test_a_leader_that_sees_another_stops_at_once(api: FakeApi) -> None:
    with candidates(api, "one") as [one]:
        assert one.elector.acquire(one.stop)
        assert api.lease is not None
        api.lease.spec.holder_identity = "two"
        until(lambda: one.lost)
        assert not one.elector.is_held()
    assert one.lost == ["one has lost the leadership: two leads now"]
    assert api.lease.spec.holder_identity == "two"


def test_a_container_that_was_started_anew_goes_on_with_its_lease(api: FakeApi) -> None:
    with candidates(api, "one", "one") as [before, after]:
        assert before.elector.acquire(before.stop)
        before.elector._stop.set()
        began = time.monotonic()
        assert after.elector.acquire(after.stop)
        assert time.monotonic() - began < SETTINGS.duration_seconds
    assert api.lease is not None
    assert api.lease.spec.lease_transitions == 0
