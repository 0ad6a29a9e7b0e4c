"""The writer: what a model wrote is kept as it comes, also what it refused to write."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from tests.memory_store import MemoryStore
from tests.scripted_lm.server import Fault, ScriptedServer

from tandem_api.contract import Endpoint
from tandem_api.records import WrittenText
from tandem_trainer.journal import Journal
from tandem_trainer.lm.client import CallFailedError, LMClient
from tandem_trainer.lm.writer import Writer, Writing

HOW = Writing(temperature=0.7, max_tokens=16)
ASK = [{"role": "user", "content": "write"}]


def use(server: ScriptedServer, store: MemoryStore, work: Callable[[Writer], Awaitable[Any]]) -> Any:
    """What `work` does with a writer of a new attempt."""

    async def main() -> Any:
        journal = Journal(WrittenText, store, "calls/")
        journal.load()
        endpoint = Endpoint(url=server.url, model="base")
        options = {"concurrency": 4, "request_timeout_seconds": 5, "unavailable_timeout_seconds": 0.1}
        async with LMClient(endpoint, **options) as client:
            try:
                return await work(Writer(client, journal, mode="chat", seed=1))
            finally:
                journal.close()

    return asyncio.run(main())


def test_what_was_written_is_not_asked_again_and_askers_are_told_apart() -> None:
    async def work(writer: Writer) -> list[Any]:
        return [await writer.write(ASK, HOW, key=[name]) for name in ("a", "b", "a")]

    store = MemoryStore()
    with ScriptedServer(lambda request: f"text {request['seed']}") as server:
        first = use(server, store, work)
        assert first[0] == first[2] != first[1]
        assert use(server, store, work) == first
        assert len(server.requests) == 2


def test_one_refused_completion_of_several_loses_no_other() -> None:
    store, several = MemoryStore(), Writing(0.7, 16, count=6)
    numbers = itertools.count()
    with ScriptedServer(lambda _: Fault(status=400) if next(numbers) == 4 else "fine") as server:
        for _ in range(2):
            with pytest.raises(CallFailedError):
                use(server, store, lambda writer: writer.write(ASK, several))
        assert len(server.requests) == 6


def test_a_refusal_is_replayed_though_the_server_would_answer_now() -> None:
    store = MemoryStore()
    with ScriptedServer(lambda _: Fault(status=400)) as server, pytest.raises(CallFailedError, match="400"):
        use(server, store, lambda writer: writer.write(ASK, HOW))
    with ScriptedServer() as server:
        with pytest.raises(CallFailedError, match="400"):
            use(server, store, lambda writer: writer.write(ASK, HOW))
        assert not server.requests
