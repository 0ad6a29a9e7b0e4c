"""The loss that is told while it falls: in order, without what was taken back, and never in the training's way."""

from __future__ import annotations

import json
import threading

from tests.memory_store import MemoryStore

from tandem_api.errors import StorageUnavailableError
from tandem_trainer.lora.curve import INTERVAL_SECONDS, LossCurve

KEY = "steps/1-w/train/train_log.jsonl"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def told(store: MemoryStore) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in map(json.loads, store.objects.get(KEY, b"").splitlines())]


def tell(store: MemoryStore, begin: int, *losses: float) -> None:
    """An attempt that goes on from step `begin`; each loss comes when the next write is due."""
    clock = Clock()
    curve = LossCurve(store, KEY, clock)
    with curve:
        curve.add(begin, None)
        for step, loss in enumerate(losses, start=begin + 1):
            clock.now += INTERVAL_SECONDS
            curve.add(step, loss)
            curve.add(step, loss)
            assert curve._writing is not None
            curve._writing.result(10)


def test_losses_are_told_as_they_come() -> None:
    store = MemoryStore()
    tell(store, 0, 2.0, 1.5)
    assert told(store) == [(1, 2.0), (2, 1.5)]


def test_an_attempt_that_goes_on_keeps_what_was_told_until_its_checkpoint_and_nothing_after() -> None:
    store = MemoryStore()
    tell(store, 0, 2.0, 1.5, 1.2)
    store.objects[KEY] += b'\n{"step": null}\n{"st'
    tell(store, 2, 1.25)
    assert told(store) == [(1, 2.0), (2, 1.5), (3, 1.25)]


def test_nothing_is_written_more_often_than_people_look() -> None:
    store, puts = MemoryStore(), []
    store.on_put = puts.append
    with LossCurve(store, KEY, Clock()) as curve:
        for step in range(1, 1000):
            curve.add(step, 1.0)
    assert puts == []


def test_a_store_that_is_away_or_slow_does_not_reach_the_training() -> None:
    store, clock, go_on = MemoryStore(), Clock(), threading.Event()

    def fail(key: str) -> None:
        go_on.wait(10)
        raise StorageUnavailableError("away")

    store.on_put = fail
    with LossCurve(store, KEY, clock) as curve:
        for step in range(1, 100):
            clock.now += INTERVAL_SECONDS
            curve.add(step, 1.0)  # the first write has not come back
        go_on.set()
    assert store.objects == {}
