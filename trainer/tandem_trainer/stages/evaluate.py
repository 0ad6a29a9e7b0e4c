"""`evaluate`: score prompt sets on a held-out split, under the model that is served.

The baseline scores the original prompts; after a `w` both the original and the current prompts are scored on the new
adapter, because tuning may have made the longer prompt superfluous; where the step has chosen the adapter among epochs,
the choice has scored the original prompts already. The final test uses `score_prompts`, too.
"""

from __future__ import annotations

from collections.abc import Sequence

from tandem_api.contract import Outcome, Prompts, StageResult
from tandem_api.errors import ConfigurationError
from tandem_api.records import ScoredExample
from tandem_api.v1alpha1.status import Usage
from tandem_trainer.context import StageContext
from tandem_trainer.evaluate.evaluator import Job, summarize
from tandem_trainer.evaluate.examples import Example
from tandem_trainer.evaluate.ledger import Ledger
from tandem_trainer.lm.client import BudgetExhausted
from tandem_trainer.stages.session import Session, open_session


def run(context: StageContext) -> StageResult:
    """Score each of `request.prompts` on `request.split`; the predictions are in the ledger."""
    return context.run(_evaluate(context))


async def _evaluate(context: StageContext) -> StageResult:
    is_test = context.request.split == "test"
    async with open_session(context, with_test=is_test) as session:
        examples = session.splits.test if is_test else session.splits.validation
        if not examples:
            raise ConfigurationError("data.test is not given, so that there is no test set to score on")
        _adopt(session)
        results, stopped = await score_prompts(session, examples)
        scores = tuple(summarize(records, prompts.artifact) for prompts, records in results)
        outcome: Outcome = "stopped" if stopped else "done"
        return StageResult(
            outcome=outcome,
            reason=BudgetExhausted.code if stopped else None,
            message=f"{stopped}; {len(scores)} of {len(context.request.prompts)} prompt sets were scored"
            if stopped
            else None,
            scores=scores,
            usage=session.usage,
            facts={"examples": len(examples)},
        )


def _adopt(session: Session) -> None:
    """Take over what the step's `select` stage has paid for: the same adapter, prompts and examples."""
    request = session.request
    if request.best_stage is None:
        return
    chosen = Ledger(session.context.store, request.layout.stage(request.index, request.kind, request.best_stage).ledger)
    for record in chosen.load().values():
        session.ledger.add(record.model_copy(update={"usage": Usage()}))


async def score_prompts(
    session: Session, examples: Sequence[Example]
) -> tuple[list[tuple[Prompts, list[ScoredExample]]], BudgetExhausted | None]:
    """Run each of the request's prompt sets on `examples`; the records are in the order of the examples.

    All go into one run, so that no slot idles between two. When the token budget ends it, those prompt sets are
    returned whose examples were all scored by then, and the reason: a score over fewer examples would not compare.
    """
    prompts = session.request.prompts
    prompt_sets = [session.prompt_set(one.artifact) for one in prompts]
    jobs = [Job(prompt_set, example) for prompt_set in prompt_sets for example in examples]
    labels = " and ".join(one.label for one in prompts)
    stopped = None
    records: Sequence[ScoredExample | None]
    try:
        records = await session.evaluator.run(jobs, progress=session.reporter(f"{labels} prompts"))
    except BudgetExhausted as error:
        stopped, records = error, session.evaluator.scored(jobs)
    results = []
    for position, one in enumerate(prompts):
        own = [r for r in records[position * len(examples) : (position + 1) * len(examples)] if r is not None]
        if len(own) == len(examples):
            results.append((one, own))
    return results, stopped
