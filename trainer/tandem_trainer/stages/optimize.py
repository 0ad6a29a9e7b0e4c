"""The `optimize` stage: one `p` step's search for better prompts, by the optimizer that its settings name.

Every call names the endpoint's model, so that after a `w` step the tuned model is prompted and no other.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import cast

from tandem_api.contract import StageResult
from tandem_api.errors import ConfigurationError
from tandem_api.v1alpha1.prompt_optimizers import DemoSearch, PromptOptimizer
from tandem_trainer.context import StageContext
from tandem_trainer.evaluate.examples import seeded_sample
from tandem_trainer.lm.client import BudgetExhausted
from tandem_trainer.prompt.demos import PredictorFields
from tandem_trainer.prompt.optimizer import Found, Optimize, Report, SearchTask
from tandem_trainer.prompt.selection import without_overlap
from tandem_trainer.prompt.trials import TrialTable
from tandem_trainer.stages.session import Session, open_session

#: The module of each type's optimizer, with its function `optimize`, and where more than the schema is to be checked
#: `check(settings)`, which raises ConfigurationError; imported when it is wanted.
OPTIMIZERS = {
    "bootstrap-random-search": "tandem_trainer.prompt.random_search",
    "mipro": "tandem_trainer.prompt.mipro.search",
    "gepa": "tandem_trainer.prompt.gepa",
    "dspy": "tandem_trainer.prompt.dspy",
}


def check_settings(settings: PromptOptimizer) -> None:
    """Raises ConfigurationError for settings whose optimizer cannot work here: a package or a class is missing."""
    check = getattr(_module(settings), "check", None)
    if check is not None:
        check(settings)


def run(context: StageContext) -> StageResult:
    """Search for better prompts than the request's first prompt set.

    `prompt_set` and `scores` name the winner; `prompt_set` is None when the program's original prompts won. A token
    budget that ends gives "stopped", with the best candidate that was scored on all of validation, if there is one.
    """
    return context.run(_optimize(context))


async def _optimize(context: StageContext) -> StageResult:
    request = context.request
    settings = request.prompt_optimizer or request.spec.prompts_of(request.index)
    optimize = cast(Optimize, _module(settings).optimize)
    async with open_session(context) as session:
        task, overlap = _task(session, settings)
        found = await optimize(task, settings)
        session.evaluator.check_error_rate()
        return await _result(session, task, settings, found, overlap)


def _module(settings: PromptOptimizer) -> ModuleType:
    try:
        return import_module(OPTIMIZERS[settings.type])
    except ImportError as error:
        raise ConfigurationError(
            f"promptOptimizer.type: {settings.type!r} needs a package that is not installed where programs run: "
            f"{error}; install it there (program.image on a cluster), or choose another type"
        ) from error


def _task(session: Session, settings: PromptOptimizer) -> tuple[SearchTask, int]:
    """What the optimizer is given, and how many training examples are validation examples, too."""
    request, splits = session.request, session.splits
    spec = request.spec
    train = without_overlap(splits.train, splits.validation, spec.data.inputs)
    start = session.prompt_set(request.prompts[0].artifact if request.prompts else None)
    task = SearchTask(
        program=session.program,
        metric=session.metric,
        evaluator=session.evaluator,
        client=session.client,
        start=start,
        fields={name: _fields(session, name) for name in start.predictors},
        inputs=spec.data.inputs,
        train=seeded_sample(train, settings.train_size, spec.seed, request.index, "bootstrap"),
        # The same examples in every step, so that the scores of steps can be compared, too.
        subset=seeded_sample(splits.validation, settings.validation_size, spec.seed, "search"),
        validation=splits.validation,
        seed=spec.seed,
        step=request.index,
        table=TrialTable(session.context.store, request.stage_layout),
        report=_report(session),
        writer=session.writer,
        teacher=session.teacher,
    )
    return task, len(splits.train) - len(train)


def _fields(session: Session, predictor: str) -> PredictorFields:
    signature = session.program.signature(predictor)
    return PredictorFields(tuple(signature.input_fields), tuple(signature.output_fields))


def _report(session: Session) -> Report:
    def report(done: int, total: int, message: str, score: float | None) -> None:
        session.context.progress.report(done, max(done, total), message=message, score=score, usage=session.usage)

    return report


async def _result(
    session: Session, task: SearchTask, settings: PromptOptimizer, found: Found, overlap: int
) -> StageResult:
    facts: dict[str, int | str] = {"optimizer": settings.type, **found.facts}
    message = found.message
    if overlap:
        facts["train_in_validation"] = overlap
        if not task.train and (not isinstance(settings, DemoSearch) or settings.max_bootstrapped_demos):
            message = (
                f"all {overlap} training examples have the inputs of a validation example, so that none may become a "
                "demo: only the starting prompts were scored; give train and validation different examples"
            )
    result = StageResult(message=message, usage=session.usage, facts=facts)
    if found.winner is not None:
        assert found.score is not None
        artifact = None if found.winner == session.program.vanilla else await task.table.prompts(found.winner)
        score = found.score.model_copy(update={"prompts": artifact})
        result = result.model_copy(update={"prompt_set": artifact, "scores": (score,)})
    if not found.is_complete:
        result = result.model_copy(update={"outcome": "stopped", "reason": BudgetExhausted.code})
    return result
