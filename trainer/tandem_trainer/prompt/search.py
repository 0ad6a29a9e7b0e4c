"""The search over candidates: a race on the examples of the search, then the finalists on all of validation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from tandem_trainer.evaluate.evaluator import Evaluator, Job
from tandem_trainer.evaluate.examples import Example
from tandem_trainer.lm.failures import BudgetExhausted
from tandem_trainer.prompt.candidates import Candidate, Scored
from tandem_trainer.prompt.optimizer import Report
from tandem_trainer.prompt.race import OnRound, Race, race
from tandem_trainer.prompt.racing import Rules
from tandem_trainer.prompt.selection import best_of_full, not_in


@dataclass(frozen=True)
class Outcome:
    """All candidates, in their order, and the index of the best one; None when none was scored on all of validation."""

    scored: tuple[Scored, ...]
    winner: int | None
    is_complete: bool
    """False when the token budget ended the search."""
    runs: int
    """Runs of the program that are in it."""
    exhaustive_runs: int
    """What it would have been if every candidate had been scored on all examples of the search."""


async def search(
    evaluator: Evaluator,
    candidates: Sequence[Candidate],
    subset: Sequence[Example],
    validation: Sequence[Example],
    rules: Rules,
    *,
    on_round: OnRound,
    on_run: Report,
) -> Outcome:
    """Race `candidates` on `subset`, score the best one and the first one on all of `validation`; the better one wins.

    The first candidate is the starting point: of equal scores the earlier candidate's wins, so that a prompt set is
    only exchanged for a better one. When the token budget ends the search, the best of the candidates that were
    scored on all of validation wins, if there is one.
    """
    raced = await race(evaluator, candidates, subset, rules, on_round=on_round, on_run=on_run)
    rest = not_in(subset, validation)
    scored = [Scored(each.candidate, each.records, None if rest else (), each.dropped) for each in raced.scored]
    is_complete, finalists = raced.is_complete, 0
    if rest and is_complete and raced.winner is not None:
        # The leader first: should the budget end here, it is the one to know about.
        chosen = list(dict.fromkeys([raced.winner, 0]))
        finalists = len(chosen)
        is_complete = await _score_fully(evaluator, scored, chosen, subset, rest, raced, on_run)
    return Outcome(
        scored=tuple(scored),
        winner=best_of_full([each.full for each in scored]),
        is_complete=is_complete,
        runs=sum(record is not None for each in scored for record in [*each.records, *(each.rest or ())]),
        exhaustive_runs=len(scored) * len(subset) + finalists * len(rest),
    )


async def _score_fully(
    evaluator: Evaluator,
    scored: list[Scored],
    chosen: Sequence[int],
    subset: Sequence[Example],
    rest: Sequence[Example],
    raced: Race,
    on_run: Report,
) -> bool:
    """Score the chosen ones on all of validation, also one that the race has dropped; whether the budget sufficed."""
    examples = [*subset, *rest]
    jobs = {index: [Job(scored[index].candidate.prompts, example) for example in examples] for index in chosen}
    todo = [
        job
        for index in chosen
        for job, record in zip(jobs[index], [*scored[index].records, *[None] * len(rest)], strict=True)
        if record is None
    ]
    best_score = max(each.score.score for each in scored if each.score is not None)
    message, total = "the best candidate and the starting prompts on all of validation", raced.runs + len(todo)
    is_complete = True
    try:
        await evaluator.run(todo, progress=lambda done, _, __: on_run(raced.runs + done, total, message, best_score))
    except BudgetExhausted:
        is_complete = False
    for index in chosen:
        records, cut = evaluator.scored(jobs[index]), len(subset)
        scored[index] = Scored(scored[index].candidate, records[:cut], records[cut:], scored[index].dropped)
    return is_complete
