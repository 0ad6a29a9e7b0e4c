"""The last comparison of a search that foreign code has made: its best candidate against the starting prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tandem_trainer.evaluate.evaluator import Job
from tandem_trainer.lm.client import BudgetExhausted
from tandem_trainer.prompt.candidates import Candidate, Scored
from tandem_trainer.prompt.optimizer import SearchTask
from tandem_trainer.prompt.selection import best_of_full, not_in


@dataclass(frozen=True)
class Finals:
    """How the comparison ended."""

    scored: tuple[Scored, ...]
    """In the order of the candidates."""
    winner: int | None
    """The best of those scored on all of validation; of equal ones the earliest. None: there is none."""
    is_complete: bool
    """False when the token budget ended it."""

    @property
    def best(self) -> Scored | None:
        """The winner."""
        return None if self.winner is None else self.scored[self.winner]


async def compare(task: SearchTask, candidates: Sequence[Candidate], *, may_run: bool = True, done: int = 0) -> Finals:
    """Score `candidates`, the starting prompts first, on all of validation. Equal candidates are run once.

    With `may_run` False nothing is run, and what there is already decides: a budget that is used up. `done`: runs of
    the program that came before, for the progress.
    """
    rest = not_in(task.subset, task.validation)
    jobs = [
        ([Job(each.prompts, example) for example in task.subset], [Job(each.prompts, example) for example in rest])
        for each in candidates
    ]
    is_complete = may_run
    if may_run:
        # The last one first: should the budget end here, it is the one to know about.
        todo = [job for of_subset, of_rest in reversed(jobs) for job in (*of_subset, *of_rest)]
        try:
            await task.evaluator.run(
                todo,
                progress=lambda finished, total, mean: task.report(
                    done + finished,
                    done + total,
                    "the best candidate and the starting prompts on all of validation",
                    mean,
                ),
            )
        except BudgetExhausted:
            is_complete = False
    scored = tuple(
        Scored(each, task.evaluator.scored(of_subset), task.evaluator.scored(of_rest))
        for each, (of_subset, of_rest) in zip(candidates, jobs, strict=True)
    )
    return Finals(scored, best_of_full([each.full for each in scored]), is_complete)
