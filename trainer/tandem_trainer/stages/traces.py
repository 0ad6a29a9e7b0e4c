"""The `traces` stage: the program runs on the training set, and the runs that pass become training rows.

Source: BetterTogether (arXiv 2407.10930), BootstrapFinetune. The runs use the current prompts, which pass more often
than the original ones; every kept call carries both renderings, and the `train` stage takes the one it is told to.
"""

from __future__ import annotations

from collections.abc import Sequence

from tandem_api.contract import StageResult
from tandem_api.records import PredictorCall, PromptSet, ScoredExample
from tandem_api.v1alpha1.spec import Sampling
from tandem_api.v1alpha1.weight_optimizers import Traces, WeightOptimizer
from tandem_trainer.context import StageContext
from tandem_trainer.evaluate.evaluator import Job
from tandem_trainer.evaluate.examples import seeded_sample
from tandem_trainer.lm.client import BudgetExhausted
from tandem_trainer.prompt.demos import without_own_demos
from tandem_trainer.stages.session import Session, open_session
from tandem_trainer.traces.filtering import Messages, RenderVanilla, TraceCounts, select_traces
from tandem_trainer.traces.io import TRACES_NAME, write_traces

#: Predictors whose rows are counted one by one in the result's facts; the status holds a bounded number of facts.
MAX_COUNTED_PREDICTORS = 16


def run(context: StageContext) -> StageResult:
    """Run the program with the request's first prompt set and keep the passing traces.

    "skipped" with TooFewTraces when fewer are kept than `traces.minTraces`, or fewer with a call of a predictor than
    `traces.minPerPredictor`; "stopped" when the token budget ended the runs, then with the traces kept so far if these
    are enough.
    """
    return context.run(_trace(context))


async def _trace(context: StageContext) -> StageResult:
    async with open_session(context) as session:
        request = session.request
        optimizer = request.weight_optimizer or request.spec.weights_of(request.index)
        settings = optimizer.traces
        prompts = session.prompt_set(request.prompts[0].artifact if request.prompts else None)
        jobs = _jobs(session, settings, prompts)
        is_complete = True
        try:
            await session.evaluator.run(jobs, keep_calls=True, progress=session.reporter("running the program"))
        except BudgetExhausted:
            is_complete = False
        records = [record for record in session.evaluator.scored(jobs, keep_calls=True) if record is not None]
        vanilla = _render_vanilla(session, prompts, jobs)
        rows, counts = select_traces(records, settings, session.program.predictors, vanilla)
        lacking = _lacking(counts, optimizer)
        result = StageResult(usage=session.usage, facts=_facts(counts))
        if lacking is None:
            artifact = write_traces(context.store, request.stage_layout.traces + TRACES_NAME, rows)
            result = result.model_copy(update={"traces": artifact, "message": _left_out(counts, optimizer)})
        if not is_complete:
            ended = f"the token budget ended the runs after {len(records)} of {len(jobs)}"
            message = f"{ended}; {lacking or _summary(counts, settings)}"
            return result.model_copy(update={"outcome": "stopped", "reason": BudgetExhausted.code, "message": message})
        if lacking is not None:
            return result.model_copy(update={"outcome": "skipped", "reason": "TooFewTraces", "message": lacking})
        return result


def _lacking(counts: TraceCounts, optimizer: WeightOptimizer) -> str | None:
    """Why these traces are too few to train on; None if they are enough."""
    if counts.kept < optimizer.traces.min_traces:
        return _summary(counts, optimizer.traces)
    below = counts.below(optimizer.min_per_predictor)
    if not below or (optimizer.adapters == "per-predictor" and len(below) < len(counts.traces)):
        return None
    each = ", ".join(f"{name} in {count}" for name, count in counts.traces)
    fix = "lower it" if optimizer.adapters == "per-predictor" else "lower it (0: they are trained without)"
    return (
        f"of {counts.kept} kept traces at least {optimizer.min_per_predictor} must hold a call of each predictor that "
        f"is called (traces.minPerPredictor); found {each}; {fix}, or run more examples"
    )


def _left_out(counts: TraceCounts, optimizer: WeightOptimizer) -> str | None:
    """Which predictors get no adapter of their own, where others do."""
    below = counts.below(optimizer.min_per_predictor)
    if optimizer.adapters != "per-predictor" or not below:
        return None
    each = ", ".join(f"{name} ({count})" for name, count in below)
    return (
        f"these predictors keep the model that they have, for fewer than {optimizer.min_per_predictor} kept traces "
        f"hold a call of them (traces.minPerPredictor): {each}"
    )


def _jobs(session: Session, settings: Traces, prompts: PromptSet) -> list[Job]:
    """All runs, those of one example next to each other: they share their prompt, and the server its prefix."""
    spec = session.request.spec
    examples = seeded_sample(session.splits.train, settings.train_size, spec.seed, session.request.index, "traces")
    sampling: Sampling | None = None
    if settings.samples_per_example > 1:
        sampling = spec.model.sampling.model_copy(update={"temperature": settings.temperature})
    return [
        # An example that is a demo of the current prompts must not be shown its own answer.
        Job(own, example, sample, sampling)
        for example in examples
        for own in [without_own_demos(prompts, example, spec.data.inputs)]
        for sample in range(settings.samples_per_example)
    ]


def _render_vanilla(session: Session, prompts: PromptSet, jobs: Sequence[Job]) -> RenderVanilla:
    """What the program's original prompts would have been for the calls of a run on one of the jobs' examples."""
    program, inputs = session.program, session.request.spec.data.inputs
    originals = {job.example.id: without_own_demos(program.vanilla, job.example, inputs) for job in jobs}

    def render(run: ScoredExample, call: PredictorCall) -> Messages:
        original = originals[run.example].predictors[call.predictor]
        if prompts.predictors[call.predictor] == original and not original.demos:
            # Not rendered again: the recorded inputs hold text where the program passed what JSON cannot hold.
            return call.messages
        return program.render(call.predictor, original, call.inputs)

    return render


def _facts(counts: TraceCounts) -> dict[str, int | str]:
    facts: dict[str, int | str] = {
        "runs": counts.runs,
        "passed": counts.passed,
        "kept": counts.kept,
        "duplicates": counts.duplicates,
        "capped": counts.capped,
        "failed": counts.failed,
        "examples_with_traces": counts.examples,
    }
    if counts.unparsed:
        facts["unparsed_calls"] = counts.unparsed
    for name, rows in counts.rows[:MAX_COUNTED_PREDICTORS]:
        facts[f"rows.{name}"] = rows
    return facts


def _summary(counts: TraceCounts, settings: Traces) -> str:
    return (
        f"{counts.kept} traces were kept, at least {settings.min_traces} are needed (traces.minTraces): of "
        f"{counts.runs} runs {counts.failed} failed, {counts.passed} reached the threshold {settings.threshold}, "
        f"{counts.duplicates} of these were duplicates and {counts.capped} beyond maxPerExample"
    )
