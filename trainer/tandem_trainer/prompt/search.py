"""The search over candidates: which runs are made, which scores they give, and which candidate wins.

All candidates are scored in one run of the evaluator, one candidate's examples after another's: the slots stay full
from the first candidate to the last, and the calls that share a prompt prefix stay together.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tandem_api.contract import CandidateScore
from tandem_api.records import ScoredExample
from tandem_trainer.evaluate.evaluator import Evaluator, Job, ProgressCallback, summarize
from tandem_trainer.evaluate.examples import Example
from tandem_trainer.lm.client import BudgetExhausted
from tandem_trainer.prompt.bfrs import Candidate
from tandem_trainer.prompt.bootstrap import Report
from tandem_trainer.prompt.selection import best

#: Of every example of a set, its record; None where the budget ended before it.
Records = Sequence[ScoredExample | None]


@dataclass(frozen=True)
class Scored:
    """A candidate and what is known of it."""

    candidate: Candidate
    records: Records
    """On the examples of the search."""
    rest: Records | None = None
    """On the rest of validation; None where that was not run."""

    @property
    def score(self) -> CandidateScore | None:
        """On the examples of the search; None unless all of them were scored."""
        return _complete(self.records)

    @property
    def full(self) -> CandidateScore | None:
        """On all of validation; None unless all of it was scored."""
        return None if self.rest is None else _complete([*self.records, *self.rest])

    @property
    def tokens(self) -> int:
        """Of all its runs."""
        return sum(record.usage.tokens for record in [*self.records, *(self.rest or ())] if record is not None)


@dataclass(frozen=True)
class Outcome:
    """All candidates, in their order, and the index of the best one; None when none was scored on all of validation."""

    scored: tuple[Scored, ...]
    winner: int | None
    is_complete: bool
    """False when the token budget ended the search."""


async def search(
    evaluator: Evaluator,
    candidates: Sequence[Candidate],
    subset: Sequence[Example],
    validation: Sequence[Example],
    report: Report,
) -> Outcome:
    """Score `candidates` on `subset`, the best one and the first one on all of `validation`; the better one wins.

    The first candidate is the starting point: of equal scores the earlier candidate's wins, so that a prompt set is
    only exchanged for a better one. When the token budget ends the search, the best of the candidates that were
    scored on all of validation wins, if there is one.
    """
    jobs = [[Job(candidate.prompts, example) for example in subset] for candidate in candidates]
    watch = _Watch(evaluator, jobs, report)
    is_complete = await _run(evaluator, [job for of_one in jobs for job in of_one], watch)
    searched = {example.id for example in subset}
    rest = [example for example in validation if example.id not in searched]
    scored = [
        Scored(candidate, evaluator.scored(of_one), None if rest else ())
        for candidate, of_one in zip(candidates, jobs, strict=True)
    ]
    if rest and is_complete:
        is_complete = await _score_rest(evaluator, scored, rest, watch.then("the best candidate on all of validation"))
    full = {index: each.full.score for index, each in enumerate(scored) if each.full is not None}
    winner = list(full)[best(list(full.values()))] if full else None
    return Outcome(tuple(scored), winner, is_complete)


async def _score_rest(
    evaluator: Evaluator, scored: list[Scored], rest: Sequence[Example], progress: ProgressCallback
) -> bool:
    """Score the best candidate and the first one on the rest of validation; whether the budget sufficed."""
    leader = best([each.score.score for each in scored if each.score is not None])
    # The leader first: should the budget end here, it is the one to know about.
    finalists = list(dict.fromkeys([leader, 0]))
    jobs = {index: [Job(scored[index].candidate.prompts, example) for example in rest] for index in finalists}
    is_complete = await _run(evaluator, [job for index in finalists for job in jobs[index]], progress)
    for index in finalists:
        scored[index] = Scored(scored[index].candidate, scored[index].records, evaluator.scored(jobs[index]))
    return is_complete


async def _run(evaluator: Evaluator, jobs: Sequence[Job], progress: ProgressCallback) -> bool:
    """Run the jobs; whether the budget sufficed. What is there in the end is in the ledger."""
    try:
        await evaluator.run(jobs, progress=progress)
    except BudgetExhausted:
        return False
    return True


class _Watch:
    """Follows a run over all candidates: which one it has come to, and the best score of those behind it."""

    def __init__(self, evaluator: Evaluator, jobs: Sequence[Sequence[Job]], report: Report) -> None:
        self._evaluator = evaluator
        self._jobs = jobs
        self._report = report
        self._current = 0
        self._best: float | None = None

    def __call__(self, finished: int, _total: int, _mean: float) -> None:
        reached = min(finished // len(self._jobs[0]), len(self._jobs) - 1)
        for index in range(self._current, reached):
            # A straggler may still be on its way; then the candidate is left out of what is shown.
            score = _complete(self._evaluator.scored(self._jobs[index]))
            if score is not None:
                self._best = max(score.score, self._best or 0.0)
        self._current = max(reached, self._current)
        self._report(finished, f"candidate {reached + 1} of {len(self._jobs)}", self._best)

    def then(self, message: str) -> ProgressCallback:
        """A callback for a run that comes after this one."""
        before = sum(len(of_one) for of_one in self._jobs)
        return lambda finished, _total, _mean: self._report(before + finished, message, self._best)


def _complete(records: Records) -> CandidateScore | None:
    there = [record for record in records if record is not None]
    return summarize(there) if len(there) == len(records) else None
