"""The `optimize` stage: bootstrap few-shot with random search (BFRS).

Source: BetterTogether (arXiv 2407.10930), section 3. The starting prompts answer training examples; the runs that pass
give demos; candidates with different demos are scored on validation, and the best one is the stage's prompt set. Every
call names the endpoint's model, so that after a `w` step the tuned model is prompted and no other.
"""

from __future__ import annotations

from dataclasses import dataclass

from tandem_api.contract import StageResult
from tandem_api.records import PromptSet
from tandem_api.v1alpha1.optimizers import PromptOptimizer
from tandem_api.v1alpha1.status import Artifact
from tandem_trainer.context import StageContext
from tandem_trainer.evaluate.examples import Example, seeded_sample
from tandem_trainer.lm.client import BudgetExhausted
from tandem_trainer.prompt.bfrs import build_candidates
from tandem_trainer.prompt.bootstrap import Bootstrap, Bootstrapper, Report
from tandem_trainer.prompt.demos import PredictorFields
from tandem_trainer.prompt.search import Outcome, search
from tandem_trainer.prompt.selection import without_overlap
from tandem_trainer.prompt.trials import trial_of, write_prompt_set, write_trials
from tandem_trainer.stages.session import Session, open_session


def run(context: StageContext) -> StageResult:
    """Search for better prompts than the request's first prompt set.

    `prompt_set` and `scores` name the winner; `prompt_set` is None when the program's original prompts won. A token
    budget that ends gives "stopped", with the best candidate that was scored on all of validation, if there is one.
    """
    return context.run(_optimize(context))


async def _optimize(context: StageContext) -> StageResult:
    request, layout = context.request, context.request.stage_layout
    async with open_session(context) as session:
        plan = _plan(session)
        settings, seed, step = plan.settings, request.spec.seed, request.index
        fields = {name: _fields(session, name) for name in plan.start.predictors}
        bootstrapper = Bootstrapper(session.evaluator, fields, settings, request.spec.data.inputs, seed, step)
        try:
            bootstrap = await bootstrapper.run(plan.start, plan.examples, _report(session, 0, plan.expected_runs))
        except BudgetExhausted as error:
            message = f"{error}; it ended while demos were bootstrapped"
            return StageResult(outcome="stopped", reason=BudgetExhausted.code, message=message, usage=session.usage)
        candidates = build_candidates(plan.start, bootstrap.pool, settings, seed=seed, step=step)
        prompts = [write_prompt_set(context.store, layout, candidate.prompts) for candidate in candidates]
        report = _report(session, bootstrap.runs, bootstrap.runs + len(candidates) * len(plan.subset))
        outcome = await search(session.evaluator, candidates, plan.subset, session.splits.validation, report)
        trials = [trial_of(index, each, prompts[index]) for index, each in enumerate(outcome.scored)]
        write_trials(context.store, layout, trials)
        return _result(session, plan, bootstrap, outcome, prompts)


@dataclass(frozen=True)
class _Plan:
    """What the stage works with, all settled before it calls the model."""

    settings: PromptOptimizer
    start: PromptSet
    examples: tuple[Example, ...]
    """To bootstrap from."""
    overlap: int
    """Training examples that are validation examples, too: they may not become demos."""
    subset: tuple[Example, ...]
    """Of validation: what every candidate is scored on."""

    @property
    def expected_runs(self) -> int:
        """How many runs of the program the stage will take, as far as that is known before it."""
        return len(self.examples) + self.settings.candidates * len(self.subset)


def _plan(session: Session) -> _Plan:
    request, splits = session.request, session.splits
    spec = request.spec
    settings = request.prompt_optimizer or spec.prompts_of(request.index)
    train = without_overlap(splits.train, splits.validation, spec.data.inputs)
    return _Plan(
        settings=settings,
        start=session.prompt_set(request.prompts[0].artifact if request.prompts else None),
        examples=seeded_sample(train, settings.train_size, spec.seed, request.index, "bootstrap"),
        overlap=len(splits.train) - len(train),
        # The same examples in every step, so that the scores of steps can be compared, too.
        subset=seeded_sample(splits.validation, settings.validation_size, spec.seed, "search"),
    )


def _fields(session: Session, predictor: str) -> PredictorFields:
    signature = session.program.signature(predictor)
    return PredictorFields(tuple(signature.input_fields), tuple(signature.output_fields))


def _report(session: Session, before: int, total: int) -> Report:
    """Progress of a part of the stage that `before` runs of the program precede."""

    def report(finished: int, message: str, score: float | None) -> None:
        done = before + finished
        session.context.progress.report(done, max(done, total), message=message, score=score, usage=session.usage)

    return report


def _result(
    session: Session, plan: _Plan, bootstrap: Bootstrap, outcome: Outcome, prompts: list[Artifact]
) -> StageResult:
    count = len(outcome.scored)
    facts: dict[str, int | str] = {
        **bootstrap.facts,
        "candidates": count,
        "scored": sum(each.score is not None for each in outcome.scored),
        "search_examples": len(plan.subset),
    }
    if plan.overlap:
        facts["train_in_validation"] = plan.overlap
    message = _about_demos(plan, bootstrap)
    result = StageResult(message=message, usage=session.usage, facts=facts)
    if outcome.winner is not None:
        winner = outcome.scored[outcome.winner]
        assert winner.full is not None
        is_vanilla = winner.candidate.prompts == session.program.vanilla
        artifact = None if is_vanilla else prompts[outcome.winner]
        facts |= {"winner": outcome.winner, "winner_kind": winner.candidate.kind}
        score = winner.full.model_copy(update={"prompts": artifact})
        result = result.model_copy(update={"prompt_set": artifact, "scores": (score,), "facts": facts})
    if not outcome.is_complete:
        message = f"the token budget ended the search; {facts['scored']} of {count} candidates were scored"
        result = result.model_copy(update={"outcome": "stopped", "reason": BudgetExhausted.code, "message": message})
    return result


def _about_demos(plan: _Plan, bootstrap: Bootstrap) -> str | None:
    """What a user should know when the search had no bootstrapped demos though they were wanted."""
    if plan.settings.max_bootstrapped_demos == 0 or bootstrap.passed or bootstrap.retry_passed:
        return None
    if not plan.examples:
        return (
            f"all {plan.overlap} training examples have the inputs of a validation example, so that none may become a "
            "demo: only the starting prompts were scored; give train and validation different examples"
        )
    return (
        f"none of {bootstrap.examples} training examples reached the threshold {plan.settings.threshold} "
        "(promptOptimizer.threshold): only zero-shot and labelled candidates were scored"
    )
