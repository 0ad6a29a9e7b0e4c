"""How combinations are scored, on an evaluator that knows all scores."""

from __future__ import annotations

import asyncio
import functools
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, cast

import pytest

from tandem_api.records import PredictorPrompt, PromptSet, ScoredExample
from tandem_api.v1alpha1.prompt_optimizers import Mipro
from tandem_trainer.evaluate.evaluator import Evaluator, Job, ProgressCallback
from tandem_trainer.evaluate.examples import Example
from tandem_trainer.lm.failures import BudgetExhausted
from tandem_trainer.prompt.candidates import Candidate
from tandem_trainer.prompt.mipro.board import Board, Tried, looks_at

EXAMPLES = [Example(id=f"e{number}", fields={"question": str(number)}) for number in range(100)]


def on_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    """Run an async test."""

    @functools.wraps(test)
    def run() -> None:
        asyncio.run(test())

    return run


class Known:
    """Gives scores that a function knows, and counts the runs."""

    def __init__(self, score: Callable[[str, int], float], limit: int = 10**6) -> None:
        self.score = score
        self.limit = limit
        self.ledger: dict[tuple[str, str], ScoredExample] = {}
        self.runs: list[list[tuple[str, str]]] = []

    async def run(self, jobs: Sequence[Job], *, progress: ProgressCallback | None = None) -> list[ScoredExample]:
        new = [key for key in map(self._key, jobs) if key not in self.ledger]
        self.runs.append(new)
        for name, example in new:
            if len(self.ledger) == self.limit:
                raise BudgetExhausted("the token budget is used up")
            score = self.score(name, int(example[1:]))
            self.ledger[name, example] = ScoredExample(key="", candidate=name, example=example, score=score)
        return [self.ledger[self._key(job)] for job in jobs]

    def scored(self, jobs: Sequence[Job]) -> list[ScoredExample | None]:
        return [self.ledger.get(self._key(job)) for job in jobs]

    def _key(self, job: Job) -> tuple[str, str]:
        return job.prompts.predictors["self"].instruction, job.example.id

    @property
    def counts(self) -> Counter[str]:
        return Counter(name for name, _ in self.ledger)


def candidate(name: str) -> Candidate:
    return Candidate("combination", PromptSet(predictors={"self": PredictorPrompt(instruction=name)}))


def board(evaluator: Known, **settings: Any) -> Board:
    return Board(cast(Evaluator, evaluator), EXAMPLES, Mipro.model_validate(settings), (0, 1), lambda *_: None)


def accuracy(name: str, example: int) -> float:
    """The name is the accuracy in percent; an example is as hard for all, and every few are a mixture."""
    return float(example * 37 % 100 < int(name))


def of(found: Board, name: str) -> Tried:
    return next(each for each in found.tried if each.candidate.prompts.predictors["self"].instruction == name)


def test_looks_double_up_to_the_minibatch() -> None:
    assert looks_at(35) == (7, 14, 28, 35)
    assert looks_at(8) == (5, 8) and looks_at(3) == (3,)


@on_loop
async def test_the_worse_half_of_a_batch_is_stopped_at_each_look() -> None:
    evaluator = Known(accuracy)
    found = board(evaluator)
    await found.start(candidate("10"))
    await found.try_out([candidate(name) for name in ("30", "95", "20", "60", "15")])
    assert evaluator.counts == {"10": 35, "30": 7, "20": 7, "15": 7, "60": 14, "95": 35}


@on_loop
async def test_all_are_compared_on_the_same_examples() -> None:
    evaluator = Known(accuracy)
    found = board(evaluator)
    await found.start(candidate("10"))
    await found.try_out([candidate(name) for name in ("30", "95", "20")])
    for each in found.tried:
        assert all(record is not None for record in each.records[: each.known]), "a prefix of the common order"


@on_loop
async def test_what_is_behind_the_best_so_far_is_stopped_at_the_first_look() -> None:
    evaluator = Known(accuracy)
    found = board(evaluator)
    await found.start(candidate("90"))
    await found.try_out([candidate(name) for name in ("30", "20", "10", "15", "25")])
    assert sorted(evaluator.counts.values()) == [7, 7, 7, 7, 35, 35]


@on_loop
async def test_a_combination_that_is_asked_again_goes_on_where_it_stopped() -> None:
    evaluator = Known(accuracy)
    found = board(evaluator)
    await found.start(candidate("10"))
    await found.try_out([candidate("60"), candidate("50")])
    before = sum(evaluator.counts.values())
    first = evaluator.counts["60"]
    await found.try_out([candidate("60")])
    assert first == 35 and evaluator.counts["60"] == 70 and sum(evaluator.counts.values()) == before + 35
    assert of(found, "60").trials == [1, 3]


@on_loop
async def test_the_best_mean_is_evaluated_in_full_and_what_was_scored_is_not_run_again() -> None:
    evaluator = Known(accuracy)
    found = board(evaluator)
    await found.start(candidate("10"))
    await found.try_out([candidate("50"), candidate("90")])
    promoted = await found.promote()
    assert promoted is of(found, "90") and promoted.is_full and found.best is promoted
    assert evaluator.counts["90"] == 100 and sum(map(len, evaluator.runs)) == len(evaluator.ledger)
    assert of(found, "10").dropped and evaluator.counts["10"] < 100, "the start is worse beyond doubt"
    assert found.is_settled(candidate("90").prompts) and found.is_settled(candidate("10").prompts)
    assert not found.is_settled(candidate("50").prompts)


@on_loop
async def test_nothing_is_evaluated_in_full_that_is_not_better_than_the_start() -> None:
    evaluator = Known(accuracy)
    found = board(evaluator)
    await found.start(candidate("60"))
    await found.try_out([candidate("60 "), candidate("40")])
    runs = sum(evaluator.counts.values())
    assert await found.promote() is None and sum(evaluator.counts.values()) == runs


@on_loop
async def test_a_combination_that_only_began_well_loses_the_full_evaluation() -> None:
    def score(name: str, number: int) -> float:
        return float((number < 35 and number % 2 == 0) if name == "lucky" else (number >= 35 or number % 9 < 4))

    evaluator = Known(score)
    found = board(evaluator)
    await found.start(candidate("start"))
    await found.try_out([candidate("lucky")])
    await found.promote()
    assert found.rival is of(found, "start") and of(found, "start").is_full


@on_loop
async def test_exhaustive_trials_have_fresh_random_minibatches() -> None:
    evaluator = Known(accuracy)
    found = board(evaluator, exhaustive=True, minibatchSize=20)
    assert await found.start(candidate("50")) == of(found, "50").mean and evaluator.counts["50"] == 100
    told = []
    for _ in range(3):
        told += await found.try_out([candidate("70")])
    fresh = [{example for _, example in run} for run in evaluator.runs[1:]]
    assert len(fresh[0]) == 20 and fresh[1] and fresh[2], "other examples each time"
    assert fresh[0] != {example.id for example in EXAMPLES[:20]}
    assert told == of(found, "70").means and of(found, "70").told == sum(told) / 3
    assert not found.is_settled(candidate("50").prompts), "the paper tries anything again"
    await found.promote()
    assert evaluator.counts["70"] == 100


@on_loop
async def test_what_was_scored_when_the_budget_ends_is_kept() -> None:
    evaluator = Known(accuracy, limit=60)
    found = board(evaluator)
    await found.start(candidate("10"))
    with pytest.raises(BudgetExhausted):
        await found.try_out([candidate("50"), candidate("90"), candidate("70"), candidate("80")])
    assert sum(each.known for each in found.tried) == 60
