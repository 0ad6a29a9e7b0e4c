"""The recorded LM as DSPy uses it: on its own paths, from its threads, with its copies."""

from __future__ import annotations

import asyncio
import copy
import threading
import warnings
from collections.abc import Callable
from typing import Any

import dspy
import pytest
from tests.memory_store import MemoryStore
from tests.scripted_lm.server import Fault, ScriptedServer

from tandem_api.contract import Endpoint
from tandem_api.errors import ServingError
from tandem_api.records import WrittenText
from tandem_trainer.journal import Journal
from tandem_trainer.lm.client import CallFailedError, LMClient
from tandem_trainer.lm.recorded import RecordedLM, Recording
from tandem_trainer.lm.writer import Writer, Writing
from tandem_trainer.program.adapters import build_adapter


def use(
    server: ScriptedServer,
    work: Callable[[RecordedLM], Any],
    *,
    store: MemoryStore | None = None,
    mode: Any = "chat",
) -> Any:
    """What `work` does with the LM in a worker thread."""

    async def main() -> Any:
        journal = Journal(WrittenText, store or MemoryStore(), "calls/")
        journal.load()
        client = LMClient(
            Endpoint(url=server.url, model="base"),
            concurrency=8,
            request_timeout_seconds=5,
            unavailable_timeout_seconds=0.1,
        )
        async with client:
            recording = Recording()
            writer = Writer(client, journal, mode=mode, seed=1)
            lm = RecordedLM(writer, recording, model="base", mode=mode, defaults=Writing(0.0, 64))
            try:
                return await recording.bridge.run_in_thread(lambda: work(lm))
            finally:
                journal.close()

    with warnings.catch_warnings():
        warnings.simplefilter("error", DeprecationWarning)
        return asyncio.run(main())


def seeds(server: ScriptedServer) -> list[int]:
    return [request["seed"] for request in server.requests]


def test_the_same_request_is_the_same_answer_and_is_paid_for_once() -> None:
    with ScriptedServer(lambda request: f"{request['nth']}") as server:
        store = MemoryStore()
        answers = use(
            server, lambda lm: [lm("hi"), lm("hi"), lm(messages=[{"role": "user", "content": "hi"}])], store=store
        )
        assert answers == [["0"]] * 3 and len(server.requests) == 1
        assert use(server, lambda lm: lm("hi"), store=store) == ["0"] and len(server.requests) == 1, "after a restart"


def test_another_rollout_or_sampling_is_another_answer() -> None:
    def work(lm: RecordedLM) -> None:
        for copied in (lm, lm.copy(rollout_id=1, temperature=1.0), lm.copy(rollout_id=2, temperature=1.0)):
            copied("hi")
            copied("hi")
        lm("hi", max_tokens=3)

    with ScriptedServer() as server:
        use(server, work)
    assert len(server.requests) == len(set(seeds(server))) == 4
    assert [request["temperature"] for request in server.requests] == [0.0, 1.0, 1.0, 0.0]


def test_several_completions_differ_and_come_in_one_answer() -> None:
    with ScriptedServer(lambda request: f"{request['seed']}") as server:
        (first, again) = use(server, lambda lm: [lm("hi", n=3), lm("hi", n=3)])
    assert len(set(first)) == 3 and first == again and len(server.requests) == 3


@pytest.mark.parametrize("name", ["chat", "json", "plain"])
def test_predictors_are_answered_on_dspys_own_path(name: Any) -> None:
    texts = {"chat": "[[ ## a ## ]]\n42\n\n[[ ## completed ## ]]", "json": '{"a": "42"}', "plain": " 42"}

    def work(lm: RecordedLM) -> list[str]:
        predict = dspy.Predict("q -> a")
        with dspy.context(lm=lm, adapter=build_adapter(name)):
            return [predict(q="1").a, asyncio.run(predict.acall(q="1")).a]

    with ScriptedServer(lambda _: texts[name]) as server:
        assert use(server, work, mode="completions" if name == "plain" else "chat") == ["42", "42"]
    assert len(server.requests) == 1
    if name == "plain":
        assert server.requests[0]["stop"] == ["\n\n", "\nQ:"], "or a base model would go on with questions of its own"


def test_dspys_threads_are_served_at_once() -> None:
    def work(lm: RecordedLM) -> list[str]:
        predict = dspy.Predict("q -> a")
        with dspy.context(lm=lm, adapter=build_adapter("plain")):
            pairs = [(predict, {"q": str(number)}) for number in range(16)]
            return [prediction.a for prediction in dspy.Parallel(num_threads=8, disable_progress_bar=True)(pairs)]

    with ScriptedServer(lambda request: request["text"].split("Q: ")[1].split()[0], latency=0.02) as server:
        assert use(server, work, mode="completions") == [str(number) for number in range(16)]
    assert server.stats()["max_in_flight"] == 8


def test_copies_share_the_recording_but_not_the_history() -> None:
    def work(lm: RecordedLM) -> None:
        lm("hi")
        copies = [lm.copy(), copy.deepcopy(lm)]
        program = dspy.Predict("q -> a")
        program.lm = lm
        copies.append(program.deepcopy().lm)
        for copied in copies:
            assert copied("hi") == ["hi"] and len(copied.history) == 1
        assert len(lm.history) == 1 and lm.history[0]["outputs"] == ["hi"]
        assert program.dump_state()["lm"]["model"] == "base"
        with dspy.track_usage() as tracker:
            lm("hi")
        assert tracker.get_total_tokens() == {}, "a replay costs nothing; the journal counts"
        assert lm.forward("hi").choices[0].message.content == "hi"

    with ScriptedServer() as server:
        use(server, work)
    assert len(server.requests) == 1


def test_messages_for_a_model_without_roles_become_one_text() -> None:
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."}]
    with ScriptedServer() as server:
        use(server, lambda lm: lm(messages=messages), mode="completions")
    assert server.requests[0]["prompt"] == "Be brief.\n\nHello."


def test_after_a_fault_of_the_server_every_call_fails_at_once() -> None:
    def work(lm: RecordedLM) -> None:
        for _ in range(3):
            with pytest.raises(ServingError):
                lm("hi")
        with pytest.raises(ServingError):
            lm._recording.check()

    with ScriptedServer(lambda _: Fault(status=401)) as server:
        use(server, work)
    assert len(server.requests) == 1


def test_a_refused_call_is_its_own_failure() -> None:
    def work(lm: RecordedLM) -> list[str]:
        with pytest.raises(CallFailedError):
            lm("too long")
        with pytest.raises(ValueError, match="LM parameter 'logprobs'"):
            lm("hi", logprobs=True)
        answer: list[str] = lm("hi")
        return answer

    with ScriptedServer(lambda r: Fault(status=400, text="too long") if "long" in r["text"] else "ok") as server:
        assert use(server, work) == ["ok"]


def test_a_thread_that_outlives_the_step_is_refused() -> None:
    def call_late(lm: RecordedLM) -> None:
        # What DSPy would not take for a score of 0.
        with pytest.raises(asyncio.CancelledError):
            lm("hi")
        refused.set()

    refused = threading.Event()
    with ScriptedServer() as server:
        lm = use(server, lambda lm: lm)
        thread = threading.Thread(target=call_late, args=[lm])
        thread.start()
        thread.join()
    assert refused.is_set() and not server.requests
