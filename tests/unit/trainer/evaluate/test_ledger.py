"""The ledger: nothing is lost, nothing is counted twice, and what is broken is said."""

from __future__ import annotations

import asyncio
import threading

import pytest
from tests.memory_store import MemoryStore

from tandem_api.errors import DataError, StorageRefusedError
from tandem_api.records import PredictorCall, ScoredExample
from tandem_api.v1alpha1.status import Artifact, Usage
from tandem_trainer.evaluate.ledger import Ledger

PREFIX = "run/ledger/"


def record(key: str, score: float = 1.0) -> ScoredExample:
    return ScoredExample(
        key=key, candidate="c", example=key, score=score, usage=Usage(calls=1, prompt_tokens=10, completion_tokens=2)
    )


def test_what_was_added_is_loaded_again_whole() -> None:
    store = MemoryStore()
    ledger = Ledger(store, PREFIX)
    call = PredictorCall(predictor="p", inputs={"q": "ü\n\u2028"}, messages=({"role": "user"},), completion="x")
    rich = record("rich").model_copy(update={"prediction": {"a": ["x", 1, None]}, "calls": (call,), "error": "e"})
    for one in (record("a"), record("b", 0.5), rich):
        ledger.add(one)
    ledger.close()
    again = Ledger(store, PREFIX)
    assert again.load() == {"a": record("a"), "b": record("b", 0.5), "rich": rich}
    assert again.get("missing") is None


def test_of_two_records_with_one_key_the_first_wins_and_is_counted_once() -> None:
    store = MemoryStore()
    for score in (1.0, 0.0):
        ledger = Ledger(store, PREFIX)
        ledger.add(record("a", score))
        ledger.add(record("a", 0.25))
        ledger.close()
    again = Ledger(store, PREFIX)
    assert again.load()["a"].score == 1.0
    assert again.usage == Usage(calls=1, prompt_tokens=10, completion_tokens=2)


def test_usage_is_that_of_all_attempts() -> None:
    store = MemoryStore()
    for name in "ab":
        ledger = Ledger(store, PREFIX)
        ledger.load()
        ledger.add(record(name))
        ledger.close()
    assert ledger.usage == Usage(calls=2, prompt_tokens=20, completion_tokens=4)


def test_a_whole_batch_is_written_at_once_and_a_slow_store_gathers_larger_ones() -> None:
    release, writing = threading.Event(), threading.Event()

    def hold(key: str) -> None:
        writing.set()
        assert release.wait(60)

    store = MemoryStore(on_put=hold)
    ledger = Ledger(store, PREFIX, batch=4)
    ledger.add(record("0"))
    assert writing.wait(60)
    for n in range(1, 101):
        ledger.add(record(str(n)))
    release.set()
    ledger.close()
    assert [len(data.splitlines()) for _, data in sorted(store.objects.items())] == [1, 100]


def test_writers_never_share_a_key_and_sort_by_time() -> None:
    store = MemoryStore()
    for n in range(3):
        ledger = Ledger(store, PREFIX)
        ledger.add(record(str(n)))
        ledger.close()
    assert [ScoredExample.model_validate_json(store.objects[key]).key for key in store.list(PREFIX)] == ["0", "1", "2"]


def test_a_garbled_object_is_named_with_its_line() -> None:
    store = MemoryStore()
    store.put(f"{PREFIX}x.jsonl", record("a").model_dump_json().encode() + b'\n{"key": "b", "cand')
    with pytest.raises(DataError, match=r"s3://bucket/run/ledger/x\.jsonl line 2 is not a ScoredExample"):
        Ledger(store, PREFIX).load()


def test_a_store_that_refuses_ends_the_work() -> None:
    def refuse(key: str) -> None:
        raise StorageRefusedError("the server's disk is full")

    ledger = Ledger(MemoryStore(on_put=refuse), PREFIX)
    ledger.add(record("a"))
    with pytest.raises(StorageRefusedError, match="disk is full"):
        ledger.close()
    with pytest.raises(StorageRefusedError, match="disk is full"):
        ledger.add(record("b"))


def test_closing_an_unused_ledger_writes_nothing() -> None:
    store = MemoryStore()
    Ledger(store, PREFIX).close()
    assert not store.objects


def test_records_added_while_the_thread_writes_are_never_lost() -> None:
    store = MemoryStore()
    ledger = Ledger(store, PREFIX, batch=3)
    for n in range(5000):
        ledger.add(record(str(n)))
    ledger.close()
    assert len(Ledger(store, PREFIX).load()) == 5000


def test_a_store_that_is_slower_than_the_model_holds_new_work_back() -> None:
    release = threading.Event()

    class Slow(MemoryStore):
        def put(self, key: str, data: bytes) -> Artifact:
            release.wait(60)
            return super().put(key, data)

    async def scenario() -> None:
        ledger = Ledger(Slow(), PREFIX, batch=2)
        await ledger.room()
        ledger.add(record("a"))
        await ledger.room()
        ledger.add(record("b"))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ledger.room(), 0.2)
        release.set()
        await asyncio.wait_for(ledger.room(), 10)
        ledger.close()

    asyncio.run(scenario())


def test_a_store_that_fails_holds_nobody_back_for_ever() -> None:
    class Broken(MemoryStore):
        def put(self, key: str, data: bytes) -> Artifact:
            raise StorageRefusedError("no rights")

    async def scenario() -> None:
        ledger = Ledger(Broken(), PREFIX, batch=1)
        ledger.add(record("a"))
        await asyncio.wait_for(ledger.room(), 10)
        with pytest.raises(StorageRefusedError):
            ledger.close()

    asyncio.run(scenario())
