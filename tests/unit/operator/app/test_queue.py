"""The work queue: each run once, one pass at a time, in time, again after failures, and a clean end."""

from __future__ import annotations

import asyncio
import itertools
import logging
import threading
import time
from collections.abc import Awaitable, Callable
from typing import cast

import pytest
from kubernetes.client import ApiException
from tests.unit.operator.app.helpers import Heard, until_async

from tandem_api.v1alpha1 import OptimizationRun
from tandem_operator.app import queue as queue_module
from tandem_operator.app.queue import Key, Monitors, Outcome, WorkQueue

DONE = Outcome(None, None)
A, B = ("team", "a"), ("team", "b")


class Script:
    """A reconciler that does what it is told, and remembers when it was called."""

    def __init__(self, answer: Callable[[Key, int], Outcome] = lambda key, call: DONE) -> None:
        self.calls: list[tuple[Key, float]] = []
        self.at_once: dict[Key, int] = {}
        self.most_at_once: dict[Key, int] = {}
        self.most = 0
        self._answer = answer
        self._lock = threading.Lock()

    def __call__(self, namespace: str, name: str) -> Outcome:
        key = (namespace, name)
        with self._lock:
            self.calls.append((key, time.monotonic()))
            count = self.count(key)
            self.at_once[key] = self.at_once.get(key, 0) + 1
            self.most_at_once[key] = max(self.most_at_once.get(key, 0), self.at_once[key])
            self.most = max(self.most, sum(self.at_once.values()))
        try:
            return self._answer(key, count)
        finally:
            with self._lock:
                self.at_once[key] -= 1

    def count(self, key: Key) -> int:
        return sum(called == key for called, _ in self.calls)

    def gaps(self, key: Key) -> list[float]:
        times = [at for called, at in self.calls if called == key]
        return [later - earlier for earlier, later in itertools.pairwise(times)]


def play(
    script: Script,
    story: Callable[[WorkQueue], Awaitable[None]],
    workers: int = 4,
    may_work: Callable[[], bool] = lambda: True,
    monitor: Monitors | None = None,
) -> Heard:
    """Run the story beside a working queue."""
    heard = Heard()

    async def main() -> None:
        queue = WorkQueue(script, workers, monitor or heard, may_work)
        working = asyncio.create_task(queue.run())
        try:
            await story(queue)
        finally:
            await queue.stop(5)
            await working

    asyncio.run(main())
    return heard


def test_a_key_is_done_once_however_often_it_was_added() -> None:
    script = Script()

    async def story(queue: WorkQueue) -> None:
        for _ in range(50):
            queue.add(A)
        queue.add(B)
        assert queue.depth == 2
        await until_async(lambda: script.count(B))
        await asyncio.sleep(0.1)
        assert queue.depth == 0

    heard = play(script, story)
    assert (script.count(A), script.count(B)) == (1, 1)
    assert sorted(key for key, _ in heard.passes) == [A, B]


def test_a_key_that_comes_earlier_again_and_again_leaves_nothing_behind() -> None:
    """A finished run with a time to live of weeks was due in weeks after each look at it, and every one of those looks
    left an entry in the queue until then."""
    script = Script()

    async def story(queue: WorkQueue) -> None:
        queue.add(B, 1e6)
        for turn in range(5000):
            queue.add(A, 2e6 - turn)
        assert len(queue._heap) < 200
        queue.add(A)
        queue.add(B)
        await until_async(lambda: script.count(A) == script.count(B) == 1)

    play(script, story)


def test_a_key_that_is_added_during_its_pass_is_done_again_after_it() -> None:
    entered, go = threading.Event(), threading.Event()

    def answer(key: Key, call: int) -> Outcome:
        entered.set()
        go.wait(60)
        return DONE

    script = Script(answer)

    async def story(queue: WorkQueue) -> None:
        queue.add(A)
        await until_async(entered.is_set)
        queue.add(A)
        queue.add(A)
        await asyncio.sleep(0.1)
        assert script.count(A) == 1
        assert queue.longest_pass >= 0.1
        go.set()
        await until_async(lambda: script.count(A) == 2)
        await asyncio.sleep(0.1)

    play(script, story)
    assert script.count(A) == 2
    assert script.most_at_once[A] == 1


def test_a_burst_of_events_costs_two_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pod that starts tells of itself several times, and each of our own writes comes back as an event."""
    monkeypatch.setattr(queue_module, "APART_SECONDS", 0.5)
    there = Outcome(None, cast(OptimizationRun, object()))
    entered = threading.Event()

    def answer(key: Key, call: int) -> Outcome:
        if call == 1:
            entered.set()
            time.sleep(0.1)
        return there

    script = Script(answer)

    async def story(queue: WorkQueue) -> None:
        queue.add(A)
        await until_async(entered.is_set)
        for _ in range(20):  # during the first pass, and after it
            queue.add(A)
            await asyncio.sleep(0.01)
        await until_async(lambda: script.count(A) == 2)
        await asyncio.sleep(0.6)

    play(script, story)
    assert script.count(A) == 2
    assert script.gaps(A)[0] >= 0.6


def test_many_adds_from_all_sides_never_overlap_for_one_key() -> None:
    def answer(key: Key, call: int) -> Outcome:
        time.sleep(0.002)
        return Outcome(0.0 if call < 30 else None, None)

    script = Script(answer)

    async def story(queue: WorkQueue) -> None:
        for turn in range(200):
            queue.add((str(turn % 3), "run"), delay=turn % 5 / 1000)
            await asyncio.sleep(0.001)
        await until_async(lambda: queue.depth == 0 and queue.longest_pass == 0)

    play(script, story, workers=3)
    assert set(script.most_at_once.values()) == {1}
    assert script.most <= 3
    assert all(script.count((space, "run")) >= 30 for space in "012")


def test_no_more_passes_at_once_than_workers() -> None:
    script = Script(lambda key, call: time.sleep(0.05) or DONE)  # type: ignore[func-returns-value]

    async def story(queue: WorkQueue) -> None:
        for number in range(8):
            queue.add(("team", str(number)))
        await until_async(lambda: len(script.calls) == 8)

    play(script, story, workers=2)
    assert script.most == 2


def test_the_earliest_of_the_asked_times_counts() -> None:
    script = Script()

    async def story(queue: WorkQueue) -> None:
        began = time.monotonic()
        queue.add(A, delay=30)
        queue.add(A, delay=0.1)
        queue.add(A, delay=5)
        assert queue.depth == 0
        await until_async(lambda: script.count(A))
        assert 0.09 <= script.calls[0][1] - began < 2

    play(script, story)
    assert script.count(A) == 1


def test_an_outcome_brings_its_run_back() -> None:
    script = Script(lambda key, call: Outcome(0.1 if call < 3 else None, None))

    async def story(queue: WorkQueue) -> None:
        queue.add(A)
        await until_async(lambda: script.count(A) == 3)
        await asyncio.sleep(0.2)

    play(script, story)
    assert script.count(A) == 3
    assert all(0.09 <= gap < 2 for gap in script.gaps(A))


def test_failures_wait_longer_and_longer_and_are_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tandem_operator.app.retry.FIRST_SECONDS", 0.2)

    def answer(key: Key, call: int) -> Outcome:
        if call <= 3 or call == 5:
            raise ValueError("no such thing")
        return Outcome(0.0 if call == 4 else None, None)

    script = Script(answer)

    async def story(queue: WorkQueue) -> None:
        queue.add(A)
        await until_async(lambda: script.count(A) == 6)

    with caplog.at_level(logging.ERROR):
        heard = play(script, story)
    first, second, third, _, after_success = script.gaps(A)
    assert first >= 0.2
    assert second >= 0.4
    assert third >= 0.8
    # The count begins anew after a pass that went well.
    assert 0.2 <= after_success < 1.6
    assert len(heard.errors) == 4
    assert "pass over team/a failed (3 in a row)" in caplog.text
    assert "ValueError: no such thing" in caplog.text


def test_an_event_shortens_the_wait_after_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "EVENT_PAUSE_SECONDS", 0.2)
    monkeypatch.setattr("tandem_operator.app.retry.FIRST_SECONDS", 60.0)

    def answer(key: Key, call: int) -> Outcome:
        if call == 1:
            raise ValueError
        return DONE

    script = Script(answer)

    async def story(queue: WorkQueue) -> None:
        queue.add(A)
        await until_async(lambda: script.count(A) == 1)
        await asyncio.sleep(0.05)
        queue.add(A)
        await until_async(lambda: script.count(A) == 2)

    play(script, story)
    assert 0.2 <= script.gaps(A)[0] < 30


def test_a_failing_pass_is_not_called_at_once_by_the_event_of_its_own_writing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue_module, "EVENT_PAUSE_SECONDS", 0.1)

    def answer(key: Key, call: int) -> Outcome:
        raise ValueError

    script = Script(answer)

    async def story(queue: WorkQueue) -> None:
        began = time.monotonic()
        queue.add(A)
        for _ in range(50):
            await asyncio.sleep(0.01)
            queue.add(A)
        assert 2 <= script.count(A) <= (time.monotonic() - began) / 0.1 + 2

    play(script, story)


def test_a_listener_that_fails_for_one_run_keeps_nobody_from_working_or_hearing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Ill(Heard):
        def passed(self, key: Key, outcome: Outcome, seconds: float) -> None:
            raise ZeroDivisionError

        def failed(self, key: Key, error: Exception, seconds: float) -> None:
            raise ZeroDivisionError

    def answer(key: Key, call: int) -> Outcome:
        if key == A and call == 1:
            raise ApiException(status=409, reason="Conflict")
        return DONE

    script, others = Script(answer), Heard()

    async def story(queue: WorkQueue) -> None:
        queue.add(A)
        await until_async(lambda: script.count(A) == 2)
        queue.add(B)
        await until_async(lambda: len(others.passes) == 2)

    play(script, story, monitor=Monitors(Ill(), others))
    assert [key for key, _ in others.passes] == [A, B]
    assert len(others.errors) == 1
    assert "after a pass over team/a" in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_retry_after_is_honoured_also_by_events() -> None:
    def answer(key: Key, call: int) -> Outcome:
        if call == 1:
            error = ApiException(status=429, reason="Too Many Requests")
            error.headers = {"Retry-After": "1"}
            raise error
        return DONE

    script = Script(answer)

    async def story(queue: WorkQueue) -> None:
        queue.add(A)
        await until_async(lambda: script.count(A) == 1)
        for _ in range(10):
            queue.add(A)
            await asyncio.sleep(0.05)
        await until_async(lambda: script.count(A) == 2)

    play(script, story)
    assert script.gaps(A)[0] >= 1.0
    assert script.count(A) == 2


def test_conflicts_are_tried_again_at_once_and_quietly(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("tandem_operator.app.retry.FIRST_SECONDS", 60.0)

    def answer(key: Key, call: int) -> Outcome:
        if call <= 3:
            raise ApiException(status=409, reason="Conflict")
        return DONE

    script = Script(answer)

    async def story(queue: WorkQueue) -> None:
        queue.add(A)
        await until_async(lambda: script.count(A) == 4)

    with caplog.at_level(logging.DEBUG):
        heard = play(script, story)
    assert max(script.gaps(A)) < 30
    assert len(heard.errors) == 3
    assert "failed" not in caplog.text


def test_the_end_waits_for_passes_and_starts_none() -> None:
    entered, go = threading.Event(), threading.Event()

    def answer(key: Key, call: int) -> Outcome:
        entered.set()
        go.wait(60)
        return Outcome(0.0, None)

    script = Script(answer)

    async def main() -> tuple[bool, bool]:
        queue = WorkQueue(script, 1, Heard(), lambda: True)
        working = asyncio.create_task(queue.run())
        queue.add(A)
        queue.add(B)
        await until_async(entered.is_set)
        in_time = await queue.stop(0.1)
        go.set()
        finished = await queue.stop(5)
        await working
        return in_time, finished

    assert asyncio.run(main()) == (False, True)
    assert len(script.calls) == 1


def test_no_pass_without_the_leadership() -> None:
    script, asked = Script(), []

    async def story(queue: WorkQueue) -> None:
        queue.add(A)
        await until_async(lambda: asked)

    heard = play(script, story, may_work=lambda: bool(asked.append(threading.current_thread().name)))
    assert script.calls == []
    assert heard.passes == []
    # In the pass's own thread, so that nothing lies between the question and the pass.
    assert asked[0].startswith("pass")


def test_a_fault_outside_of_passes_ends_the_queue() -> None:
    class Broken(Heard):
        def passed(self, key: Key, outcome: Outcome, seconds: float) -> None:
            raise RuntimeError("broken monitor")

    async def main() -> None:
        queue = WorkQueue(Script(), 1, Broken(), lambda: True)
        queue.add(A)
        await asyncio.wait_for(queue.run(), 5)

    with pytest.raises(RuntimeError, match="broken monitor"):
        asyncio.run(main())
