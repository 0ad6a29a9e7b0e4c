"""The client against a scripted server over real HTTP: what is retried, what fails whom, and what is counted."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import pytest
from tests.scripted_lm.server import Answer, Fault, ScriptedServer

from tandem_api.contract import Endpoint
from tandem_api.errors import AdapterMissingError, ConfigurationError, ServingError
from tandem_api.v1alpha1.status import Artifact
from tandem_trainer.lm.budget import TokenBudget
from tandem_trainer.lm.client import (
    SUSPECT_AFTER,
    Backoff,
    BudgetExhausted,
    CallFailedError,
    Completion,
    LMCall,
    LMClient,
    PromptTooLongError,
)

T = TypeVar("T")
NO_WAIT = Backoff(first_seconds=0.001, max_seconds=0.002)


def call(prompt: str = "say hello", **changes: Any) -> LMCall:
    fields: dict[str, Any] = {"mode": "completions", "temperature": 0.0, "top_p": 1.0, "max_tokens": 8, "stop": ()}
    return LMCall(messages=({"role": "user", "content": prompt},), **{**fields, "seed": 7, **changes})


def with_client(url: str, work: Callable[[LMClient], Awaitable[T]], *, model: str = "base", **options: Any) -> T:
    """Run `work` with a client that gives up after 0.2 s and hardly waits between tries."""
    options = {
        "concurrency": 8,
        "request_timeout_seconds": 5,
        "unavailable_timeout_seconds": 0.2,
        "backoff": NO_WAIT,
        **options,
    }

    async def run() -> T:
        async with LMClient(Endpoint(url=url, model=model), **options) as client:
            return await work(client)

    return asyncio.run(run())


def complete(answer: Answer, asked: LMCall | None = None, **options: Any) -> tuple[Completion, list[dict[str, Any]]]:
    with ScriptedServer(answer) as server:
        completion = with_client(server.url, lambda client: client.complete(asked or call()), **options)
        return completion, server.requests


def fail_first(fault: Fault) -> Answer:
    return lambda request: fault if request["nth"] == 0 else "fine"


def test_a_completions_call_carries_the_prompt_and_the_sampling() -> None:
    completion, requests = complete(lambda _: " hello", call(stop=("\n\n",), temperature=0.5))

    assert completion == Completion(" hello", "stop", prompt_tokens=2, completion_tokens=2)
    (request,) = requests
    assert request["endpoint"] == "completions"
    wanted = {"prompt": "say hello", "model": "base", "seed": 7, "stop": ["\n\n"], "temperature": 0.5, "max_tokens": 8}
    assert {key: request[key] for key in wanted} == wanted


SEVERAL = Artifact(uri="s3://b/adapter/", sha256="a" * 64, adapters=2)


def with_adapters(server: ScriptedServer, work: Callable[[LMClient], Awaitable[T]]) -> T:
    """Run `work` with a client whose endpoint has the adapters of two predictors."""

    async def run() -> T:
        endpoint = Endpoint(url=server.url, model="run-1", adapter=SEVERAL)
        async with LMClient(
            endpoint, concurrency=2, request_timeout_seconds=5, unavailable_timeout_seconds=0.2, backoff=NO_WAIT
        ) as client:
            return await work(client)

    return asyncio.run(run())


def test_a_call_of_no_predictor_with_an_adapter_goes_to_the_base_model() -> None:
    async def ask(client: LMClient) -> list[str]:
        await client.check_model()
        calls = (client, client.named("run-1-0"), client.named("run-1-1"))
        return [(await each.complete(call())).text for each in calls]

    with ScriptedServer(lambda request: request["model"], models=("base", "run-1-0", "run-1-1")) as server:
        assert with_adapters(server, ask) == ["base", "run-1-0", "run-1-1"]


def test_every_adapter_must_be_served_and_the_base_model_too() -> None:
    for missing in range(3):
        names = ["base", "run-1-0", "run-1-1"]
        wanted = names.pop(missing)
        with (
            ScriptedServer(models=names) as server,
            pytest.raises(AdapterMissingError, match=f"does not serve .*'{wanted}'"),
        ):
            with_adapters(server, lambda client: client.check_model())


def test_an_answer_in_the_name_of_another_adapter_is_refused_though_that_one_is_well() -> None:
    def answer(request: dict[str, Any]) -> str | Fault:
        return Fault(wrong_model="run-1-0") if request["model"] == "run-1-1" else "fine"

    async def ask(client: LMClient) -> None:
        well, other = client.named("run-1-0"), client.named("run-1-1")

        async def go_on() -> None:
            while True:
                await well.complete(call())

        going = asyncio.create_task(go_on())
        try:
            await asyncio.wait_for(other.complete(call()), 30)
        finally:
            going.cancel()

    with (
        ScriptedServer(answer, models=("base", "run-1-0", "run-1-1")) as server,
        pytest.raises(AdapterMissingError, match=r"'run-1-1' after .*in the name of 'run-1-0'"),
    ):
        with_adapters(server, ask)


def test_a_chat_call_carries_its_messages() -> None:
    completion, (request,) = complete(lambda _: "hello", call(mode="chat"))

    assert completion.text == "hello"
    assert request["endpoint"] == "chat"
    assert request["messages"] == [{"role": "user", "content": "say hello"}]
    assert "stop" not in request


@pytest.mark.parametrize(
    "fault",
    [
        Fault(status=429, retry_after=0),
        Fault(status=500),
        Fault(status=503),
        Fault(drop=True),
        Fault(malformed=True),
        Fault(status=404),
        Fault(wrong_model="other"),
    ],
    ids=lambda fault: repr(fault).removeprefix("Fault").split(", latency")[0],
)
def test_a_passing_fault_is_tried_again(fault: Fault) -> None:
    completion, requests = complete(fail_first(fault))

    assert completion.text == "fine"
    assert len(requests) == 2


def test_a_slow_answer_is_given_up_and_asked_for_again() -> None:
    completion, requests = complete(fail_first(Fault(latency=5)), request_timeout_seconds=0.05)

    assert completion.text == "fine"
    assert len(requests) == 2


def test_retry_after_is_waited_for() -> None:
    async def timed(client: LMClient) -> float:
        began = asyncio.get_running_loop().time()
        await client.complete(call())
        return asyncio.get_running_loop().time() - began

    with ScriptedServer(fail_first(Fault(status=429, retry_after=1))) as server:
        assert with_client(server.url, timed, unavailable_timeout_seconds=5) >= 1


def test_a_server_that_is_not_there_is_an_infrastructure_error() -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{unused.getsockname()[1]}"
        with pytest.raises(ServingError, match=r"gave no answer for 0\.2 s"):
            with_client(url, lambda client: client.complete(call()))


def test_a_server_that_fails_every_call_is_an_infrastructure_error() -> None:
    with pytest.raises(ServingError, match="500"):
        complete(lambda _: Fault(status=500))


@pytest.mark.parametrize("fault", [Fault(status=500), Fault(malformed=True)], ids=["500", "garbled"])
def test_a_call_that_fails_alone_is_the_calls_own_failure(fault: Fault) -> None:
    def answer(request: dict[str, Any]) -> str | Fault:
        return fault if request["text"] == "poison" else "fine"

    with ScriptedServer(answer) as server:
        with pytest.raises(CallFailedError, match="answers others"):
            with_client(server.url, lambda client: client.complete(call("poison")), unavailable_timeout_seconds=60)
        assert [request["text"] for request in server.requests] == ["poison"] * SUSPECT_AFTER + ["Hello"]


def test_a_call_that_alone_is_never_answered_in_time_is_the_calls_own_failure() -> None:
    def answer(request: dict[str, Any]) -> str | Fault:
        return Fault(latency=5) if request["text"] == "poison" else "fine"

    with pytest.raises(CallFailedError, match="requestTimeoutSeconds"):
        complete(answer, call("poison"), request_timeout_seconds=0.1)


def test_a_model_that_stays_away_is_a_missing_adapter() -> None:
    with ScriptedServer(models=["base"]) as server, pytest.raises(AdapterMissingError, match="adapter-1"):
        with_client(server.url, lambda client: client.complete(call()), model="adapter-1")


def test_answers_in_another_models_name_are_never_taken() -> None:
    with pytest.raises(AdapterMissingError, match="in the name of 'base-7b'"):
        complete(lambda _: Fault(wrong_model="base-7b"))


def test_a_model_that_comes_back_is_waited_for() -> None:
    with ScriptedServer(models=[]) as server:

        async def work(client: LMClient) -> Completion:
            asked = asyncio.create_task(client.complete(call()))
            while not server.lm.seen:  # noqa: ASYNC110 - the server, in another thread, has no event to offer
                await asyncio.sleep(0)
            server.lm.models.add("base")
            return await asked

        assert with_client(server.url, work, unavailable_timeout_seconds=30).text == "hello"


def test_a_foreign_404_is_not_taken_for_a_missing_adapter() -> None:
    with ScriptedServer() as server, pytest.raises(ServingError, match="404") as caught:
        with_client(f"{server.url}/elsewhere", lambda client: client.complete(call()))
    assert not isinstance(caught.value, AdapterMissingError)


def test_a_refused_call_fails_at_once() -> None:
    with ScriptedServer(lambda _: Fault(status=400, text="temperature is wrong")) as server:
        with pytest.raises(CallFailedError, match="temperature is wrong"):
            with_client(server.url, lambda client: client.complete(call()))
        assert len(server.requests) == 1


def test_a_prompt_that_is_too_long_says_so() -> None:
    message = "This model's maximum context length is 2048 tokens. However, you requested 3000 tokens."
    with pytest.raises(PromptTooLongError, match="2048"):
        complete(lambda _: Fault(status=400, text=message))


def test_a_refused_key_is_an_infrastructure_error_at_once() -> None:
    with ScriptedServer(lambda _: Fault(status=401)) as server:
        with pytest.raises(ServingError, match="API key"):
            with_client(server.url, lambda client: client.complete(call()))
        assert len(server.requests) == 1


def test_a_text_that_is_no_unicode_fails_the_call_only() -> None:
    with pytest.raises(CallFailedError, match="JSON"):
        complete(lambda _: "fine", call("\ud83d"))


def test_usage_counts_answered_calls_only() -> None:
    async def work(client: LMClient) -> tuple[int, int]:
        await asyncio.gather(*(client.complete(call(f"say {word}")) for word in ("one", "two", "three")))
        return client.usage.calls, client.usage.tokens

    with ScriptedServer(lambda request: Fault(status=503) if request["nth"] == 0 else "fine") as server:
        assert with_client(server.url, work) == (3, 9)


def test_a_spent_budget_stops_before_the_next_call() -> None:
    async def work(client: LMClient) -> None:
        await client.complete(call())
        await client.complete(call())
        with pytest.raises(BudgetExhausted, match="6 of 5"):
            await client.complete(call())

    with ScriptedServer() as server:
        with_client(server.url, work, budget=TokenBudget(5))
        assert len(server.requests) == 2


def test_calls_in_flight_are_bounded() -> None:
    async def work(client: LMClient) -> None:
        await asyncio.gather(*(client.complete(call(str(ordinal))) for ordinal in range(40)))

    with ScriptedServer(latency=0.005) as server:
        with_client(server.url, work, concurrency=4)
        assert server.stats()["max_in_flight"] == 4


def test_waiting_for_a_slot_does_not_count_against_a_calls_timeout() -> None:
    async def work(client: LMClient) -> None:
        await asyncio.gather(*(client.complete(call(str(ordinal))) for ordinal in range(8)))

    with ScriptedServer(latency=0.05) as server:
        with_client(server.url, work, concurrency=1, request_timeout_seconds=0.2)
        assert server.stats()["repeats"] == 0


def test_check_model_names_what_is_served() -> None:
    with ScriptedServer(models=["base", "other"]) as server:
        with_client(server.url, lambda client: client.check_model())
        with pytest.raises(AdapterMissingError, match=r"'adapter-1'.*serves base, other"):
            with_client(server.url, lambda client: client.check_model(), model="adapter-1")


def test_calls_that_wait_for_a_slot_ask_again_whether_the_budget_is_spent() -> None:
    async def work(client: LMClient) -> list[Any]:
        return await asyncio.gather(*(client.complete(call()) for _ in range(20)), return_exceptions=True)

    with ScriptedServer() as server:
        answers = with_client(server.url, work, budget=TokenBudget(5), concurrency=1)
        assert len(server.requests) == 2
    assert sum(isinstance(answer, BudgetExhausted) for answer in answers) == 18


@pytest.mark.parametrize("status", [401, 403, 404])
def test_a_model_of_others_that_refuses_us_is_a_mistake_in_the_manifest(status: int) -> None:
    fault = Fault(status=status)
    with ScriptedServer(lambda _: fault) as server, pytest.raises(ConfigurationError, match=r"'gpt'.*keySecret"):
        with_client(server.url, lambda client: client.complete(call()), model="gpt", is_ours=False)
