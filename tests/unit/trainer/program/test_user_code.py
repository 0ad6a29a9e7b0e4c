"""What programs do beyond one plain call: threads of their own, swallowed errors, agents, direct calls."""

from __future__ import annotations

import asyncio
import threading
import time
import warnings
from typing import Any

import pytest
from tests.scripted_lm.server import Fault, ScriptedServer
from tests.unit.trainer.program.conftest import ProgramMaker, WithRunner, run, run_once

from tandem_api.errors import AdapterMissingError, ServingError
from tandem_trainer.lm.budget import TokenBudget
from tandem_trainer.lm.client import BudgetExhausted
from tandem_trainer.program.running import ProgramRunner

SWALLOWS = """
    class Careless(dspy.Module):
        def __init__(self):
            super().__init__()
            self.answer = dspy.Predict("question -> answer")

        {prefix}def {forward}(self, question):
            try:
                return {wait}self.answer{call}(question=question)
            except Exception:
                return dspy.Prediction(answer="none")
"""


@pytest.mark.parametrize(
    "text",
    [
        SWALLOWS.format(prefix="", forward="forward", wait="", call=""),
        SWALLOWS.format(prefix="async ", forward="aforward", wait="await ", call=".acall"),
    ],
    ids=["sync", "async"],
)
def test_a_dead_server_is_no_score_even_if_the_program_swallows_the_error(
    entrypoint: ProgramMaker, with_runner: WithRunner, text: str
) -> None:
    program = entrypoint(text, name="Careless")
    with ScriptedServer(lambda _: Fault(status=503)) as server, pytest.raises(ServingError):
        run_once(with_runner, server, program)
    with ScriptedServer(models=["other"]) as server, pytest.raises(AdapterMissingError):
        run_once(with_runner, server, program)
    with ScriptedServer() as server, pytest.raises(BudgetExhausted):
        run_once(with_runner, server, program, budget=TokenBudget(0))
    with ScriptedServer(lambda _: Fault(status=400)) as server:
        assert run_once(with_runner, server, program).prediction.answer == "none"


def test_a_synchronous_call_inside_aforward_is_an_error_and_no_dead_lock(
    entrypoint: ProgramMaker, with_runner: WithRunner
) -> None:
    text = """
        class Mixed(dspy.Module):
            def __init__(self):
                super().__init__()
                self.answer = dspy.Predict("question -> answer")

            async def aforward(self, question):
                return self.answer(question=question)
    """
    with ScriptedServer() as server:
        result = run_once(with_runner, server, entrypoint(text, name="Mixed"))

    assert result.status == "program_failed"
    assert "await predictor.acall" in str(result.error)


PARALLEL = """
    import concurrent.futures, contextvars

    class Fan(dspy.Module):
        def __init__(self):
            super().__init__()
            self.answer = dspy.Predict("question -> answer")

        def forward(self, question):
            questions = [f"{{question}}-{{part}}" for part in range(3)]
            {body}
            return dspy.Prediction(answer=" ".join(answer.answer for answer in answers))
"""


@pytest.mark.parametrize(
    "body",
    [
        "answers = dspy.Parallel(num_threads=3, disable_progress_bar=True)"
        "([(self.answer, {'question': q}) for q in questions])",
        "pool = concurrent.futures.ThreadPoolExecutor(); "
        "answers = [f.result() for f in "
        "[pool.submit(contextvars.copy_context().run, self.answer, question=q) for q in questions]]",
    ],
    ids=["dspy.Parallel", "threads"],
)
def test_a_programs_own_threads_belong_to_its_run(entrypoint: ProgramMaker, with_runner: WithRunner, body: str) -> None:
    def answer(request: dict[str, Any]) -> str:
        return " " + request["text"].rsplit("Question: ", 1)[1].split("\n")[0]

    with ScriptedServer(answer) as server:
        result = run_once(with_runner, server, entrypoint(PARALLEL.format(body=body), name="Fan"))

    assert result.prediction.answer == "Why?-0 Why?-1 Why?-2"
    assert sorted(call.inputs["question"] for call in result.calls) == ["Why?-0", "Why?-1", "Why?-2"]


def test_a_thread_without_the_runs_context_is_told_how_to_carry_it(
    entrypoint: ProgramMaker, with_runner: WithRunner
) -> None:
    body = "answers = [concurrent.futures.ThreadPoolExecutor().submit(self.answer, question=question).result()]"
    with ScriptedServer() as server:
        result = run_once(with_runner, server, entrypoint(PARALLEL.format(body=body), name="Fan"))

    assert result.status == "program_failed"
    assert "contextvars.copy_context().run" in str(result.error)


def test_frozen_predictors_run_on_the_served_model_but_are_not_recorded(
    entrypoint: ProgramMaker, with_runner: WithRunner
) -> None:
    text = """
        class Partly(dspy.Module):
            def __init__(self):
                super().__init__()
                self.answer = dspy.Predict("question -> answer")
                self.judge = dspy.ChainOfThought("answer -> verdict")
                self.judge._compiled = True

            def forward(self, question):
                answer = self.answer(question=question).answer
                return dspy.Prediction(answer=answer, verdict=self.judge(answer=answer).verdict)
    """

    def answer(request: dict[str, Any]) -> str:
        return " because.\nVerdict: good" if request["text"].endswith("Reasoning:") else " 42"

    with ScriptedServer(answer) as server:
        result = run_once(with_runner, server, entrypoint(text, name="Partly"))

    assert (result.prediction.answer, result.prediction.verdict) == ("42", "good")
    assert [call.predictor for call in result.calls] == ["answer"]
    assert (result.usage.calls, server.stats()["calls"]) == (2, {"base": 2})


def test_modules_that_copy_predictors_keep_their_names(entrypoint: ProgramMaker, with_runner: WithRunner) -> None:
    text = """
        def build():
            return dspy.BestOfN(
                dspy.ChainOfThought("question -> answer"), N=3, threshold=1.0,
                reward_fn=lambda inputs, prediction: float(prediction.answer == "good"),
            )
    """

    seen: list[int] = []

    def answer(request: dict[str, Any]) -> str:
        seen.append(request["seed"])
        return " hm\nAnswer: good" if len(seen) == 3 else " hm\nAnswer: bad"

    with ScriptedServer(answer) as server:
        result = run_once(with_runner, server, entrypoint(text))

    assert result.prediction.answer == "good"
    assert [call.predictor for call in result.calls] == ["module.predict"] * 3
    assert len(set(seen)) == 3
    assert {request["temperature"] for request in server.requests} == {1.0}


def test_agents_shorten_their_history_when_the_context_is_full(
    entrypoint: ProgramMaker, with_runner: WithRunner
) -> None:
    text = """
        def look_up(word: str) -> str:
            return "a long page about " + word

        def build():
            return dspy.ReAct("question -> answer", tools=[look_up], max_iters=3)
    """

    def answer(request: dict[str, Any]) -> str | Fault:
        prompt = request["text"]
        if prompt.count("a long page about") > 1:
            return Fault(status=400, text="This model's maximum context length is 100 tokens.")
        if "next_thought" in prompt:
            return (
                "[[ ## next_thought ## ]]\nlook\n\n[[ ## next_tool_name ## ]]\nlook_up\n\n"
                '[[ ## next_tool_args ## ]]\n{"word": "x"}\n\n[[ ## completed ## ]]'
            )
        return "[[ ## reasoning ## ]]\nread\n\n[[ ## answer ## ]]\n42\n\n[[ ## completed ## ]]"

    with ScriptedServer(answer) as server:
        result = run_once(with_runner, server, entrypoint(text, adapter="chat"))

    assert (result.status, result.prediction.answer) == ("ok", "42")
    assert {call.predictor for call in result.calls} == {"react", "extract.predict"}


def test_programs_may_call_the_model_directly(entrypoint: ProgramMaker, with_runner: WithRunner) -> None:
    text = """
        class Direct(dspy.Module):
            def __init__(self):
                super().__init__()
                self.answer = dspy.Predict("question -> answer")

            def forward(self, question):
                lm = dspy.settings.lm
                texts = lm("plain text") + lm(messages=[{"role": "user", "content": "chat"}])
                return dspy.Prediction(answer=" ".join(texts))
    """
    with ScriptedServer() as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        result = run_once(with_runner, server, entrypoint(text, name="Direct"))

    assert result.prediction.answer == "text chat"
    assert [request["endpoint"] for request in server.requests] == ["completions", "chat"]
    assert (result.usage.calls, result.calls) == (2, ())


def test_a_sync_program_may_run_an_event_loop_of_its_own(entrypoint: ProgramMaker, with_runner: WithRunner) -> None:
    text = """
        import asyncio

        class Looping(dspy.Module):
            def __init__(self):
                super().__init__()
                self.answer = dspy.Predict("question -> answer")

            def forward(self, question):
                return asyncio.run(self.answer.acall(question=question))
    """
    with ScriptedServer(lambda _: " 42") as server:
        result = run_once(with_runner, server, entrypoint(text, name="Looping"))

    assert (result.status, result.prediction.answer) == ("ok", "42")


def test_a_run_that_is_cancelled_leaves_no_thread_behind(entrypoint: ProgramMaker, with_runner: WithRunner) -> None:
    text = """
        class Stubborn(dspy.Module):
            def __init__(self):
                super().__init__()
                self.answer = dspy.Predict("question -> answer")

            def forward(self, question):
                for _ in range(3):
                    try:
                        return self.answer(question=question)
                    except Exception:
                        pass
    """

    async def work(runner: ProgramRunner) -> None:
        running = asyncio.create_task(run(runner))
        while not server.requests:  # noqa: ASYNC110 - the server, in another thread, has no event to offer
            await asyncio.sleep(0)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running

    with ScriptedServer(latency=600) as server:
        began = time.monotonic()
        with_runner(server, entrypoint(text, name="Stubborn"), work)
        for thread in threading.enumerate():
            if thread.name.startswith("program"):
                thread.join(30)
        assert time.monotonic() - began < 60
        assert len(server.requests) == 1
