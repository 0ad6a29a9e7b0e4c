"""Predictors with a model of their own: they keep it, and what it says is recorded and counted apart."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.scripted_lm.server import Fault, ScriptedServer
from tests.unit.trainer.program.conftest import ProgramMaker, WithRunner, run, run_once

from tandem_api.errors import ConfigurationError
from tandem_api.records import PredictorPrompt, PromptSet
from tandem_trainer.lm.budget import TokenBudget

TWO_MODELS = """
    class TwoModels(dspy.Module):
        def __init__(self, url):
            super().__init__()
            own = dspy.LM("openai/own", api_base=url + "/v1", api_key="none", cache=False, num_retries=0)
            self.search = dspy.Predict("question -> query"{config})
            self.search.lm = own
            self.answer = dspy.Predict("question, query -> answer")

        {prefix}def {forward}(self, question):
            query = ({wait}self.search{call}(question=question)).query
            return {wait}self.answer{call}(question=question, query=query)
"""
SYNC = TWO_MODELS.format(prefix="", forward="forward", wait="", call="", config="")
ASYNC = TWO_MODELS.format(prefix="async ", forward="aforward", wait="await ", call=".acall", config="")
IN_FORMAT = "[[ ## query ## ]]\n{}\n\n[[ ## completed ## ]]"


@pytest.fixture
def own() -> Iterator[ScriptedServer]:
    with ScriptedServer(lambda _: IN_FORMAT.format("a query"), models=("own",)) as server:
        yield server


@pytest.fixture
def served() -> Iterator[ScriptedServer]:
    with ScriptedServer(lambda _: "[[ ## answer ## ]]\n42\n\n[[ ## completed ## ]]") as server:
        yield server


def load(entrypoint: ProgramMaker, own: ScriptedServer, text: str = SYNC, adapter: str = "chat") -> Any:
    return entrypoint(text, name="TwoModels", adapter=adapter, arguments={"url": own.url})


@pytest.mark.parametrize("text", [SYNC, ASYNC], ids=["sync", "async"])
def test_a_predictor_keeps_its_own_model_and_its_calls_are_marked_and_counted_apart(
    entrypoint: ProgramMaker, with_runner: WithRunner, own: ScriptedServer, served: ScriptedServer, text: str
) -> None:
    result = run_once(with_runner, served, load(entrypoint, own, text))

    assert (result.status, result.prediction.answer) == ("ok", "42")
    search, answer = result.calls
    assert (search.predictor, search.own_lm, answer.predictor, answer.own_lm) == ("search", True, "answer", False)
    assert search.inputs == {"question": "Why?"} and search.outputs == {"query": "a query"}
    assert search.completion == IN_FORMAT.format("a query")
    (request,) = own.requests
    assert [dict(message) for message in search.messages] == request["messages"]
    assert (result.usage.calls, result.own_usage.calls) == (1, 1)
    assert len(served.requests) == 1
    assert result.own_usage.prompt_tokens > 0 and result.own_usage.completion_tokens > 0


def test_its_prompts_are_optimized(
    entrypoint: ProgramMaker, with_runner: WithRunner, own: ScriptedServer, served: ScriptedServer
) -> None:
    program = load(entrypoint, own)
    assert program.predictors == ("search", "answer")
    prompts = PromptSet(
        predictors={name: PredictorPrompt(instruction=f"A better {name}.") for name in program.predictors}
    )
    with_runner(served, program, lambda runner: run(runner, prompts))
    assert "A better search." in own.requests[0]["text"] and "A better answer." in served.requests[0]["text"]


def test_copies_of_the_program_share_the_model(entrypoint: ProgramMaker, own: ScriptedServer) -> None:
    program = load(entrypoint, own)
    copies = [program.with_prompts(program.vanilla) for _ in range(2)]
    assert {id(copied.search.lm) for copied in copies} == {id(program.module.search.lm)}


def test_its_failure_is_the_examples_failure_and_never_the_model_servers(
    entrypoint: ProgramMaker, with_runner: WithRunner, own: ScriptedServer, served: ScriptedServer
) -> None:
    own.lm.answer = lambda _: Fault(status=401, text="no such key")
    result = run_once(with_runner, served, load(entrypoint, own))
    assert result.status == "program_failed" and "no such key" in str(result.error)
    assert result.calls == () and not served.requests


def test_its_unreadable_answer_is_recorded(
    entrypoint: ProgramMaker, with_runner: WithRunner, own: ScriptedServer, served: ScriptedServer
) -> None:
    own.lm.answer = lambda _: "no markers"
    result = run_once(with_runner, served, load(entrypoint, own))
    assert result.status == "unparsable"
    (call,) = result.calls
    assert (call.completion, call.outputs, call.own_lm) == ("no markers", None, True)


def test_its_tokens_are_not_those_of_the_budget(
    entrypoint: ProgramMaker, with_runner: WithRunner, own: ScriptedServer, served: ScriptedServer
) -> None:
    own.lm.answer = lambda _: IN_FORMAT.format("many words " * 20)
    budget = TokenBudget(1)
    result = run_once(with_runner, served, load(entrypoint, own), budget=budget)
    assert result.status == "ok" and result.own_usage.tokens > 40


def test_all_its_completions_are_recorded(
    entrypoint: ProgramMaker, with_runner: WithRunner, own: ScriptedServer, served: ScriptedServer
) -> None:
    text = TWO_MODELS.format(prefix="", forward="forward", wait="", call="", config=", n=2")
    result = run_once(with_runner, served, load(entrypoint, own, text))
    assert [call.predictor for call in result.calls] == ["search", "search", "answer"]
    assert all(call.outputs == {"query": "a query"} for call in result.calls[:2])


def test_an_option_that_only_its_own_model_knows_is_allowed(entrypoint: ProgramMaker, own: ScriptedServer) -> None:
    text = TWO_MODELS.format(prefix="", forward="forward", wait="", call="", config=", logprobs=True")
    load(entrypoint, own, text)


def test_a_program_that_would_never_call_the_served_model_is_refused(entrypoint: ProgramMaker) -> None:
    text = """
        def build():
            program = dspy.ChainOfThought("question -> answer")
            program.set_lm(dspy.LM("openai/own"))
            return program
    """
    with pytest.raises(ConfigurationError, match=r"every predictor of ChainOfThought has an LM of its own .*unset"):
        entrypoint(text)
