"""DSPy's own optimizers as a `p` step, end to end on a scripted model over real HTTP."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import dspy
import pytest
from tests.scripted_lm.server import Fault, ScriptedServer
from tests.scripted_stage import MODEL, TWO_HOPS, ScriptedStage, asked

from tandem_api.errors import ConfigurationError, PreemptedError, ServingError
from tandem_api.records import PredictorPrompt, PromptSet
from tandem_api.v1alpha1.prompt_optimizers import DspyOptimizer
from tandem_trainer.prompt.dspy import check
from tandem_trainer.stages import optimize

#: What a scripted model writes as an instruction; the program's model answers everything under it.
CLEVER = "Be clever."
PLAIN_TASK = re.compile(r"Question: q\d+\nAnswer:$")
MIPRO = {"class": "MIPROv2", "args": {"auto": None, "num_candidates": 3}, "compileArgs": {"num_trials": 4}}
MIPRO["compileArgs"]["minibatch"] = False  # type: ignore[index]
RANDOM_SEARCH = {
    "class": "BootstrapFewShotWithRandomSearch",
    "args": {"max_bootstrapped_demos": 2, "max_labeled_demos": 2, "num_candidate_programs": 3},
}
COPRO = {"class": "COPRO", "args": {"breadth": 3, "depth": 2}}
SIMBA = {"class": "SIMBA", "args": {"bsize": 8, "num_candidates": 3, "max_steps": 2}}
GEPA = {"class": "GEPA", "args": {"max_metric_calls": 40}}


def clever_when_told(request: dict[str, Any]) -> str:
    """Every fourth question unaided, more with demos, all under a clever instruction; writes such instructions."""
    text = request["text"]
    if "`new_instruction`" in text:  # DSPy's GEPA reflects in JSON, whatever the program's format
        return f'{{"new_instruction": "{CLEVER} {request["seed"]}"}}'
    if not PLAIN_TASK.search(text):
        # Whatever field an optimizer asks for: the plain format's marker is the end of the prompt.
        return f" {CLEVER} {request['seed']}\nProposed prefix for output field: Answer:"
    number, demos = asked(request), len(re.findall(r"^Question: q", text, re.MULTILINE)) - 1
    return f"a{number}" if CLEVER in text or number % 4 <= demos else "no idea"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(clever_when_told, models=("base", MODEL)) as running:
        yield running


@pytest.fixture
def stage(tmp_path: Path, server: ScriptedServer) -> ScriptedStage:
    return ScriptedStage(tmp_path, server, optimize.run, "p", "optimize", optimizer={"type": "dspy", **RANDOM_SEARCH})


def winner(stage: ScriptedStage, result: Any) -> PromptSet:
    assert result.prompt_set is not None
    return PromptSet.model_validate_json(stage.store.fetch(result.prompt_set))


@pytest.mark.parametrize("settings", [RANDOM_SEARCH, MIPRO, COPRO, SIMBA, GEPA], ids=lambda value: value["class"])
def test_optimizers_of_dspy_find_better_prompts_and_a_second_attempt_pays_for_nothing(
    stage: ScriptedStage, settings: dict[str, Any]
) -> None:
    stage.optimizer = {"type": "dspy", **settings}
    result = stage.run()
    assert result.outcome == "done", result.message
    assert [trial["kind"] for trial in stage.trials()] == ["starting", "compiled"]
    (score,) = result.scores
    assert score.n == 8 and score.score > 0.25, "better than the start"
    prompts = winner(stage, result)
    prompt = prompts.predictors["self"]
    assert prompt.demos or CLEVER in prompt.instruction
    for demo in prompt.demos:
        assert set(demo) == {"question", "answer"}, "nothing of DSPy's or the data set's own"
    texts = [request["text"] for request in stage.server.requests]
    assert any(prompt.instruction in text for text in texts), "candidates reach the wire"
    assert stage.server.stats()["calls"] == {MODEL: result.usage.calls}
    assert stage.calls_of(stage.run) == 0
    assert stage.run().prompt_set == result.prompt_set


@pytest.mark.parametrize("settings", [RANDOM_SEARCH, SIMBA, MIPRO], ids=lambda value: value["class"])
def test_a_kill_repeats_at_most_what_was_in_flight_and_changes_nothing(
    stage: ScriptedStage, settings: dict[str, Any]
) -> None:
    stage.optimizer = {"type": "dspy", **settings}
    stage.stop_at(25)
    with pytest.raises(PreemptedError):
        stage.run()
    stage.stopping = type(stage.stopping)()
    resumed = stage.run()
    assert stage.server.stats()["repeats"] <= stage.concurrency
    asked_for = {(request["text"], request["seed"]) for request in stage.server.requests}
    stage.server.requests.clear()
    stage.store = type(stage.store)()
    undisturbed = stage.run()
    assert winner(stage, undisturbed).sha256 == resumed.prompt_set.sha256  # type: ignore[union-attr]
    assert undisturbed.scores[0].score == resumed.scores[0].score
    assert {(request["text"], request["seed"]) for request in stage.server.requests} == asked_for


def test_the_result_does_not_depend_on_threads_and_latency(stage: ScriptedStage) -> None:
    stage.optimizer = {"type": "dspy", **SIMBA}
    first = stage.run()
    stage.store, stage.concurrency = type(stage.store)(), 1
    assert stage.run().prompt_set.sha256 == first.prompt_set.sha256  # type: ignore[union-attr]


def test_the_compiled_prompts_must_beat_the_start(stage: ScriptedStage) -> None:
    stage.start = PromptSet(predictors={"self": PredictorPrompt(instruction=CLEVER)})
    result = stage.run()
    assert result.facts["winner_kind"] == "starting" and result.scores[0].score == 1.0
    assert winner(stage, result) == stage.start


def test_a_dead_server_is_never_a_score_though_dspy_swallows_it(stage: ScriptedStage) -> None:
    def dying(request: dict[str, Any]) -> Any:
        return Fault(status=401) if len(stage.server.requests) > 20 else clever_when_told(request)

    stage.server.lm.answer = dying
    with pytest.raises(ServingError):
        stage.run()
    assert len(stage.server.requests) <= 20 + stage.concurrency, "nothing is asked after the first fault"


def test_a_spent_budget_ends_the_step(stage: ScriptedStage) -> None:
    stage.tokens_left = 200
    result = stage.run()
    assert (result.outcome, result.reason) == ("stopped", "BudgetExhausted")
    assert "BootstrapFewShotWithRandomSearch compiled" in str(result.message)


def test_calls_that_are_refused_and_answers_that_cannot_be_read_do_not_end_the_step(stage: ScriptedStage) -> None:
    def moody(request: dict[str, Any]) -> Any:
        if request["text"].endswith("q2\nAnswer:"):
            return Fault(status=400, text="maximum context length")
        return "" if request["text"].endswith("q3\nAnswer:") else clever_when_told(request)

    stage.server.lm.answer = moody
    assert stage.run().outcome == "done"


def test_programs_of_several_predictors_that_are_async_work(stage: ScriptedStage) -> None:
    def hopping(request: dict[str, Any]) -> str:
        if request["text"].endswith("Query:"):
            return "s"
        return clever_when_told({**request, "text": re.sub(r"\nQuery: .*(?=\nAnswer:)", "", request["text"])})

    stage.server.lm.answer = hopping
    stage.program = TWO_HOPS
    result = stage.run()
    prompts = winner(stage, result)
    assert set(prompts.predictors) == {"search", "answer", "idle"} and prompts.predictors["answer"].demos
    assert stage.calls_of(stage.run) == 0


def test_chat_programs_work(stage: ScriptedStage) -> None:
    def chat(request: dict[str, Any]) -> str:
        number = re.findall(r"\[\[ ## question ## \]\]\nq(\d+)", request["text"])[-1]
        return f"[[ ## answer ## ]]\na{number}\n\n[[ ## completed ## ]]"

    stage.server.lm.answer = chat
    stage.program = {"inline": {"signature": "question -> answer", "adapter": "chat"}}
    stage.run()
    assert {request["endpoint"] for request in stage.server.requests} == {"chat"}


def test_labelled_demos_lose_what_is_not_of_the_signature(stage: ScriptedStage) -> None:
    stage.optimizer = {"type": "dspy", "class": "LabeledFewShot", "args": {"k": 3}}
    demos = winner(stage, stage.run()).predictors["self"].demos
    assert len(demos) == 3 and all(set(demo) == {"question", "answer"} for demo in demos)


class Rewiring:
    """An optimizer whose program has another predictor."""

    def compile(self, student: Any, *, trainset: list[Any]) -> Any:
        return dspy.Predict("question -> verdict")


class Failing:
    def compile(self, student: Any, *, trainset: list[Any]) -> Any:
        raise RuntimeError("out of ideas")


@pytest.mark.parametrize(
    ("name", "message"), [("Rewiring", "differs from yours in the predictors self"), ("Failing", "out of ideas")]
)
def test_an_optimizer_that_fails_or_makes_another_program_is_named(
    stage: ScriptedStage, name: str, message: str
) -> None:
    stage.optimizer = {"type": "dspy", "class": f"{__name__}:{name}"}
    with pytest.raises(ConfigurationError, match=message):
        stage.run()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"class": "Simba"}, r"class: found 'Simba', which is no optimizer of DSPy .*; allowed: .*SIMBA"),
        ({"class": "Predict"}, "no optimizer of DSPy"),
        ({"class": "missing_module:Class"}, "class: 'missing_module' cannot be imported"),
        ({"class": "BootstrapFinetune"}, "tunes weights, which a p step does not; write a w step"),
        ({"class": "BetterTogether"}, "tunes weights"),
        ({"class": "dspy.teleprompt.grpo:GRPO"}, "tunes weights"),
        ({"class": "Ensemble"}, "takes no student and trainset"),
        ({"class": "SIMBA", "args": {"steps": 3}}, r"args: found 'steps'; allowed: .*max_steps"),
        ({"class": "SIMBA", "args": {"metric": "x"}}, "args: found 'metric'; leave it out, that is the metric of"),
        ({"class": "SIMBA", "args": {"prompt_model": "x"}}, "that is the promptOptimizer.proposer"),
        ({"class": "SIMBA", "compileArgs": {"student": 1}}, "compileArgs: found 'student'; leave it out"),
        ({"class": "SIMBA", "compileArgs": {"epochs": 1}}, "compileArgs: found 'epochs'; allowed: seed"),
        ({"class": "MIPROv2", "args": {"auto": "huge"}}, "args: MIPROv2 refuses .*Invalid value for auto"),
        ({"class": "GEPA"}, "args: GEPA refuses .*Exactly one of"),
        ({"class": "InferRules", "args": {"nonsense": 1}}, "args: InferRules refuses"),
    ],
)
def test_settings_that_cannot_work_are_refused_before_any_call(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=f"promptOptimizer.*{message}"):
        check(DspyOptimizer.model_validate(settings))


@pytest.mark.parametrize("settings", [RANDOM_SEARCH, MIPRO, COPRO, SIMBA, GEPA, {"class": "InferRules"}])
def test_settings_that_work_are_accepted(settings: dict[str, Any]) -> None:
    check(DspyOptimizer.model_validate(settings))


def test_a_bad_class_costs_no_call(stage: ScriptedStage) -> None:
    stage.optimizer = {"type": "dspy", "class": "SIMBA", "args": {"steps": 3}}
    with pytest.raises(ConfigurationError):
        stage.run()
    assert not stage.server.requests


def test_another_model_writes_where_an_optimizer_asks_for_one(
    stage: ScriptedStage, make_server: Callable[..., ScriptedServer]
) -> None:
    def writes(request: dict[str, Any]) -> str:
        return f"{CLEVER} {request['seed']}\nProposed prefix for output field: Answer:"

    other = make_server(writes, models=("writer",))
    stage.optimizer = {"type": "dspy", **COPRO, "proposer": {"url": f"{other.url}/v1", "model": "writer"}}
    result = stage.run()
    assert CLEVER in winner(stage, result).predictors["self"].instruction
    assert other.requests and all(request["endpoint"] == "chat" for request in other.requests)
    assert all(PLAIN_TASK.search(request["text"]) for request in stage.server.requests)


@pytest.fixture
def make_server() -> Iterator[Callable[..., ScriptedServer]]:
    running: list[ScriptedServer] = []

    def make(*args: Any, **options: Any) -> ScriptedServer:
        server = ScriptedServer(*args, **options)
        running.append(server.__enter__())
        return server

    yield make
    for server in running:
        server.__exit__(None, None, None)
