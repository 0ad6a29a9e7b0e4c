"""The teacher of a search: another model or another program, on the stage's ledger and budget."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import dspy
import pytest
from tests.scripted_lm.server import ScriptedServer
from tests.scripted_stage import MODEL, ScriptedStage, asked

from tandem_api.contract import ENV_TEACHER_KEY, StageResult
from tandem_api.errors import ConfigurationError, ErrorRateError
from tandem_api.records import ScoredExample
from tandem_api.v1alpha1.prompt_optimizers import Teacher
from tandem_api.v1alpha1.spec import Evaluation
from tandem_trainer.context import StageContext
from tandem_trainer.evaluate.evaluator import Evaluator, Job
from tandem_trainer.program.loading import LoadedProgram
from tandem_trainer.stages.session import Session, open_session

Work = Callable[[Session], Awaitable[None]]


def knows(request: dict[str, Any]) -> str:
    return f"a{asked(request)}"


def thorough() -> dspy.Module:
    """A teacher's program for `question -> answer`."""
    return dspy.Predict(dspy.Signature("question -> answer", "Be thorough."))


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(lambda _: "no idea", models=(MODEL,)) as running:
        yield running


@pytest.fixture
def large() -> Iterator[ScriptedServer]:
    """Somebody else's server; it knows the answers, and serves a model of the very name that ours has, too."""
    with ScriptedServer(knows, models=("large", MODEL)) as running:
        yield running


def stage_of(folder: Path, server: ScriptedServer, work: Work, **fields: Any) -> ScriptedStage:
    """A search's stage that does `work` with its session; its error rate may not be above a half."""

    async def opened(context: StageContext) -> StageResult:
        evaluation = Evaluation(concurrency=4, max_error_rate="0.5")
        spec = context.request.spec.model_copy(update={"evaluation": evaluation})
        context = replace(context, request=context.request.model_copy(update={"spec": spec}))
        async with open_session(context) as session:
            await work(session)
            return StageResult(usage=session.usage)

    return ScriptedStage(folder, server, lambda context: context.run(opened(context)), "p", "optimize", **fields)


async def answers(session: Session, program: LoadedProgram, evaluator: Evaluator) -> list[ScoredExample]:
    """Four training examples, run with the program's own prompts."""
    return await evaluator.run([Job(program.vanilla, example) for example in session.splits.train[:4]], keep_calls=True)


def scores(records: list[ScoredExample]) -> list[float]:
    return [record.score for record in records]


def test_another_model_answers_in_the_programs_place(
    tmp_path: Path, server: ScriptedServer, large: ScriptedServer
) -> None:
    async def work(session: Session) -> None:
        program, evaluator = await session.teacher(Teacher(url=f"{large.url}/v1", model="large"))
        assert program is session.program
        assert scores(await answers(session, program, evaluator)) == [1, 1, 1, 1]
        assert session.usage.calls == 4, "its calls count against the stage"

    stage = stage_of(tmp_path, server, work)
    stage.run()
    assert server.requests == []
    assert {request["model"] for request in large.requests} == {"large"}
    assert {request["endpoint"] for request in large.requests} == {"completions"}, "the plain format's"
    assert stage.calls_of(stage.run) == 0 and len(large.requests) == 4, "a restart replays"


def test_a_teacher_of_the_chat_format_is_asked_over_the_chat_api(
    tmp_path: Path, server: ScriptedServer, large: ScriptedServer
) -> None:
    async def work(session: Session) -> None:
        await answers(session, *await session.teacher(Teacher(url=large.url, model="large")))

    large.lm.answer = lambda _: "[[ ## answer ## ]]\na\n[[ ## completed ## ]]"
    stage_of(tmp_path, server, work, program={"inline": {"signature": "question -> answer"}}).run()
    assert {request["endpoint"] for request in large.requests} == {"chat"}


def test_the_runs_of_a_teacher_are_never_taken_for_the_programs_own(
    tmp_path: Path, server: ScriptedServer, large: ScriptedServer
) -> None:
    """Neither those of a model of the same name elsewhere, nor those of another program on the served model."""

    async def work(session: Session) -> None:
        elsewhere = await session.teacher(Teacher(url=large.url, model=MODEL))
        assert scores(await answers(session, *elsewhere)) == [1, 1, 1, 1]
        assert scores(await answers(session, session.program, session.evaluator)) == [0, 0, 0, 0]
        same = {"entrypoint": f"{__name__}:thorough"}
        assert scores(await answers(session, *await session.teacher(Teacher.model_validate(same)))) == [0, 0, 0, 0]

    stage_of(tmp_path, server, work).run()
    assert (len(large.requests), len(server.requests)) == (4, 8)


def test_another_program_runs_on_the_served_model_or_on_its_own(
    tmp_path: Path, server: ScriptedServer, large: ScriptedServer
) -> None:
    async def work(session: Session) -> None:
        for place in ({}, {"url": large.url, "model": "large"}):
            settings = Teacher.model_validate({"entrypoint": f"{__name__}:thorough", **place})
            program, evaluator = await session.teacher(settings)
            assert program.predictors == session.program.predictors
            await answers(session, program, evaluator)

    stage_of(tmp_path, server, work).run()
    for asked_server, model in ((server, MODEL), (large, "large")):
        assert all("Be thorough." in request["text"] for request in asked_server.requests)
        assert {request["model"] for request in asked_server.requests} == {model}


def test_the_seeds_of_a_teacher_are_the_same_in_every_run_and_others_than_the_programs(
    tmp_path: Path, server: ScriptedServer, large: ScriptedServer
) -> None:
    async def work(session: Session) -> None:
        await answers(session, *await session.teacher(Teacher(url=large.url, model="large")))
        await answers(session, session.program, session.evaluator)

    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        stage_of(folder, server, work).run()
    first, second = ({request["seed"] for request in large.requests[half]} for half in (slice(4), slice(4, 8)))
    assert first == second and len(first) == 4
    assert first.isdisjoint(request["seed"] for request in server.requests)


def test_the_errors_of_a_teacher_count_for_itself_only(
    tmp_path: Path, server: ScriptedServer, large: ScriptedServer
) -> None:
    async def work(session: Session) -> None:
        program, evaluator = await session.teacher(Teacher(url=large.url, model="large"))
        await answers(session, program, evaluator)
        with pytest.raises(ErrorRateError, match=r"(\d) of \1 examples failed"):
            evaluator.check_error_rate()
        await answers(session, session.program, session.evaluator)
        session.evaluator.check_error_rate()

    large.lm.answer = lambda _: "no number"
    program = {"inline": {"signature": "question -> answer: int", "adapter": "plain"}}
    server.lm.answer = lambda _: "1"
    stage_of(tmp_path, server, work, program=program).run()


def test_a_key_goes_only_where_a_secret_is_named_for_it(
    tmp_path: Path, server: ScriptedServer, large: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(session: Session) -> None:
        found = []
        for secret in ("teacher", None):
            client = await session.foreign_client(large.url, "large", secret, ENV_TEACHER_KEY)
            found.append(client._session.headers.get("Authorization"))
        assert found == ["Bearer key", None]

    monkeypatch.setenv(ENV_TEACHER_KEY, "key")
    stage_of(tmp_path, server, work).run()


def test_a_missing_key_is_named_with_its_variable(
    tmp_path: Path, server: ScriptedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(session: Session) -> None:
        await session.teacher(Teacher(url="http://host/v1", model="large", key_secret="writer"))

    monkeypatch.delenv(ENV_TEACHER_KEY, raising=False)
    with pytest.raises(ConfigurationError, match=rf"{ENV_TEACHER_KEY} is not set; .*Secret writer"):
        stage_of(tmp_path, server, work).run()
