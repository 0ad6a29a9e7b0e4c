"""The course of a race: which runs are made and in which order, what a restart repeats, and how it ends."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Sequence
from typing import Any

import dspy
import pytest
from tests.memory_store import MemoryStore

from tandem_api.contract import Endpoint, StageRequest, StorageRef
from tandem_api.errors import ErrorRateError, ServingError
from tandem_api.records import PredictorPrompt, PromptSet
from tandem_api.v1alpha1.status import Usage
from tandem_trainer.evaluate.evaluator import Evaluator
from tandem_trainer.evaluate.examples import Example
from tandem_trainer.evaluate.ledger import Ledger
from tandem_trainer.evaluate.metrics import Judgement, Metric
from tandem_trainer.lm.failures import BudgetExhausted
from tandem_trainer.program.running import ProgramRun
from tandem_trainer.prompt.candidates import Candidate, Scored
from tandem_trainer.prompt.race import Race, race
from tandem_trainer.prompt.racing import Rules, looks_at

EXAMPLES = [Example(f"e{number}", {"q": str(number)}) for number in range(60)]
RULES = Rules(error_rate=0.05, first_round=10, exhaustive=False)


def candidate(name: str) -> Candidate:
    return Candidate(name, PromptSet(predictors={"self": PredictorPrompt(instruction=name)}))


class Runner:
    """Answers with the score that is given for a candidate (its instruction) and an example's number."""

    def __init__(self, scores: dict[str, Sequence[float]], *, seed: int = 0) -> None:
        self.scores = scores
        self.started: list[tuple[str, str]] = []
        self.fails_at: int | None = None
        self.failure: Exception = BudgetExhausted("the token budget is used up")
        self._random = random.Random(seed)

    async def run(self, prompts: PromptSet, example_id: str, inputs: Any, *, sample: int, sampling: Any) -> ProgramRun:
        if self.fails_at is not None and len(self.started) >= self.fails_at:
            raise self.failure
        name = prompts.predictors["self"].instruction
        self.started.append((name, example_id))
        for _ in range(self._random.randint(1, 30)):
            await asyncio.sleep(0)
        score = self.scores[name][int(inputs["q"])]
        if score < 0:
            return ProgramRun(None, (), "call_failed", "refused", Usage(calls=1), 0.01)
        return ProgramRun(dspy.Prediction(score=score), (), "ok", None, Usage(calls=1, prompt_tokens=10), 0.01)


def run(
    runner: Runner,
    names: Sequence[str],
    *,
    store: MemoryStore | None = None,
    rules: Rules = RULES,
    examples: Sequence[Example] = EXAMPLES,
    concurrency: int = 8,
    max_error_rate: str = "1",
    **watch: Any,
) -> Race:
    """One attempt; with the same store the next one goes on."""
    spec = {
        "program": {"inline": {"signature": "q -> a", "adapter": "plain"}},
        "metric": {"builtin": "exact-match", "field": "a"},
        "model": {"uri": "file:model"},
        "data": {"inputs": ["q"], "train": {"uri": "file:train.jsonl"}},
        "evaluation": {"concurrency": concurrency, "maxErrorRate": max_error_rate},
    }
    request = StageRequest.model_validate(
        {
            "namespace": "n",
            "name": "r",
            "uid": "u",
            "index": 1,
            "kind": "p",
            "stage": "optimize",
            "attempt": 1,
            "spec": spec,
            "storage": StorageRef(bucket="bucket"),
            "endpoint": Endpoint(url="http://x", model="base"),
        }
    )
    ledger = Ledger(store or MemoryStore(), "ledger/")
    ledger.load()
    metric = Metric("score", lambda example, prediction: Judgement(prediction.score), in_thread=False)
    evaluator = Evaluator(runner, metric, ledger, request=request, program_sha256="p")  # type: ignore[arg-type]
    try:
        return asyncio.run(race(evaluator, [candidate(name) for name in names], examples, rules, **watch))
    finally:
        evaluator.close()
        ledger.close()


def drawn(**rates: float) -> dict[str, Sequence[float]]:
    """Right and wrong answers at these rates, drawn with a seed."""
    return {
        name: [float(random.Random(f"{name}{number}").random() < rate) for number in range(len(EXAMPLES))]
        for name, rate in rates.items()
    }


MIXED = drawn(start=0.5, poor=0.05, good=0.95, fair=0.6)
NAMES = list(MIXED)


def told(outcome: Race) -> list[tuple[str, list[float | None], bool]]:
    """What a race says of each candidate."""
    return [
        (each.candidate.kind, [record and record.score for record in each.records], each.dropped)
        for each in outcome.scored
    ]


def test_the_best_wins_scored_on_all_examples_and_the_others_on_a_prefix() -> None:
    runner = Runner(MIXED)
    outcome = run(runner, NAMES)
    assert outcome.is_complete and outcome.winner == 2
    assert [each.candidate.kind for each in outcome.scored] == NAMES
    assert [each.dropped for each in outcome.scored] == [True, True, False, True]
    for each in outcome.scored:
        known = [record is not None for record in each.records]
        assert len(known) == 60 and known == sorted(known, reverse=True)
        assert each.dropped == (each.score is None)
        assert [record.example for record in each.records if record] == [e.id for e in EXAMPLES[: sum(known)]]
    assert outcome.runs == len(runner.started) == len(set(runner.started)) < 160


def test_one_candidates_runs_stay_together_and_the_best_so_far_are_first() -> None:
    runner = Runner(MIXED)
    run(runner, NAMES, concurrency=1)
    blocks = [name for name, _ in itertools.groupby(runner.started, key=lambda each: each[0])]
    assert blocks[:4] == NAMES, "nothing is known before the first round"
    assert len(blocks) == len(set(blocks[:4])) + sum(1 for _ in blocks[4:])
    assert blocks[4] == "good"
    for name, own in itertools.groupby(runner.started[:40], key=lambda each: each[0]):
        assert [example for _, example in own] == [example.id for example in EXAMPLES[:10]], name


def test_nothing_depends_on_concurrency_or_on_the_order_of_arrival() -> None:
    outcomes = [run(Runner(MIXED, seed=seed), NAMES, concurrency=slots) for seed, slots in ((0, 1), (1, 3), (2, 64))]
    assert told(outcomes[0]) == told(outcomes[1]) == told(outcomes[2])
    assert len({(outcome.winner, outcome.runs) for outcome in outcomes}) == 1


@pytest.mark.parametrize("killed_at", [3, 25, 47, 70, 85])
def test_a_race_that_was_killed_goes_on_with_the_same_rounds_and_runs_nothing_twice(killed_at: int) -> None:
    undisturbed = Runner(MIXED)
    expected = run(undisturbed, NAMES)
    assert len(undisturbed.started) > killed_at
    runner, store = Runner(MIXED), MemoryStore()
    runner.fails_at, runner.failure = killed_at, ServingError("the server is gone")
    with pytest.raises(ServingError):
        run(runner, NAMES, store=store)
    runner.fails_at = None
    outcome = run(runner, NAMES, store=store)
    assert told(outcome) == told(expected) and outcome.winner == expected.winner
    repeated = len(runner.started) - len(set(runner.started))
    assert set(runner.started) == set(undisturbed.started) and repeated <= 8, "only what was in flight is run again"
    before = len(runner.started)
    assert told(run(runner, NAMES, store=store)) == told(expected) and len(runner.started) == before


def test_a_budget_that_ends_keeps_what_is_there_and_names_no_winner_before_the_end() -> None:
    runner = Runner(MIXED)
    runner.fails_at = 55
    outcome = run(runner, NAMES)
    assert not outcome.is_complete and outcome.winner is None and outcome.runs == 55
    assert sum(record is not None for each in outcome.scored for record in each.records) == 55


def test_a_budget_that_ends_in_the_last_round_still_knows_the_leader() -> None:
    start = [float(number % 2) for number in range(60)]
    scores = {"start": start, "better": [1.0, *start[1:]]}
    runner = Runner(scores)
    runner.fails_at = 2 * 60 - 5
    outcome = run(runner, list(scores), concurrency=4)
    assert not outcome.is_complete and outcome.winner == 1
    assert outcome.scored[1].score is not None and outcome.scored[0].score is None


def test_a_failed_example_scores_zero_and_takes_part() -> None:
    scores = {"start": [1.0] * 60, "failing": [-1.0] * 60}
    outcome = run(Runner(scores), list(scores))
    assert outcome.winner == 0 and outcome.scored[1].dropped
    so_far = outcome.scored[1].so_far
    assert so_far is not None and so_far.score == 0.0 and so_far.errors == so_far.n < 60


def test_too_many_failed_examples_end_the_race_with_their_causes() -> None:
    scores = {"start": [-1.0] * 60, "failing": [-1.0] * 60}
    with pytest.raises(ErrorRateError, match="refused"):
        run(Runner(scores), list(scores), max_error_rate="0.1")


def test_equal_candidates_are_all_scored_in_full_and_the_starting_point_wins() -> None:
    scores = dict.fromkeys(("start", "twin", "third"), MIXED["fair"])
    outcome = run(Runner(scores), list(scores))
    assert outcome.winner == 0 and outcome.runs == 180
    assert not any(each.dropped for each in outcome.scored)


def test_the_same_prompts_twice_are_run_once() -> None:
    runner = Runner(MIXED)
    outcome = run(runner, ["fair", "fair"])
    assert outcome.winner == 0 and len(runner.started) == 60


def test_one_candidate_and_one_that_is_left_alone_go_on_to_the_end_in_one_round() -> None:
    looks: list[int] = []

    async def on_round(scored: Sequence[Scored], done: int, *_: Any) -> None:
        looks.append(done)

    assert run(Runner(MIXED), ["good"], on_round=on_round).winner == 0
    assert looks == [60]
    looks.clear()
    run(Runner(MIXED), ["poor", "good"], on_round=on_round)
    assert looks == [20, 70]


def test_exhaustive_runs_everything_in_one_round() -> None:
    runner = Runner(MIXED)
    outcome = run(runner, NAMES, rules=Rules(0.05, 10, exhaustive=True), concurrency=1)
    assert outcome.runs == len(runner.started) == 4 * 60 and outcome.winner == 2
    assert [name for name, _ in itertools.groupby(runner.started, key=lambda each: each[0])] == NAMES
    assert all(each.score is not None and not each.dropped for each in outcome.scored)


def test_fewer_examples_than_the_first_round_are_all_run() -> None:
    outcome = run(Runner(MIXED), NAMES, examples=EXAMPLES[:7])
    assert outcome.runs == 28 and not any(each.dropped for each in outcome.scored)


def test_rounds_and_runs_are_told() -> None:
    rounds: list[tuple[int, int, str, float | None]] = []
    runs: list[tuple[int, int, str, float | None]] = []

    async def on_round(scored: Sequence[Scored], *what: Any) -> None:
        assert [each.candidate.kind for each in scored] == NAMES
        rounds.append(what)  # type: ignore[arg-type]

    outcome = run(Runner(MIXED), NAMES, on_round=on_round, on_run=lambda *what: runs.append(what))
    assert rounds[0][:2] == (40, 40 + 2 * 50), "two are dropped at the first look"
    assert rounds[0][2] == "2 of 4 candidates left after 10 of 60 examples"
    assert rounds[0][3] == sum(MIXED["good"][:10]) / 10
    assert rounds[-1][:2] == (outcome.runs, outcome.runs)
    assert len(rounds) <= len(looks_at(60, RULES))
    assert runs[0][:2] == (0, 240) and [done for done, *_ in runs] == sorted(done for done, *_ in runs)
    assert runs[-1][0] == outcome.runs
