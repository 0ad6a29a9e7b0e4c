"""Bootstrap few-shot with random search (BFRS).

Source: BetterTogether (arXiv 2407.10930), section 3. The starting prompts answer training examples; the runs that pass
give demos; candidates with different demos are raced on validation, and the best one wins.

Runs of the program, for T training examples, C candidates and V validation examples: at most T + C * V, and with
`exhaustive: true` exactly that. A race ends with V runs for the winner and few for what is clearly worse.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from tandem_api.canonical import seed_from
from tandem_api.v1alpha1.prompt_optimizers import BootstrapRandomSearch
from tandem_trainer.lm.failures import BudgetExhausted
from tandem_trainer.prompt.bfrs import build_candidates
from tandem_trainer.prompt.bootstrap import Bootstrap, bootstrap
from tandem_trainer.prompt.candidates import Scored
from tandem_trainer.prompt.optimizer import Found, SearchTask
from tandem_trainer.prompt.racing import Rules
from tandem_trainer.prompt.search import Outcome, search


async def optimize(task: SearchTask, settings: BootstrapRandomSearch) -> Found:
    """Search for better demos than the starting prompts have."""
    expected = len(task.train) * settings.samples_per_example + settings.candidates * len(task.subset)
    try:
        demos = await bootstrap(
            task, settings, lambda done, message, score: task.report(done, expected, message, score)
        )
    except BudgetExhausted as error:
        return Found(is_complete=False, message=f"{error}; it ended while demos were bootstrapped")
    candidates = build_candidates(task.start, demos.pool, settings, seed=task.seed, step=task.step)
    subset = list(task.subset)
    random.Random(seed_from(task.seed, task.step, "race")).shuffle(subset)

    def on_run(done: int, total: int, message: str, score: float | None) -> None:
        task.report(demos.runs + done, demos.runs + total, message, score)

    async def on_round(scored: Sequence[Scored], done: int, total: int, message: str, score: float | None) -> None:
        on_run(done, total, message, score)
        await task.table.show(scored)

    rules = Rules.of(settings.racing, settings.exhaustive)
    outcome = await search(task.evaluator, candidates, subset, task.validation, rules, on_round=on_round, on_run=on_run)
    await task.table.show(outcome.scored)
    return _found(task, settings, demos, outcome)


def _found(task: SearchTask, settings: BootstrapRandomSearch, demos: Bootstrap, outcome: Outcome) -> Found:
    scored = sum(each.score is not None for each in outcome.scored)
    all_runs = (len(task.train) + demos.retried) * demos.samples if demos.examples else 0
    facts: dict[str, int | str] = {
        **demos.facts,
        "candidates": len(outcome.scored),
        "scored": scored,
        "dropped": sum(each.dropped for each in outcome.scored),
        "search_examples": len(task.subset),
        "runs": demos.runs + outcome.runs,
        "full_evaluation_runs": all_runs + outcome.exhaustive_runs,
    }
    message = _about_demos(settings, demos)
    if not outcome.is_complete:
        message = f"the token budget ended the search; {scored} of {len(outcome.scored)} candidates were scored"
    if outcome.winner is None:
        return Found(is_complete=outcome.is_complete, message=message, facts=facts)
    winner = outcome.scored[outcome.winner]
    facts |= {"winner": outcome.winner, "winner_kind": winner.candidate.kind}
    return Found(winner.candidate.prompts, winner.full, outcome.is_complete, message, facts)


def _about_demos(settings: BootstrapRandomSearch, demos: Bootstrap) -> str | None:
    """What a user should know when the search had no bootstrapped demos though they were wanted."""
    if settings.max_bootstrapped_demos == 0 or demos.passed or demos.retry_passed or not demos.examples:
        return None
    return (
        f"none of {demos.examples} training examples reached the threshold {settings.threshold} "
        "(promptOptimizer.threshold): only zero-shot and labelled candidates were scored"
    )
