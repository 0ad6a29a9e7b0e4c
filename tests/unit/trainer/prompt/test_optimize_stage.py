"""The optimize stage end to end: real HTTP to a scripted model, and a store in memory."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.scripted_lm.server import Fault, ScriptedServer
from tests.scripted_stage import MODEL, TWO_HOPS, ScriptedStage, asked, demos_shown, helped_by_demos, hopping

from tandem_api.errors import PreemptedError
from tandem_api.records import PredictorPrompt, PromptSet
from tandem_trainer.context import Stopping
from tandem_trainer.stages import optimize

BOOTSTRAP_ONLY = {"candidates": 6, "maxLabeledDemos": 0}


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(helped_by_demos, models=("base", MODEL)) as running:
        yield running


@pytest.fixture
def stage(tmp_path: Path, server: ScriptedServer) -> ScriptedStage:
    return ScriptedStage(tmp_path, server, optimize.run, "p", "optimize", optimizer=BOOTSTRAP_ONLY)


def other_stage(stage: ScriptedStage, folder: Path, **changes: Any) -> ScriptedStage:
    """The same stage of another run: its own store."""
    folder.mkdir()
    values = {"optimizer": stage.optimizer, "program": stage.program} | changes
    return ScriptedStage(folder, stage.server, optimize.run, "p", "optimize", **values)


def test_the_best_candidate_wins_and_its_prompts_are_stored(stage: ScriptedStage) -> None:
    result = stage.run()
    assert result.outcome == "done" and result.prompt_set is not None
    winner = PromptSet.model_validate_json(stage.store.fetch(result.prompt_set))
    assert winner.sha256 == result.prompt_set.sha256
    assert len(winner.predictors["self"].demos) == 3 and result.prompt_set.count == 3
    (score,) = result.scores
    assert (score.score, score.n, score.errors, score.prompts) == (1.0, 8, 0, result.prompt_set)
    assert score.low < 1.0
    assert result.facts["bootstrap_passed"] == 6 and result.facts["candidates"] == 6
    assert stage.trials()[int(result.facts["winner"])]["prompts"] == json.loads(result.prompt_set.model_dump_json())


def test_trials_tell_of_every_candidate(stage: ScriptedStage) -> None:
    result = stage.run()
    trials = stage.trials()
    assert [trial["index"] for trial in trials] == list(range(6))
    assert [trial["kind"] for trial in trials] == ["zero-shot", "bootstrapped", *["random"] * 4]
    for trial, prompts in zip(trials, stage.prompt_sets(), strict=True):
        demos = len(prompts.predictors["self"].demos)
        assert trial["score"] == (demos + 1) / 4 and trial["n"] == 8 and trial["errors"] == 0
        assert trial["low"] <= trial["score"] <= trial["high"] and trial["prompts"]["count"] == demos
    assert 0 < sum(trial["tokens"] for trial in trials) < result.usage.tokens, "bootstrapping costs, too"


def test_every_candidates_text_reaches_the_wire_and_every_call_names_the_served_model(stage: ScriptedStage) -> None:
    result = stage.run()
    texts = [request["text"] for request in stage.server.requests]
    for prompts in stage.prompt_sets():
        head = "".join(
            f"Question: {demo['question']}\nAnswer: {demo['answer']}\n\n" for demo in prompts.predictors["self"].demos
        )
        for number in stage.validation:
            assert any(text.endswith(f"\n\n{head}Question: q{number}\nAnswer:") for text in texts)
    assert stage.server.stats()["calls"] == {MODEL: result.usage.calls}
    assert result.usage.calls == 24 + 6 * 8


def test_a_second_attempt_pays_for_nothing_and_finds_the_same(stage: ScriptedStage) -> None:
    first = stage.run()
    trials = stage.trials()
    again = []
    assert stage.calls_of(lambda: again.append(stage.run())) == 0
    assert again == [first] and stage.trials() == trials


@pytest.mark.parametrize("calls", [5, 40])
def test_a_stage_that_is_stopped_goes_on_where_it_was(stage: ScriptedStage, tmp_path: Path, calls: int) -> None:
    undisturbed = other_stage(stage, tmp_path / "other")
    expected = undisturbed.run()
    total = len(stage.server.requests)
    stage.stop_at(total + calls)
    with pytest.raises(PreemptedError):
        stage.run()
    assert len(stage.server.requests) < total + calls + stage.concurrency
    stage.stop_at(-1)
    assert stage.run() == expected
    assert stage.trials() == undisturbed.trials()
    assert len(stage.server.requests) <= 2 * total + stage.concurrency, "only calls in flight are made twice"


def test_equal_seeds_search_alike_and_other_seeds_otherwise(stage: ScriptedStage, tmp_path: Path) -> None:
    stage.optimizer = {"candidates": 8, "trainSize": 20, "validationSize": 4}
    twin = other_stage(stage, tmp_path / "twin", concurrency=3)
    stranger = other_stage(stage, tmp_path / "stranger", seed=1)
    first, second, third = stage.run(), twin.run(), stranger.run()
    assert first == second and stage.trials() == twin.trials()
    assert {one.sha256 for one in stage.prompt_sets()} != {one.sha256 for one in stranger.prompt_sets()}
    assert third.outcome == "done"


def test_slots_stay_full_from_one_candidate_to_the_next(stage: ScriptedStage) -> None:
    stage.validation, stage.concurrency = range(100, 103), 12
    in_flight: list[int] = []

    def slow(request: dict[str, Any]) -> Fault:
        if asked(request) >= 100:
            in_flight.append(stage.server.lm.in_flight + 1)
        return Fault(latency=0.02, text=helped_by_demos(request))

    stage.server.lm.answer = slow
    stage.run()
    assert len(in_flight) == 6 * 3 and max(in_flight) == 12, "four candidates at once fill twelve slots"


def test_one_candidates_calls_stay_together(stage: ScriptedStage) -> None:
    stage.concurrency = 1
    stage.run()
    searched = [request["text"] for request in stage.server.requests if asked(request) >= 100]
    heads = [text.rpartition("Question:")[0] for text in searched]
    assert sum(before != after for before, after in itertools.pairwise(heads)) == 5


def test_a_winner_of_a_part_is_scored_on_all_of_validation(stage: ScriptedStage) -> None:
    stage.optimizer = BOOTSTRAP_ONLY | {"validationSize": 4}
    result = stage.run()
    (score,) = result.scores
    assert (score.score, score.n) == (1.0, 8)
    full = [trial["index"] for trial in stage.trials() if trial["full"] is not None]
    assert full == [0, result.facts["winner"]]
    assert all(trial["n"] == 4 for trial in stage.trials())
    assert result.usage.calls == 24 + 6 * 4 + 2 * 4, "only the missing examples are run"


def test_when_the_starting_prompts_are_better_on_all_of_validation_they_win(stage: ScriptedStage) -> None:
    stage.optimizer = BOOTSTRAP_ONLY | {"validationSize": 2}
    seen: set[int] = set()

    def misleading(request: dict[str, Any]) -> str:
        """Demos help on the first two validation examples that are asked for (the part), and harm on the others."""
        number = asked(request)
        if number >= 100 and len(seen) < 2:
            seen.add(number)
        in_part = number < 100 or number in seen
        return f"a{number}" if in_part == (demos_shown(request) > 0 or number < 100) else "no idea"

    stage.server.lm.answer = misleading
    result = stage.run()
    assert stage.trials()[1]["score"] == 1.0 and stage.trials()[0]["score"] == 0.0
    assert result.prompt_set is None and result.facts["winner"] == 0
    (score,) = result.scores
    assert (score.score, score.n, score.prompts) == (0.75, 8, None)


def test_vanilla_prompts_win_a_tie(stage: ScriptedStage) -> None:
    stage.server.lm.answer = lambda request: f"a{asked(request)}"
    result = stage.run()
    assert result.prompt_set is None and result.facts["winner_kind"] == "zero-shot"
    assert result.scores[0].score == 1.0 and result.scores[0].prompts is None


def test_a_step_from_the_previous_prompts_starts_there_and_returns_them_if_nothing_is_better(
    stage: ScriptedStage,
) -> None:
    demos = tuple({"question": f"q{number}", "answer": f"a{number}"} for number in (0, 1, 2))
    stage.start = PromptSet(predictors={"self": PredictorPrompt(instruction="Answer well.", demos=demos)})
    result = stage.run()
    assert stage.trials()[0]["kind"] == "starting" and stage.prompt_sets()[0] == stage.start
    assert result.prompt_set is not None and result.prompt_set.sha256 == stage.start.sha256
    assert all(prompts.predictors["self"].instruction == "Answer well." for prompts in stage.prompt_sets())
    for request in stage.server.requests:
        shown = request["text"].rpartition("\n\n")[0]
        assert f"Question: q{asked(request)}\n" not in shown, "an example was shown its own answer"


def test_examples_that_failed_are_tried_again_with_labeled_demos(stage: ScriptedStage) -> None:
    stage.optimizer = {"candidates": 6}
    stage.server.lm.answer = lambda request: f"a{asked(request)}" if demos_shown(request) else "no idea"
    result = stage.run()
    assert result.facts["bootstrap_passed"] == 0
    assert result.facts["retried"] == 18 and result.facts["retry_passed"] == 18, "enough for the candidates to differ"
    for request in stage.server.requests[: 24 + 18]:
        assert f"Question: q{asked(request)}\n" not in request["text"].rpartition("\n\n")[0]
    assert {"bootstrapped", "random"} <= {trial["kind"] for trial in stage.trials()}


def test_without_any_passing_trace_zero_shot_and_labeled_demos_compete(stage: ScriptedStage) -> None:
    stage.optimizer = {}
    stage.server.lm.answer = lambda request: "no idea"
    result = stage.run()
    assert [trial["kind"] for trial in stage.trials()] == ["zero-shot", "labeled"]
    assert result.outcome == "done" and result.prompt_set is None and result.scores[0].score == 0.0
    assert result.message is not None and "none of 24 training examples reached the threshold 1" in result.message


def test_validation_examples_never_become_demos(stage: ScriptedStage) -> None:
    stage.optimizer = {"candidates": 12}
    stage.train = [*range(0, 40, 4), *range(100, 106)]
    result = stage.run()
    assert result.facts["train_in_validation"] == 6 and result.facts["bootstrap_examples"] == 10
    shown = {
        demo["question"]
        for prompts in stage.prompt_sets()
        for prompt in prompts.predictors.values()
        for demo in prompt.demos
    }
    assert shown and not shown & {f"q{number}" for number in stage.validation}


def test_training_on_the_validation_set_itself_leaves_zero_shot_and_says_why(stage: ScriptedStage) -> None:
    stage.train = stage.validation
    result = stage.run()
    assert result.facts["candidates"] == 1 and result.scores[0].n == 8
    assert result.message is not None and "give train and validation different examples" in result.message


def test_predictors_of_a_larger_program_each_get_demos_of_their_own_calls(stage: ScriptedStage) -> None:
    stage.program, stage.server.lm.answer = TWO_HOPS, hopping
    stage.run()
    for trial, prompts in zip(stage.trials(), stage.prompt_sets(), strict=True):
        demos = {name: prompt.demos for name, prompt in prompts.predictors.items()}
        assert demos["idle"] == (), "a predictor that is never called has nothing to show"
        assert all(set(demo) == {"question", "hop", "query"} for demo in demos["search"])
        assert all(demo["query"] == f"s{demo['question'][1:]}-{demo['hop']}" for demo in demos["search"])
        assert all(set(demo) == {"question", "query", "answer"} for demo in demos["answer"])
        of_one_example = [demo["question"] for demo in demos["search"]]
        assert len(set(of_one_example)) == len(of_one_example)
        assert bool(demos["search"]) == (trial["kind"] != "zero-shot")


def test_a_failing_call_costs_its_candidate_a_point_and_is_counted(stage: ScriptedStage) -> None:
    def refusing(request: dict[str, Any]) -> str | Fault:
        return Fault(status=400, text="refused") if asked(request) == 100 else helped_by_demos(request)

    stage.server.lm.answer = refusing
    result = stage.run()
    assert all(trial["errors"] == 1 for trial in stage.trials())
    assert (result.scores[0].score, result.scores[0].errors) == (0.875, 1)


@pytest.mark.parametrize(("share", "scored"), [(0.1, None), (0.8, True)])
def test_a_budget_that_ends_leaves_the_best_of_what_was_scored(
    stage: ScriptedStage, tmp_path: Path, share: float, scored: bool | None
) -> None:
    whole = other_stage(stage, tmp_path / "whole").run()
    stage.tokens_left = round(share * whole.usage.tokens)
    result = stage.run()
    assert result.outcome == "stopped" and result.reason == "BudgetExhausted" and result.message
    assert bool(result.scores) == bool(scored)
    if scored:
        full = [trial["full"] for trial in stage.trials() if trial["full"]]
        assert 1 < len(full) < 6, "the one that the budget has cut is none of them"
        assert result.scores[0].score == max(score["score"] for score in full) and result.scores[0].n == 8
    assert stage.calls_of(stage.run) == 0, "a second attempt has no more tokens than the first"


def test_progress_tells_of_the_race(stage: ScriptedStage, tmp_path: Path) -> None:
    stage.run()
    progress = json.loads((tmp_path / "progress.json").read_text())
    assert progress["message"] == "6 of 6 candidates left after 8 of 8 examples"
    assert progress["done"] == progress["total"] == 24 + 48 and progress["score"] == 1.0


def long_validation(stage: ScriptedStage) -> None:
    """Enough examples for several rounds."""
    stage.validation = range(100, 160)


def test_racing_spares_runs_and_finds_what_a_full_evaluation_finds(stage: ScriptedStage, tmp_path: Path) -> None:
    long_validation(stage)
    full = other_stage(
        stage, tmp_path / "full", optimizer=stage.optimizer | {"exhaustive": True}, validation=stage.validation
    )
    raced, exhaustive = stage.run(), full.run()
    assert raced.prompt_set is not None and raced.scores == exhaustive.scores
    assert exhaustive.facts["runs"] == exhaustive.facts["full_evaluation_runs"] == exhaustive.usage.calls
    assert exhaustive.usage.calls == 24 + 6 * 60 and exhaustive.facts["dropped"] == 0
    assert raced.facts["runs"] == raced.usage.calls < 0.8 * exhaustive.usage.calls
    assert raced.facts["full_evaluation_runs"] == exhaustive.usage.calls
    trials = stage.trials()
    dropped = [trial for trial in trials if trial["dropped"]]
    assert len(dropped) == raced.facts["dropped"] > 0 and all(trial["n"] < 60 for trial in dropped)
    assert all(trial["full"] is None for trial in dropped)
    assert trials[int(raced.facts["winner"])]["n"] == 60


def test_the_table_is_written_after_every_round(stage: ScriptedStage) -> None:
    long_validation(stage)
    seen: list[int] = []

    def on_put(key: str) -> None:
        if key.endswith("trials.jsonl"):
            seen.append(len(stage.server.requests))

    stage.store.on_put = on_put
    result = stage.run()
    first = int(result.facts["bootstrap_examples"]) + 6 * 10
    assert seen[0] == first and len(seen) > 2 and seen[-1] == result.usage.calls


def test_killed_at_random_moments_the_race_ends_as_if_undisturbed(stage: ScriptedStage, tmp_path: Path) -> None:
    long_validation(stage)
    undisturbed = other_stage(stage, tmp_path / "other", validation=stage.validation)
    expected = undisturbed.run()
    draw = random.Random(0)
    answer = stage.server.lm.answer
    for turn in range(6):
        killed = other_stage(stage, tmp_path / f"turn{turn}", validation=stage.validation)
        before = len(stage.server.requests)
        killed.stop_at(before + draw.randrange(1, expected.usage.calls))
        with pytest.raises(PreemptedError):
            killed.run()
        stage.server.lm.answer, killed.stopping = answer, Stopping()
        assert killed.run() == expected and killed.trials() == undisturbed.trials()
        assert len(stage.server.requests) - before <= expected.usage.calls + stage.concurrency


def test_bootstrapping_ends_when_enough_have_passed(stage: ScriptedStage) -> None:
    stage.server.lm.answer = lambda request: f"a{asked(request)}"
    result = stage.run()
    assert result.facts["bootstrap_examples"] == result.facts["bootstrap_passed"] == 18, "all of the first round"
    stage.store.objects.clear()
    stage.optimizer = BOOTSTRAP_ONLY | {"passingExamples": 3}
    assert stage.run().facts["bootstrap_examples"] == 8
    stage.store.objects.clear()
    stage.optimizer = BOOTSTRAP_ONLY | {"exhaustive": True}
    assert stage.run().facts["bootstrap_examples"] == 24


def test_several_runs_of_an_example_each_give_their_trace(stage: ScriptedStage) -> None:
    stage.program, stage.sampling = TWO_HOPS, {"temperature": "0"}
    stage.optimizer = BOOTSTRAP_ONLY | {"samplesPerExample": 3, "temperature": "0.9", "candidates": 12}

    def wordy(request: dict[str, Any]) -> str:
        """Right for even numbers; the words of a query are other ones with every seed."""
        text = hopping(request)
        return f"{text} way {request['seed']}" if text.startswith("s") else text

    stage.server.lm.answer = wordy
    result = stage.run()
    searched = [request for request in stage.server.requests if asked(request) < 100]
    assert {request["temperature"] for request in searched} == {0.9}
    assert len(searched) == 3 * 3 * int(result.facts["bootstrap_examples"]), "three samples of three calls"
    assert {request["temperature"] for request in stage.server.requests if asked(request) >= 100} == {0}
    shown: dict[str, set[str]] = {}
    for prompts in stage.prompt_sets():
        for demo in prompts.predictors["search"].demos:
            shown.setdefault(demo["question"] + str(demo["hop"]), set()).add(demo["query"])
    assert max(len(queries) for queries in shown.values()) > 1, "more than one trace of an example was drawn"


def test_a_teacher_writes_the_demos_and_the_program_is_scored(stage: ScriptedStage) -> None:
    stage.optimizer = BOOTSTRAP_ONLY | {"teacher": {"entrypoint": "tests.scripted_stage:two_hops"}}
    stage.program = TWO_HOPS
    stage.server.lm.answer = hopping
    stage.start = PromptSet(
        predictors={name: PredictorPrompt(instruction="Mine.") for name in ("search", "answer", "idle")}
    )
    result = stage.run()
    assert result.outcome == "done" and int(result.facts["bootstrap_passed"]) > 0
    for request in stage.server.requests:
        assert ("Mine." in request["text"]) == (asked(request) >= 100), "the teacher begins with its own prompts"
    assert any(prompts.predictors["search"].demos for prompts in stage.prompt_sets())
    assert all(prompts.predictors["search"].instruction == "Mine." for prompts in stage.prompt_sets())
