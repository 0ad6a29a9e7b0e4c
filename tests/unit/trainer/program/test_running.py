"""Runs of programs on a scripted server: what reaches the wire, what is recorded, and whose failure is whose."""

from __future__ import annotations

import asyncio
import warnings
from typing import Any

import pytest
from tests.scripted_lm.server import Fault, ScriptedServer
from tests.unit.trainer.program.conftest import ProgramMaker, WithRunner, run, run_once

from tandem_api.records import PredictorPrompt, PromptSet
from tandem_api.v1alpha1.spec import Sampling
from tandem_trainer.program.running import ProgramRun, ProgramRunner

MULTI_HOP = """
    class MultiHop(dspy.Module):
        def __init__(self):
            super().__init__()
            self.query = dspy.Predict("question, hop: int -> search_query")
            self.answer = dspy.Predict("queries: list[str], question -> answer")

        {prefix}def {forward}(self, question):
            queries = []
            for hop in (1, 2):
                queries.append(({wait}self.query{call}(question=question, hop=hop)).search_query)
            return {wait}self.answer{call}(queries=queries, question=question)
"""
SYNC_HOPS = MULTI_HOP.format(prefix="", forward="forward", wait="", call="")
ASYNC_HOPS = MULTI_HOP.format(prefix="async ", forward="aforward", wait="await ", call=".acall")


def answer_hops(request: dict[str, Any]) -> str:
    """Answers that name what was asked, so that a mix-up of concurrent runs shows."""
    question = request["text"].rsplit("Question: ", 1)[1].split("\n")[0]
    if request["text"].endswith("Search query:"):
        return f" query {request['text'].rsplit('Hop: ', 1)[1][0]} for {question}"
    return f" answer to {question}"


def test_a_run_answers_and_records_its_call(inline: ProgramMaker, with_runner: WithRunner) -> None:
    with ScriptedServer(lambda _: " 42") as server:
        result = run_once(with_runner, server, inline(instructions="Answer."))

    assert (result.status, result.error, result.prediction.answer) == ("ok", None, "42")
    (call,) = result.calls
    assert call.predictor == "self"
    assert call.inputs == {"question": "Why?"}
    assert call.messages == ({"role": "user", "content": "Answer.\n\nQuestion: Why?\nAnswer:"},)
    assert (call.completion, call.outputs) == (" 42", {"answer": "42"})
    assert (result.usage.calls, result.usage.completion_tokens) == (1, 2)
    assert server.requests[0]["prompt"] == call.messages[0]["content"]
    assert server.requests[0]["stop"] == ["\n\n", "\nQuestion:"]


@pytest.mark.parametrize("adapter", ["plain", "chat", "json"])
def test_a_candidates_instruction_and_demos_reach_the_wire(
    inline: ProgramMaker, with_runner: WithRunner, adapter: str
) -> None:
    texts = {
        "plain": " 42",
        "chat": "[[ ## answer ## ]]\n42\n\n[[ ## completed ## ]]",
        "json": '{"answer": "42"}',
    }
    demo = {"question": "A demo question?", "answer": "A demo answer."}
    prompts = PromptSet(predictors={"self": PredictorPrompt(instruction="A better instruction.", demos=(demo,))})
    with ScriptedServer(lambda _: texts[adapter]) as server:
        program = inline(adapter=adapter)
        result = with_runner(server, program, lambda runner: run(runner, prompts))

    assert (result.status, result.prediction.answer) == ("ok", "42")
    (request,) = server.requests
    for text in ("A better instruction.", "A demo question?", "A demo answer.", "Why?"):
        assert text in request["text"]
    assert result.calls[0].messages == program.render("self", prompts.predictors["self"], {"question": "Why?"})


@pytest.mark.parametrize("text", [SYNC_HOPS, ASYNC_HOPS], ids=["sync", "async"])
def test_every_call_of_every_predictor_is_recorded_in_order(
    entrypoint: ProgramMaker, with_runner: WithRunner, text: str
) -> None:
    with ScriptedServer(answer_hops) as server:
        result = run_once(with_runner, server, entrypoint(text, name="MultiHop"))

    assert result.prediction.answer == "answer to Why?"
    assert [(call.predictor, call.inputs.get("hop")) for call in result.calls] == [
        ("query", 1),
        ("query", 2),
        ("answer", None),
    ]
    assert result.calls[2].inputs["queries"] == ["query 1 for Why?", "query 2 for Why?"]
    assert result.usage.calls == 3


@pytest.mark.parametrize("text", [SYNC_HOPS, ASYNC_HOPS], ids=["sync", "async"])
def test_concurrent_runs_never_mix(entrypoint: ProgramMaker, with_runner: WithRunner, text: str) -> None:
    questions = [f"q{ordinal}" for ordinal in range(40)]

    async def work(runner: ProgramRunner) -> list[ProgramRun]:
        return await asyncio.gather(*(run(runner, example_id=q, inputs={"question": q}) for q in questions))

    with ScriptedServer(answer_hops, latency=0.002) as server:
        results = with_runner(server, entrypoint(text, name="MultiHop"), work)

    for question, result in zip(questions, results, strict=True):
        assert result.prediction.answer == f"answer to {question}"
        assert [call.inputs["question"] for call in result.calls] == [question] * 3
        assert result.usage.calls == 3


def test_seeds_do_not_depend_on_the_order_of_arrival(entrypoint: ProgramMaker, with_runner: WithRunner) -> None:
    def seeds_by_prompt(order: list[str], latency: float) -> dict[tuple[str, int], list[int]]:
        async def work(runner: ProgramRunner) -> None:
            jobs = [(question, sample) for question in order for sample in (0, 1)]
            await asyncio.gather(
                *(run(runner, example_id=q, inputs={"question": q}, sample=sample) for q, sample in jobs)
            )

        with ScriptedServer(answer_hops, latency=latency) as server:
            with_runner(server, entrypoint(ASYNC_HOPS, name="MultiHop"), work)
        seeds: dict[Any, list[int]] = {}
        for request in server.requests:
            seeds.setdefault(request["text"], []).append(request["seed"])
        return {prompt: sorted(values) for prompt, values in seeds.items()}

    questions = [f"q{ordinal}" for ordinal in range(5)]
    seeds = seeds_by_prompt(questions, 0)

    assert seeds_by_prompt(questions[::-1], 0.003) == seeds
    drawn = [seed for values in seeds.values() for seed in values]
    assert len(set(drawn)) == len(drawn) == 5 * 2 * 3


def test_asking_the_same_again_in_one_run_draws_another_seed(entrypoint: ProgramMaker, with_runner: WithRunner) -> None:
    text = """
        class Vote(dspy.Module):
            def __init__(self):
                super().__init__()
                self.answer = dspy.Predict("question -> answer", n=2)

            def forward(self, question):
                self.answer(question=question)
                return self.answer(question=question)
    """
    with ScriptedServer(lambda _: " 42") as server:
        result = run_once(with_runner, server, entrypoint(text, name="Vote"))

    assert len({request["seed"] for request in server.requests}) == 4
    assert len(result.calls) == 4
    assert len(result.prediction.completions) == 2


def test_an_unreadable_answer_is_unparsable_and_recorded(inline: ProgramMaker, with_runner: WithRunner) -> None:
    with ScriptedServer(lambda _: " many") as server:
        result = run_once(with_runner, server, inline("question -> answer: int"))

    assert (result.status, result.prediction) == ("unparsable", None)
    assert "'Answer:' found 'many'" in str(result.error)
    assert (result.calls[0].completion, result.calls[0].outputs) == (" many", None)


def test_a_lost_chat_format_is_not_asked_for_again_in_json(inline: ProgramMaker, with_runner: WithRunner) -> None:
    with ScriptedServer(lambda _: "no markers") as server:
        result = run_once(with_runner, server, inline(adapter="chat"))

    assert result.status == "unparsable"
    assert len(server.requests) == 1


def test_a_refused_call_is_the_examples_failure(inline: ProgramMaker, with_runner: WithRunner) -> None:
    with ScriptedServer(lambda _: Fault(status=400, text="too much")) as server:
        result = run_once(with_runner, server, inline())

    assert (result.status, result.error) == ("call_failed", "HTTP 400: too much")


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("raise KeyError('x')", "KeyError: 'x' (user_program.py:8)"),
        ("raise SystemExit(1)", "SystemExit: 1 (user_program.py:8)"),
        ("return 42", "the program returned a 'int'; it must return a dspy.Prediction"),
    ],
)
@pytest.mark.parametrize("forward", ["def forward", "async def aforward"])
def test_a_fault_of_the_program_is_the_examples_failure_and_names_its_line(
    entrypoint: ProgramMaker, with_runner: WithRunner, forward: str, body: str, error: str
) -> None:
    text = f"""
        class Broken(dspy.Module):
            def __init__(self):
                super().__init__()
                self.answer = dspy.Predict("question -> answer")
            {forward}(self, question):
                {body}
    """
    with ScriptedServer() as server:
        result = run_once(with_runner, server, entrypoint(text, name="Broken"))

    assert (result.status, result.error) == ("program_failed", error)


def test_the_programs_own_sampling_wins_over_the_stages(entrypoint: ProgramMaker, with_runner: WithRunner) -> None:
    text = 'def build(): return dspy.Predict("question -> answer", temperature=0.9, stop="END")'
    sampling = Sampling(temperature="0.2", top_p="0.5", max_tokens=9, stop=("STOP",))
    with ScriptedServer(lambda _: " 42") as server:
        with_runner(server, entrypoint(text), lambda runner: run(runner, sampling=sampling))

    (request,) = server.requests
    assert (request["temperature"], request["top_p"], request["max_tokens"]) == (0.9, 0.5, 9)
    assert request["stop"] == ["\n\n", "\nQuestion:", "END", "STOP"]


@pytest.mark.parametrize("adapter", ["plain", "chat", "json"])
def test_users_see_no_deprecation_warnings(inline: ProgramMaker, with_runner: WithRunner, adapter: str) -> None:
    with ScriptedServer(lambda _: " 42") as server, warnings.catch_warnings():
        warnings.simplefilter("error")
        run_once(with_runner, server, inline(adapter=adapter))
    assert len(server.requests) == 1


def test_values_that_json_cannot_hold_are_recorded_as_text(entrypoint: ProgramMaker, with_runner: WithRunner) -> None:
    text = """
        import datetime, fractions

        class Typed(dspy.Module):
            def __init__(self):
                super().__init__()
                self.answer = dspy.Predict("question: list -> answer")

            def forward(self, question):
                values = [datetime.date(2024, 2, 29), fractions.Fraction(1, 3), float("nan"), {1: (2,)}]
                return self.answer(question=values)
    """
    with ScriptedServer(lambda _: " 42") as server:
        result = run_once(with_runner, server, entrypoint(text, name="Typed"))

    assert result.calls[0].inputs == {"question": ["2024-02-29", "1/3", "nan", {"1": [2]}]}
