"""The traces stage end to end: real HTTP to a scripted model, and a store in memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.scripted_lm.server import Fault, ScriptedServer
from tests.scripted_stage import MODEL, REPAIRED, TWO_HOPS, ScriptedStage, asked, helped_by_demos, hopping

from tandem_api.contract import StageResult
from tandem_api.errors import PreemptedError
from tandem_api.records import PredictorPrompt, PromptSet, TraceRow
from tandem_trainer.stages import traces
from tandem_trainer.traces.io import read_traces


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(helped_by_demos, models=("base", MODEL)) as running:
        yield running


@pytest.fixture
def stage(tmp_path: Path, server: ScriptedServer) -> ScriptedStage:
    return ScriptedStage(tmp_path, server, traces.run, "w", "traces", optimizer={"traces": {"minTraces": 1}})


def rows_of(stage: ScriptedStage, result: StageResult) -> list[TraceRow]:
    assert result.traces is not None
    return list(read_traces(stage.store, result.traces))


def current_prompts() -> PromptSet:
    demos = tuple({"question": f"q{number}", "answer": f"a{number}"} for number in (0, 1, 2))
    return PromptSet(predictors={"self": PredictorPrompt(instruction="Answer well.", demos=demos)})


def test_passing_runs_become_rows_in_the_order_of_the_training_set(stage: ScriptedStage) -> None:
    result = stage.run()
    rows = rows_of(stage, result)
    assert [row.example for row in rows] == [f"e{number}" for number in range(0, 24, 4)]
    assert result.traces is not None and result.traces.count == 6
    assert result.traces.uri.endswith("/steps/2-w/traces/traces/traces.jsonl.zst")
    expected = {"runs": 24, "passed": 6, "kept": 6, "duplicates": 0, "failed": 0, "examples_with_traces": 6}
    assert expected.items() <= result.facts.items() and result.facts["rows.self"] == 6
    assert stage.server.stats()["calls"] == {MODEL: 24}
    assert {request["temperature"] for request in stage.server.requests} == {0.0}


def test_rows_carry_the_prompt_that_was_used_and_the_programs_own(stage: ScriptedStage) -> None:
    stage.start = current_prompts()
    rows = rows_of(stage, stage.run())
    assert len(rows) > 20, "the current prompts are used, which pass more often"
    sent = {request["text"] for request in stage.server.requests}
    for row in rows:
        (call,), ((vanilla,),) = row.calls, row.vanilla
        assert call.messages[0]["content"] in sent and call.messages[0]["content"].startswith("Answer well.\n\n")
        question = f"Question: q{row.example[1:]}\nAnswer:"
        assert vanilla["content"].endswith(question) and vanilla["content"].count("Question:") == 1
        assert "Answer well." not in vanilla["content"]
        assert call.completion.strip() == f"a{row.example[1:]}"


def test_a_training_example_that_is_a_demo_is_not_shown_to_itself(stage: ScriptedStage) -> None:
    stage.start = current_prompts()
    stage.run()
    shown = {asked(r): r["text"].rpartition("\n\n")[0].count("Question:") for r in stage.server.requests}
    assert [shown[number] for number in (0, 1, 2, 3)] == [2, 2, 2, 3]


def test_several_samples_are_drawn_at_the_traces_temperature_each_with_its_own_seed(stage: ScriptedStage) -> None:
    stage.optimizer = {"traces": {"samplesPerExample": 4, "temperature": "0.9", "minTraces": 1, "maxPerExample": 2}}
    stage.train = range(4)

    def varied(request: dict[str, Any]) -> str:
        return f"a{asked(request)}" + "." * (request["seed"] % 3)  # exact-match ignores punctuation

    stage.server.lm.answer = varied
    result = stage.run()
    assert {request["temperature"] for request in stage.server.requests} == {0.9}
    assert len({request["seed"] for request in stage.server.requests}) == 16
    rows = rows_of(stage, result)
    per_example = Counter(row.example for row in rows)
    assert max(per_example.values()) <= 2
    assert len({(row.example, row.calls[0].completion) for row in rows}) == len(rows)
    facts = result.facts
    assert facts["passed"] == 16
    assert sum(int(facts[name]) for name in ("kept", "duplicates", "capped")) == 16


def test_too_few_traces_skip_the_step_and_say_why(stage: ScriptedStage) -> None:
    stage.optimizer = {"traces": {"minTraces": 7}}
    result = stage.run()
    assert (result.outcome, result.reason, result.traces) == ("skipped", "TooFewTraces", None)
    assert result.message is not None and "6 traces were kept, at least 7 are needed" in result.message
    assert result.facts["kept"] == 6


def test_no_passing_trace_at_all_is_a_skip_too(stage: ScriptedStage) -> None:
    stage.server.lm.answer = lambda request: Fault(status=400, text="refused")
    result = stage.run()
    assert (result.outcome, result.reason) == ("skipped", "TooFewTraces")
    assert result.facts["failed"] == 24 and result.facts["rows.self"] == 0


def test_a_second_attempt_pays_for_nothing_and_writes_the_same_bytes(stage: ScriptedStage) -> None:
    first = stage.run()
    again = []
    assert stage.calls_of(lambda: again.append(stage.run())) == 0
    assert again == [first]


def test_a_stage_that_is_stopped_goes_on_where_it_was(stage: ScriptedStage, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    undisturbed = ScriptedStage(
        tmp_path / "other", stage.server, traces.run, "w", "traces", optimizer=stage.optimizer
    ).run()
    stage.concurrency = 4
    stage.stop_at(24 + 10)
    with pytest.raises(PreemptedError):
        stage.run()
    stage.stop_at(-1)
    assert stage.run() == undisturbed
    assert len(stage.server.requests) <= 2 * 24 + stage.concurrency


def test_every_real_call_of_every_predictor_is_kept_and_counted(stage: ScriptedStage) -> None:
    stage.program, stage.server.lm.answer = TWO_HOPS, hopping
    result = stage.run()
    rows = rows_of(stage, result)
    assert [call.predictor for call in rows[0].calls] == ["search", "search", "answer"]
    assert len(rows[0].vanilla) == 3
    facts = {name: result.facts[f"rows.{name}"] for name in ("search", "answer", "idle")}
    assert facts == {"search": 24, "answer": 12, "idle": 0}


@pytest.mark.parametrize(("minimum", "outcome"), [(0, "done"), (12, "done"), (13, "skipped")])
def test_too_few_traces_of_a_predictor_skip_the_step_with_the_counts_of_each(
    stage: ScriptedStage, minimum: int, outcome: str
) -> None:
    stage.program, stage.server.lm.answer = TWO_HOPS, hopping
    stage.optimizer = {"traces": {"minTraces": 1, "minPerPredictor": minimum}}
    result = stage.run()
    # The predictor `idle` is never called: it is no reason.
    assert (result.outcome, result.traces is not None) == (outcome, outcome == "done")
    if outcome == "skipped":
        assert result.reason == "TooFewTraces" and result.message is not None
        assert "traces.minPerPredictor" in result.message and "search in 12, answer in 12;" in result.message


def test_a_predictor_that_no_passing_run_calls_skips_the_step_by_default(stage: ScriptedStage) -> None:
    stage.program, stage.server.lm.answer = REPAIRED, helped_by_demos
    result = stage.run()
    assert (result.outcome, result.reason) == ("skipped", "TooFewTraces")
    assert result.message is not None and "answer in 6, repair in 0" in result.message


def test_adapters_of_their_own_leave_out_the_predictors_with_too_few_traces(stage: ScriptedStage) -> None:
    stage.program, stage.server.lm.answer = REPAIRED, helped_by_demos
    own = {"adapters": "per-predictor", "traces": {"minTraces": 1, "minPerPredictor": 6}}
    stage.optimizer = own
    result = stage.run()
    assert result.outcome == "done" and result.traces is not None
    assert result.message is not None and result.message.endswith("repair (0)")
    stage.optimizer = {**own, "traces": {"minTraces": 1, "minPerPredictor": 7}}
    assert stage.run().outcome == "skipped", "no predictor has enough"


def test_a_part_of_the_training_set_depends_on_the_seed(stage: ScriptedStage) -> None:
    stage.optimizer = {"traces": {"minTraces": 1, "trainSize": 10}}
    chosen = []
    for seed in (0, 0, 1):
        stage.seed = seed
        stage.store.objects.clear()
        before = len(stage.server.requests)
        stage.run()
        chosen.append(sorted(asked(request) for request in stage.server.requests[before:]))
    assert len(chosen[0]) == 10 and chosen[0] == chosen[1] != chosen[2]


@pytest.mark.parametrize(("minimum", "has_traces"), [(1, True), (20, False)])
def test_a_budget_that_ends_keeps_the_traces_so_far_if_they_suffice(
    stage: ScriptedStage, minimum: int, has_traces: bool
) -> None:
    stage.optimizer = {"traces": {"minTraces": minimum}}
    stage.server.lm.answer = lambda request: f"a{asked(request)}"
    stage.concurrency, stage.tokens_left = 2, 100
    result = stage.run()
    assert (result.outcome, result.reason) == ("stopped", "BudgetExhausted")
    assert (result.traces is not None) == has_traces
    assert 0 < int(result.facts["runs"]) < 20
