"""MIPRO end to end: an optimize stage over real HTTP to a scripted model, and a store in memory.

The model answers more questions with every demo, and with the instructions that it writes itself: `way N` adds as much
as its number says.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.scripted_lm.server import Fault, ScriptedServer
from tests.scripted_stage import MODEL, TWO_HOPS, ScriptedStage, asked, demos_shown, hopping

from tandem_api.errors import ConfigurationError, PreemptedError
from tandem_api.records import PromptSet
from tandem_trainer.prompt.mipro.search import not_shown
from tandem_trainer.stages import optimize

MIPRO: dict[str, Any] = {"type": "mipro", "maxLabeledDemos": 0, "trials": 6, "fullEvaluationEvery": 3}
WAY = re.compile(r"way (\d+)")


def is_written(request: dict[str, Any]) -> bool:
    """Whether this is a call of the proposer."""
    return "=== Task ===" in request["text"]


def is_proposal(request: dict[str, Any]) -> bool:
    return str(request["text"]).endswith("=== The better instruction ===\n")


def answer(request: dict[str, Any]) -> str:
    if is_proposal(request):
        text = f"{request['text']} {request['seed']} {request['temperature']}"
        return f'Instruction: "Answer in way {int(hashlib.sha256(text.encode()).hexdigest(), 16) % 1000}."'
    if is_written(request):
        return "It has questions and answers."
    way = WAY.findall(request["text"])
    skill = 2 + demos_shown(request) + (int(way[0]) // 250 if way else 0)
    return f"a{asked(request)}" if asked(request) % 8 < skill else "no idea"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(answer, models=("base", MODEL)) as running:
        yield running


@pytest.fixture
def stage(tmp_path: Path, server: ScriptedServer) -> ScriptedStage:
    return other_stage(tmp_path, server)


def other_stage(folder: Path, server: ScriptedServer, **changes: Any) -> ScriptedStage:
    folder.mkdir(exist_ok=True)
    values: dict[str, Any] = {"optimizer": MIPRO, "validation": range(100, 140)} | changes
    return ScriptedStage(folder, server, optimize.run, "p", "optimize", **values)


def written(stage: ScriptedStage) -> list[dict[str, Any]]:
    return [request for request in stage.server.requests if is_written(request)]


def proposals(stage: ScriptedStage) -> list[str]:
    return [request["text"] for request in written(stage) if is_proposal(request)]


def winner(stage: ScriptedStage, result: Any) -> PromptSet:
    assert result.prompt_set is not None
    return PromptSet.model_validate_json(stage.store.fetch(result.prompt_set))


@pytest.mark.parametrize("variant", ["mipro", "zero-shot", "bayesian-bootstrap", "module-opro", "mipro++"])
@pytest.mark.parametrize("exhaustive", [False, True])
def test_every_variant_finds_something_better_and_tells_what_it_tried(
    stage: ScriptedStage, variant: str, exhaustive: bool
) -> None:
    stage.optimizer = MIPRO | {"variant": variant, "exhaustive": exhaustive, "minibatchSize": 20}
    result = stage.run()
    assert result.outcome == "done" and result.facts["variant"] == variant
    (score,) = result.scores
    trials = stage.trials()
    assert score.n == 40 and score.score > 0.25 and result.prompt_set is not None
    assert trials[0]["kind"] == "starting" and trials[0]["parameters"] == {"trials": [0]}
    assert sorted(number for trial in trials for number in trial["parameters"]["trials"]) == list(range(7))
    best = trials[int(result.facts["winner"])]
    assert best["full"]["score"] == score.score == max(trial["full"]["score"] for trial in trials if trial["n"] == 40)
    found = winner(stage, result).predictors["self"]
    assert bool(found.demos) <= (variant in ("mipro", "bayesian-bootstrap"))
    assert ("way" in found.instruction) <= (variant != "bayesian-bootstrap")
    assert bool(written(stage)) == (variant != "bayesian-bootstrap"), "no proposer where nothing is proposed"


def test_the_winning_instruction_and_demos_reach_the_wire(stage: ScriptedStage) -> None:
    prompt = winner(stage, stage.run()).predictors["self"]
    assert "way" in prompt.instruction and prompt.demos
    shown = "".join(f"Question: {demo['question']}\nAnswer: {demo['answer']}\n\n" for demo in prompt.demos)
    texts = {request["text"] for request in stage.server.requests}
    for number in stage.validation:
        assert f"{prompt.instruction}\n\n{shown}Question: q{number}\nAnswer:" in texts


@pytest.mark.parametrize("variant", ["mipro", "module-opro", "mipro++"])
def test_equal_seeds_search_alike_at_any_concurrency_and_other_seeds_otherwise(
    tmp_path: Path, server: ScriptedServer, variant: str
) -> None:
    optimizer = MIPRO | {"variant": variant}
    first = other_stage(tmp_path / "first", server, optimizer=optimizer, concurrency=2)
    second = other_stage(tmp_path / "second", server, optimizer=optimizer, concurrency=24)
    third = other_stage(tmp_path / "third", server, optimizer=optimizer, seed=1)
    assert first.run() == second.run()
    third.run()
    assert first.trials() == second.trials()
    assert {one.sha256 for one in first.prompt_sets()} != {one.sha256 for one in third.prompt_sets()}


def test_a_second_attempt_pays_for_nothing_and_finds_the_same(stage: ScriptedStage) -> None:
    first, trials, again = stage.run(), stage.trials(), []
    assert stage.calls_of(lambda: again.append(stage.run())) == 0
    assert again == [first] and stage.trials() == trials


@pytest.mark.parametrize("share", [0.02, 0.2, 0.4, 0.6, 0.9])
def test_a_stage_that_is_killed_goes_on_where_it_was(
    tmp_path: Path, stage: ScriptedStage, server: ScriptedServer, share: float
) -> None:
    undisturbed = other_stage(tmp_path / "other", server)
    expected = undisturbed.run()
    total = len(server.requests)
    stage.stop_at(total + max(1, round(share * total)))
    with pytest.raises(PreemptedError):
        stage.run()
    stage.stop_at(-1)
    assert stage.run() == expected and stage.trials() == undisturbed.trials()
    assert len(server.requests) <= 2 * total + stage.concurrency, "only calls in flight are made twice"


@pytest.mark.parametrize("share", [0.4, 0.6, 0.8, 0.95])
def test_a_budget_that_ends_leaves_the_best_of_what_was_evaluated_in_full(
    tmp_path: Path, stage: ScriptedStage, server: ScriptedServer, share: float
) -> None:
    whole = other_stage(tmp_path / "whole", server).run()
    stage.tokens_left = round(share * whole.usage.tokens)
    result = stage.run()
    assert (result.outcome, result.reason) == ("stopped", "BudgetExhausted")
    assert result.message is not None and "token budget is used up" in result.message
    full = [trial for trial in stage.trials() if trial["full"] is not None]
    assert bool(result.scores) == bool(full)
    if full:
        assert result.scores[0].n == 40 and result.scores[0].score == max(trial["full"]["score"] for trial in full)
    assert stage.calls_of(stage.run) == 0, "a second attempt has no more tokens than the first"


def test_a_budget_that_ends_before_the_search_leaves_nothing(stage: ScriptedStage) -> None:
    stage.tokens_left = 40
    result = stage.run()
    assert (result.outcome, result.reason, result.scores) == ("stopped", "BudgetExhausted", ())


def test_grounding_is_asked_once_and_shown_in_every_proposal(stage: ScriptedStage) -> None:
    stage.optimizer = MIPRO | {"instructions": 5}
    stage.run()
    texts = [request["text"] for request in written(stage) if not is_proposal(request)]
    assert sum("=== Summary ===" in text for text in texts) == 1
    assert sum("=== Description ===" in text for text in texts) == 1
    assert sum("=== Observations ===" in text for text in texts) == 3, "24 examples are three batches"
    assert len(proposals(stage)) == 4, "one call for each, and none for the program's own instruction"
    for text in proposals(stage):
        assert all(part in text for part in ("=== The data ===", "=== The program ===", "=== Examples of the step ==="))
    assert len(set(proposals(stage))) == 4, "each has another tip and other demos"


def test_every_source_of_grounding_can_be_switched_off(stage: ScriptedStage) -> None:
    off = {"data": False, "program": False, "demos": False, "tips": False, "history": False}
    stage.optimizer = MIPRO | {"grounding": off, "variant": "zero-shot"}
    result = stage.run()
    assert len(written(stage)) == len(proposals(stage)) == 5 and result.facts["bootstrap_examples"] == 0
    assert {part for text in proposals(stage) for part in re.findall("=== (.*) ===", text)} == {
        "The step",
        "The instruction now",
        "Task",
        "The better instruction",
    }


def test_observations_end_once_there_is_nothing_new(stage: ScriptedStage) -> None:
    stage.train = range(96)
    stage.server.lm.answer = lambda request: "COMPLETE." if "Observations" in request["text"][-30:] else answer(request)
    result = stage.run()
    assert "=== Summary ===" not in "".join(request["text"] for request in written(stage))
    assert result.facts["grounding_failed"] == "data"
    assert "the proposer was not shown: data (the proposer wrote nothing of it)" in (result.message or "")


def test_a_failing_source_is_told_of_and_left_out(stage: ScriptedStage) -> None:
    def refusing(request: dict[str, Any]) -> str | Fault:
        return Fault(status=400, text="too long") if "Observations" in request["text"][-30:] else answer(request)

    stage.server.lm.answer = refusing
    result = stage.run()
    assert result.outcome == "done" and result.facts["grounding_failed"] == "data"
    assert result.message is not None and "was not shown: data (HTTP 400: too long" in result.message
    assert all("=== The data ===" not in text and "=== The program ===" in text for text in proposals(stage))


def test_many_failing_sources_are_one_short_warning() -> None:
    one = not_shown({"program": "x" * 900, "data": "HTTP 400: no"})
    assert one == "the proposer was not shown: data, program (HTTP 400: no)"
    many = not_shown({f"role of {nth}_{'name' * 9}": "x" * 900 for nth in range(100)})
    assert len(many) <= 600 and "role of 0_name" in many and "..." in many


@pytest.mark.parametrize("variant", ["module-opro", "mipro++"])
def test_a_useless_proposal_does_not_end_the_search(stage: ScriptedStage, variant: str) -> None:
    stage.optimizer = MIPRO | {"variant": variant, "trials": 8, "fullEvaluationEvery": 1}
    stage.server.lm.answer = lambda request: (
        "" if is_proposal(request) and len(proposals(stage)) == 3 else answer(request)
    )
    result = stage.run()
    assert (result.facts["trials"], result.facts["proposals_dropped"]) == (8, 1) and result.message is None


@pytest.mark.parametrize("variant", ["module-opro", "mipro++"])
def test_a_search_that_ends_for_want_of_proposals_says_so(stage: ScriptedStage, variant: str) -> None:
    stage.optimizer = MIPRO | {"variant": variant, "trials": 8, "fullEvaluationEvery": 1}
    stage.server.lm.answer = lambda request: (
        "" if is_proposal(request) and len(proposals(stage)) >= 3 else answer(request)
    )
    result = stage.run()
    trials = int(result.facts["trials"])
    assert result.outcome == "done" and 2 <= trials < 8
    assert result.message == f"only {trials} of 8 trials were made: the proposer wrote nothing new any more"


def test_a_proposer_that_cannot_write_leaves_the_programs_own_instruction(stage: ScriptedStage) -> None:
    stage.server.lm.answer = lambda request: Fault(status=400, text="no") if is_written(request) else answer(request)
    result = stage.run()
    assert result.outcome == "done" and result.facts["proposals_failed"] == 3
    assert "3 of 3 proposals were refused: HTTP 400: no" in (result.message or "")
    assert winner(stage, result).predictors["self"].demos, "demos are searched all the same"


def test_repeated_empty_and_unchanged_proposals_are_dropped_and_counted(stage: ScriptedStage) -> None:
    texts = iter(
        ["Answer in way 900.", "answer in  way 900", "", "Given the fields `question`, produce the fields `answer`."]
    )
    stage.optimizer = MIPRO | {"instructions": 5}
    stage.concurrency = 1
    stage.server.lm.answer = lambda request: next(texts) if is_proposal(request) else answer(request)
    result = stage.run()
    assert (result.facts["proposals_kept"], result.facts["proposals_dropped"]) == (1, 3)
    assert len({prompts.predictors["self"].instruction for prompts in stage.prompt_sets()}) <= 2


def test_module_opro_shows_the_scored_instructions_of_earlier_rounds(stage: ScriptedStage) -> None:
    stage.optimizer = MIPRO | {"variant": "module-opro"}
    stage.run()
    rounds = proposals(stage)
    assert len(rounds) == 6
    first, second = rounds[:3], rounds[3:]
    assert all(text.count("Score: ") == 1 for text in first), "of the program's own instruction"
    assert all(text.count("Score: ") == 4 for text in second)
    for number in WAY.findall(second[0]):
        assert any(number in prompts.predictors["self"].instruction for prompts in stage.prompt_sets())


def test_the_learned_proposer_tries_settings_of_its_own(stage: ScriptedStage) -> None:
    stage.optimizer = MIPRO | {"variant": "mipro++", "trials": 8, "grounding": {"program": False}}
    stage.run()
    tried = [trial["parameters"] for trial in stage.trials()[1:]]
    names = {"data", "demos", "tip", "history", "temperature", "trials"}
    assert all(set(parameters) == names for parameters in tried)
    assert len({str(sorted(parameters.items(), key=str)) for parameters in tried}) > 4
    temperatures = {request["temperature"] for request in written(stage) if is_proposal(request)}
    assert temperatures <= {0.35, 0.7, 1.05} and len(temperatures) > 1


def test_predictors_that_are_never_called_are_given_nothing(stage: ScriptedStage) -> None:
    stage.program = TWO_HOPS
    stage.server.lm.answer = lambda request: answer(request) if is_written(request) else hopping(request)
    stage.optimizer = MIPRO | {"instructions": 3, "minibatchSize": 10}
    result = stage.run()
    assert result.outcome == "done" and result.facts["proposals"] == 4, "two for each of the two that are called"
    assert not any("idle: question -> note" in text.partition("=== The step ===")[2][:60] for text in proposals(stage))
    variables = {name for trial in stage.trials() for name in trial["parameters"]} - {"trials"}
    assert variables == {"search.instruction", "search.demos", "answer.instruction", "answer.demos"}
    code = [request["text"] for request in written(stage) if "=== Role ===" in request["text"]]
    assert len(code) == 3 and all("class _Hops(dspy.Module)" in text for text in code)
    assert all("=== What the step does ===" in text for text in proposals(stage))


def test_searching_on_train_never_shows_an_example_its_own_answer_and_is_scored_on_validation(
    stage: ScriptedStage,
) -> None:
    stage.optimizer = MIPRO | {"searchOn": "train", "minibatchSize": 12}
    result = stage.run()
    assert result.facts["search_set"] == "train" and result.facts["search_examples"] == 24
    for request in stage.server.requests:
        if not is_written(request):
            asked_for = re.findall(r"^Question: (q\d+)$", request["text"], re.MULTILINE)
            assert asked_for[-1] not in asked_for[:-1]
    (score,) = result.scores
    assert score.n == 40
    full = [trial for trial in stage.trials() if trial["full"] is not None]
    assert len(full) == 2 and all(trial["full"]["n"] == 40 for trial in full), "the start and the winner"
    assert max(trial["full"]["score"] for trial in full) == score.score
    assert all(trial["n"] <= 24 for trial in stage.trials())


def test_searching_on_a_part_ends_with_all_of_validation(stage: ScriptedStage) -> None:
    stage.optimizer = MIPRO | {"validationSize": 16}
    result = stage.run()
    assert result.scores[0].n == 40 and result.facts["search_examples"] == 16
    full = [trial["index"] for trial in stage.trials() if trial["full"] is not None]
    assert full == [0, result.facts["winner"]]


def test_the_start_wins_where_nothing_is_better(stage: ScriptedStage) -> None:
    stage.server.lm.answer = lambda request: answer(request) if is_written(request) else f"a{asked(request)}"
    result = stage.run()
    assert result.prompt_set is None and result.facts["winner"] == 0
    assert (result.scores[0].score, result.scores[0].n) == (1.0, 40)


def test_a_missing_key_of_the_proposer_is_told_of_before_the_first_call(
    stage: ScriptedStage, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TANDEM_PROPOSER_API_KEY", raising=False)
    stage.optimizer = MIPRO | {"proposer": {"url": stage.server.url, "model": "base", "keySecret": "key"}}
    with pytest.raises(ConfigurationError, match="TANDEM_PROPOSER_API_KEY"):
        stage.run()
    assert not stage.server.requests


def test_another_model_may_propose(stage: ScriptedStage) -> None:
    stage.optimizer = MIPRO | {"proposer": {"url": f"{stage.server.url}/v1", "model": "base"}}
    assert stage.run().outcome == "done"
    assert {request["model"] for request in written(stage)} == {"base"}
    assert {request["model"] for request in stage.server.requests if not is_written(request)} == {MODEL}


def test_a_small_space_ends_the_search_early_and_the_best_is_still_evaluated_in_full(stage: ScriptedStage) -> None:
    stage.optimizer = MIPRO | {"variant": "zero-shot", "instructions": 2, "trials": 50, "fullEvaluationEvery": 40}
    result = stage.run()
    assert int(result.facts["trials"]) < 50 and result.facts["candidates"] == 2
    assert result.scores[0].n == 40 and result.prompt_set is not None
    assert "of 50 trials were made: there was nothing new to try" in (result.message or "")
