"""A race of candidates: all are scored on the same examples in rounds, and those clearly worse are dropped.

    scores after   16        32        48             72                100 examples
    starting       ==========|==========|==============| dropped
    labeled        ==========| dropped
    bootstrapped   ==========|==========|==============|=================  the winner, scored on all
    random         ==========|==========| dropped

`racing.py` decides who is dropped; here the runs are made. One candidate's runs stay together in a round, because they
share the beginning of their prompts, which the server has cached.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tandem_api.records import ScoredExample
from tandem_trainer.evaluate.evaluator import Job, ProgressCallback, Scorer
from tandem_trainer.evaluate.examples import Example
from tandem_trainer.lm.failures import BudgetExhausted
from tandem_trainer.prompt.candidates import Candidate, Scored
from tandem_trainer.prompt.optimizer import Report
from tandem_trainer.prompt.racing import Rules, Scores, leader, looks_at, losers
from tandem_trainer.prompt.selection import best_of_full

#: Called after each round with all candidates, the runs made so far, the runs in all if nobody else is dropped, what
#: is going on, and the leader's mean so far.
OnRound = Callable[[Sequence[Scored], int, int, str, float | None], Awaitable[None]]


@dataclass(frozen=True)
class Race:
    """How a race ended."""

    scored: tuple[Scored, ...]
    """All candidates, in their order."""
    winner: int | None
    """The best of those scored on all examples; of equal ones the earliest. None: there is none."""
    is_complete: bool
    """False when the token budget ended the race."""
    runs: int
    """Runs of the program that are in it."""


async def race(
    evaluator: Scorer,
    candidates: Sequence[Candidate],
    examples: Sequence[Example],
    rules: Rules,
    *,
    on_round: OnRound | None = None,
    on_run: Report | None = None,
) -> Race:
    """Race `candidates` on `examples`, in the order given: shuffle them by a seed before.

    The first candidate is the starting point: it wins ties. A failed run scores 0 and takes part. `on_round` is called
    after each round, `on_run` after each run, with all but the candidates. Raises what `Evaluator.run` raises, but for
    BudgetExhausted, which ends the race; then the records are what there was until then.
    """
    course = _Course(evaluator, candidates, examples, rules)
    is_complete = True
    while is_complete and (look := course.next_look()) is not None:
        is_complete = await course.run_until(look, on_run)
        if on_round is not None:
            await on_round(course.scored(), course.runs, course.expected, course.message, course.best)
    return course.outcome(is_complete)


class _Course:
    """What is known in the course of a race."""

    def __init__(
        self, evaluator: Scorer, candidates: Sequence[Candidate], examples: Sequence[Example], rules: Rules
    ) -> None:
        self._evaluator = evaluator
        self._candidates = candidates
        self._rules = rules
        self._examples = len(examples)
        self._jobs = [[Job(candidate.prompts, example) for example in examples] for candidate in candidates]
        self._records: list[list[ScoredExample | None]] = [[None] * len(examples) for _ in candidates]
        self._alive = list(range(len(candidates)))
        self._seen = 0
        self.runs = 0

    def next_look(self) -> int | None:
        """After how many examples to look next; None at the end. One that is alone goes on to the end."""
        if self._seen == self._examples:
            return None
        if len(self._alive) == 1:
            return self._examples
        return next(look for look in looks_at(self._examples, self._rules) if look > self._seen)

    async def run_until(self, look: int, on_run: Report | None) -> bool:
        """Run all that are left up to that look, and drop the losers; whether the budget sufficed.

        The best so far are first: should the budget end, they are the ones to know about.
        """
        part = slice(self._seen, look)
        means = self._scores().sum(axis=1)
        order = sorted(self._alive, key=lambda index: -means[index])
        is_complete = True
        try:
            await self._evaluator.run(
                [job for index in order for job in self._jobs[index][part]], progress=self._progress(on_run)
            )
        except BudgetExhausted:
            is_complete = False
        for index in self._alive:
            self._records[index][part] = self._evaluator.scored(self._jobs[index][part])
        self.runs = sum(record is not None for records in self._records for record in records)
        if is_complete:
            self._seen = look
            gone = losers(self._scores(), self._alive, self._examples, self._rules)
            self._alive = [index for index in self._alive if index not in gone]
        return is_complete

    @property
    def expected(self) -> int:
        """The runs in all if nobody else is dropped."""
        return self.runs + len(self._alive) * (self._examples - self._seen)

    @property
    def message(self) -> str:
        """What is going on."""
        left = f"{len(self._alive)} of {len(self._candidates)} candidates left"
        return f"{left} after {self._seen} of {self._examples} examples"

    @property
    def best(self) -> float | None:
        """The leader's mean so far."""
        if not self._seen:
            return None
        scores = self._scores()
        return float(scores[leader(scores, self._alive)].mean())

    def scored(self) -> tuple[Scored, ...]:
        """All candidates as they are now."""
        return tuple(
            Scored(candidate, tuple(records), dropped=index not in self._alive)
            for index, (candidate, records) in enumerate(zip(self._candidates, self._records, strict=True))
        )

    def outcome(self, is_complete: bool) -> Race:
        """How it ended."""
        scored = self.scored()
        return Race(scored, best_of_full([each.score for each in scored]), is_complete, self.runs)

    def _scores(self) -> Scores:
        """Of all candidates on the examples seen; 0 where one was dropped before."""
        rows = [[record.score if record else 0.0 for record in records[: self._seen]] for records in self._records]
        return np.array(rows, dtype=np.float64).reshape(len(rows), self._seen)

    def _progress(self, on_run: Report | None) -> ProgressCallback | None:
        if on_run is None:
            return None
        before, expected, message, mean = self.runs, self.expected, self.message, self.best
        return lambda finished, _total, _mean: on_run(before + finished, expected, message, mean)
