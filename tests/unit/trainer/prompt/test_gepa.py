"""GEPA end to end: the gepa library drives the optimize stage against a scripted model that obeys instructions."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.scripted_lm.server import Fault, ScriptedServer
from tests.scripted_stage import MODEL, TWO_HOPS, ScriptedStage, asked

from tandem_api.errors import ConfigurationError, PreemptedError, ServingError
from tandem_api.records import PredictorPrompt, PromptSet
from tandem_api.v1alpha1.prompt_optimizers import Gepa
from tandem_trainer.prompt.gepa import check, run_limit
from tandem_trainer.stages import optimize

REFLECTION = "I provided an assistant with the following instructions"
LEVEL = re.compile(r"Level (\d)")


def obeys_its_level(request: dict[str, Any]) -> str:
    """Answers more questions with every level of its instruction; as a reflecting model it raises the level by one."""
    found = LEVEL.search(request["text"])
    level = int(found.group(1)) if found else 0
    if request["text"].startswith(REFLECTION):
        return f"```\nLevel {level + 1}. Sampled with {request['seed']}.\n```"
    number = asked(request)
    return f"a{number}" if number % 4 <= level else "no idea"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(obeys_its_level, models=("base", MODEL)) as running:
        yield running


@pytest.fixture
def stage(tmp_path: Path, server: ScriptedServer) -> ScriptedStage:
    settings = {"type": "gepa", "maxMetricCalls": 120}
    return ScriptedStage(tmp_path, server, optimize.run, "p", "optimize", optimizer=settings)


def reflections(server: ScriptedServer) -> list[str]:
    return [request["text"] for request in server.requests if request["text"].startswith(REFLECTION)]


def test_reflection_finds_better_instructions_and_every_call_names_the_served_model(stage: ScriptedStage) -> None:
    result = stage.run()
    assert result.outcome == "done" and result.prompt_set is not None
    winner = PromptSet.model_validate_json(stage.store.fetch(result.prompt_set))
    assert winner.predictors["self"].instruction.startswith("Level 3.")
    (score,) = result.scores
    assert (score.score, score.n) == (1.0, 8)
    assert result.facts["winner_kind"] == "reflected"
    assert stage.server.stats()["calls"] == {MODEL: result.usage.calls}
    assert any(request["text"].startswith("Level 3.") for request in stage.server.requests)


def test_trials_tell_of_every_candidate_that_was_scored_in_full(stage: ScriptedStage) -> None:
    result = stage.run()
    trials = stage.trials()
    assert [trial["kind"] for trial in trials] == ["starting", *["reflected"] * (len(trials) - 1)]
    assert len(trials) == result.facts["candidates"] and len(trials) >= 4
    assert all(trial["n"] == trial["full"]["n"] == 8 for trial in trials)
    assert trials[0]["score"] == 0.25 and max(trial["score"] for trial in trials) == 1.0


def test_the_runs_stay_within_the_limit(stage: ScriptedStage) -> None:
    stage.optimizer = {"type": "gepa", "maxMetricCalls": 30}
    result = stage.run()
    assert int(result.facts["metric_calls"]) <= 30
    assert len(stage.server.requests) - len(reflections(stage.server)) <= 30


def test_a_limit_that_leaves_no_room_for_a_new_candidate_is_told_with_what_one_needs(stage: ScriptedStage) -> None:
    """8 validation examples, 3 in a minibatch: 8 for the start, 6 to reflect and to try, 8 for the new candidate."""
    stage.optimizer = {"type": "gepa", "maxMetricCalls": 21}
    result = stage.run()
    assert (result.outcome, result.facts["candidates"]) == ("done", 1)
    assert result.message is not None
    assert result.message.startswith("promptOptimizer.maxMetricCalls: found 21; no new candidate fits: ")
    assert result.message.endswith("; allowed: at least 22")


def test_a_limit_with_room_for_one_new_candidate_finds_one_and_says_nothing(stage: ScriptedStage) -> None:
    stage.optimizer = {"type": "gepa", "maxMetricCalls": 22}
    result = stage.run()
    assert (result.facts["candidates"], result.message) == (2, None)


def test_the_winner_of_a_search_on_a_part_is_scored_on_all_of_validation(stage: ScriptedStage) -> None:
    stage.optimizer = {"type": "gepa", "maxMetricCalls": 60, "validationSize": 4}
    result = stage.run()
    assert result.scores[0].n == 8 and result.scores[0].score > 0.25
    assert result.facts["search_examples"] == 4
    winner = stage.trials()[int(result.facts["winner"])]
    assert winner["n"] == 4 and winner["full"]["n"] == 8 and stage.trials()[0]["full"]["n"] == 8


def test_without_an_example_to_reflect_on_the_start_wins(stage: ScriptedStage) -> None:
    stage.train = stage.validation
    result = stage.run()
    assert (result.outcome, result.facts["winner_kind"], result.scores[0].n) == ("done", "starting", 8)
    assert not reflections(stage.server)


def test_a_second_attempt_pays_for_nothing_and_finds_the_same(stage: ScriptedStage) -> None:
    first = stage.run()
    trials = stage.trials()
    assert stage.calls_of(stage.run) == 0
    assert stage.run().prompt_set == first.prompt_set and stage.trials() == trials


@pytest.mark.parametrize("calls", [3, 20, 41])
def test_a_kill_costs_at_most_what_was_in_flight_and_changes_nothing(stage: ScriptedStage, calls: int) -> None:
    stage.stop_at(calls)
    with pytest.raises(PreemptedError):
        stage.run()
    stage.stopping = type(stage.stopping)()
    resumed = stage.run()
    stats = stage.server.stats()
    assert stats["repeats"] <= stage.concurrency
    asked_for = {(request["text"], request["seed"]) for request in stage.server.requests}
    stage.store = type(stage.store)()
    stage.server.requests.clear()
    undisturbed = stage.run()
    assert resumed.scores[0].score == undisturbed.scores[0].score
    assert resumed.prompt_set is not None and undisturbed.prompt_set is not None
    assert resumed.prompt_set.sha256 == undisturbed.prompt_set.sha256
    assert {(request["text"], request["seed"]) for request in stage.server.requests} == asked_for


def test_the_reflection_is_shown_inputs_outputs_errors_and_the_metrics_feedback(
    stage: ScriptedStage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "feedback_metric.py").write_text(
        "def metric(example, prediction, trace=None):\n"
        "    right = prediction.answer == example.answer\n"
        "    return {'score': float(right), 'feedback': f'Think of {example.answer} again.'}\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    request = stage.request()

    def with_metric() -> Any:
        spec = request.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
        spec["metric"] = {"entrypoint": "feedback_metric:metric"}
        return type(request).model_validate({**request.model_dump(mode="json"), "spec": spec})

    monkeypatch.setattr(stage, "request", with_metric)
    stage.run()
    shown = reflections(stage.server)[0]
    assert re.search(r"## Inputs\n### question\nq\d+", shown)
    assert "### answer\nno idea" in shown and "Expected answer: a" in shown
    assert "The program's final answer scored 0; the best score is 1." in shown
    assert re.search(r"Think of a\d+ again\.", shown)


def test_programs_of_several_predictors_keep_their_demos_and_are_changed_one_predictor_at_a_time(
    stage: ScriptedStage,
) -> None:
    def hopping(request: dict[str, Any]) -> str:
        if request["text"].startswith(REFLECTION):
            return obeys_its_level(request)
        if request["text"].endswith("Query:"):
            return "s"
        return obeys_its_level(request)

    demo = {"question": "q1", "query": "s", "answer": "a1"}
    stage.server.lm.answer = hopping
    stage.program = TWO_HOPS
    plain = PredictorPrompt(instruction="Do it.")
    stage.start = PromptSet(
        predictors={"search": plain, "answer": PredictorPrompt(instruction="Do it.", demos=(demo,)), "idle": plain}
    )
    stage.optimizer = {"type": "gepa", "maxMetricCalls": 150}
    result = stage.run()
    assert result.prompt_set is not None and result.scores[0].score == 1.0
    for prompts in stage.prompt_sets():
        assert prompts.predictors["answer"].demos == (demo,)
        assert prompts.predictors["idle"].instruction == "Do it.", "it is never called, so nothing is known of it"
    assert any("### hop" in text for text in reflections(stage.server)), "it reflects on every predictor in turn"


def test_a_budget_that_ends_gives_the_best_candidate_scored_in_full_so_far(stage: ScriptedStage) -> None:
    undisturbed = stage.run()
    stage.store = type(stage.store)()
    stage.tokens_left = undisturbed.usage.tokens * 2 // 3
    result = stage.run()
    assert (result.outcome, result.reason) == ("stopped", "BudgetExhausted")
    assert result.scores and result.scores[0].n == 8
    best = max(trial["score"] for trial in stage.trials() if trial["n"] == 8)
    assert result.scores[0].score == best


def test_a_dead_server_is_never_a_score_also_where_the_library_swallows_it(stage: ScriptedStage) -> None:
    def broken(request: dict[str, Any]) -> Any:
        return Fault(status=401) if request["text"].startswith(REFLECTION) else obeys_its_level(request)

    stage.server.lm.answer = broken
    with pytest.raises(ServingError):
        stage.run()


def test_a_reflection_that_is_refused_costs_only_that_reflection(stage: ScriptedStage) -> None:
    def refuses_once(request: dict[str, Any]) -> Any:
        if request["text"].startswith(REFLECTION) and len(reflections(stage.server)) <= 2:
            return Fault(status=400, text="maximum context length")
        return obeys_its_level(request)

    stage.server.lm.answer = refuses_once
    assert stage.run().scores[0].score > 0.25


def test_nothing_is_printed(stage: ScriptedStage, capsys: pytest.CaptureFixture[str]) -> None:
    stage.run()
    assert capsys.readouterr().out == ""


def test_settings_that_leave_no_room_for_a_reflection_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"maxMetricCalls: found 6; allowed: at least 7"):
        check(Gepa(max_metric_calls=6))
    check(Gepa(max_metric_calls=7))


def test_auto_is_a_multiple_of_a_full_evaluation() -> None:
    assert run_limit(Gepa(), predictors=1, examples=50) == 50 + 6 * (50 + 12)
    assert run_limit(Gepa(auto="heavy"), predictors=3, examples=50) == 50 + 18 * (50 + 36)
    assert run_limit(Gepa(max_metric_calls=99), predictors=3, examples=50) == 99
