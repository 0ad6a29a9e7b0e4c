"""What an ended task means: its result enters the status, or its failure is retried, or the step fails."""

from __future__ import annotations

from datetime import datetime, timedelta

from tandem_api.contract import MLFLOW_FACT, CandidateScore, EpochDigest, StageFailure, StageResult, parse_termination
from tandem_api.errors import EXIT_CONFIGURATION, EXIT_PERMANENT, EXIT_PREEMPTED, PERMANENT_EXIT_CODES
from tandem_api.layout import RunLayout
from tandem_api.v1alpha1 import Spec, Status
from tandem_api.v1alpha1.base import decimal
from tandem_api.v1alpha1.status import (
    MAX_MESSAGE,
    Artifact,
    Candidate,
    EpochAdapter,
    StageStatus,
    StepStatus,
    TestScore,
    Usage,
)
from tandem_operator.actions import EmitEvent
from tandem_operator.decide.names import camel_case, candidate_id
from tandem_operator.decide.plan import (
    all_candidates,
    best_candidate,
    changed,
    current_stage,
    total_usage,
    with_epochs,
    with_stage,
    with_step,
)
from tandem_operator.decide.requests import program_for
from tandem_operator.snapshot import Observed, TaskObservation

#: Wait before the next attempt, after 1, 2, 3... counted failures, or as many preemptions.
BACKOFF_SECONDS = (2, 10, 30, 60)


def record_end(
    spec: Spec, status: Status, observed: Observed, step: StepStatus, stage: StageStatus, task: TaskObservation
) -> tuple[Status, list[EmitEvent]]:
    """The status after `task`, the current attempt of `stage`, has ended."""
    spoken = parse_termination(task.termination) if task.termination else None
    if task.state == "succeeded" and isinstance(spoken, StageResult):
        return _record_result(spec, status, observed, step, stage, spoken)
    return _record_failure(spec, status, observed, step, stage, task, spoken)


def fail_stage(
    status: Status, observed: Observed, step: StepStatus, stage: StageStatus, reason: str, message: str
) -> Status:
    """The stage, and with it its step, has failed for good."""
    text = message[:MAX_MESSAGE]
    stage = changed(stage, state="Failed", reason=reason, message=text, finished=observed.now)
    step = changed(with_stage(step, stage), state="Failed", reason=reason, message=text, finished=observed.now)
    return _stored(status, step)


def _record_result(
    spec: Spec, status: Status, observed: Observed, step: StepStatus, stage: StageStatus, result: StageResult
) -> tuple[Status, list[EmitEvent]]:
    reason = camel_case(result.reason) if result.reason else None
    stage = changed(
        stage,
        state={"done": "Succeeded", "skipped": "Skipped", "stopped": "Stopped"}[result.outcome],
        reason=reason,
        message=result.message[:MAX_MESSAGE] if result.message else None,
        finished=observed.now,
        usage=_with_gpu(spec, observed, stage, result.usage),
        facts=result.facts,
    )
    program = program_for(status, step, stage)
    step = with_stage(step, stage)
    if step.kind == "final":
        status = changed(status, test=_test_score(result), result=result.bundle)
    elif result.scores:
        # A stopped search may hold a candidate already: what it has scored in full is valid. Of the select stages
        # each that finds a better adapter than those before it says so.
        candidates = tuple(_candidate(step, score, program.adapter) for score in result.scores)
        winner = best_candidate(candidates)
        step = changed(
            step,
            candidates=candidates,
            score=winner.score if winner else None,
            errors=sum(candidate.errors for candidate in candidates),
        )
    step = changed(
        step,
        prompt_set=result.prompt_set or step.prompt_set,
        traces=result.traces or step.traces,
        adapter=result.adapter or step.adapter,
    )
    if result.epochs and result.adapter is not None:
        step = with_epochs(step, _epochs(spec, observed, step, result.adapter, result.epochs))
    if result.outcome != "done":
        # The rest of the step has nothing to work on.
        step = changed(step, state=stage.state, reason=reason, message=stage.message, finished=observed.now)
    elif current_stage(step) is None:
        step = changed(step, state="Succeeded", finished=observed.now)
    return _stored(status, step), [*_step_events(step), *_tracking_events(status, result)]


def _epochs(
    spec: Spec, observed: Observed, step: StepStatus, last: Artifact, earlier: tuple[EpochDigest, ...]
) -> tuple[EpochAdapter, ...]:
    """All adapters of a training, the last epoch's first: it is the best most often, and so drops most of the others
    early."""
    storage = observed.storage
    layout = RunLayout(storage.prefix, observed.namespace, observed.name, observed.uid)
    folder = layout.stage(step.index, step.kind, "train").epoch_adapter
    return (
        EpochAdapter(epoch=spec.weights_of(step.index).epochs, adapter=last),
        *(
            EpochAdapter(
                epoch=one.epoch, adapter=Artifact(uri=f"s3://{storage.bucket}/{folder(one.epoch)}", sha256=one.sha256)
            )
            for one in reversed(earlier)
        ),
    )


def _stored(status: Status, step: StepStatus) -> Status:
    steps = with_step(status.steps, step)
    baseline = next(iter(steps[0].candidates), None)
    best = best_candidate(all_candidates(steps))
    return changed(status, steps=steps, usage=total_usage(steps), baseline=baseline, best=best)


def _step_events(step: StepStatus) -> list[EmitEvent]:
    if step.state not in ("Succeeded", "Skipped", "Stopped"):
        return []
    score = f", score {step.score}" if step.score is not None else ""
    chosen = f", {step.chosen_epoch}" if step.chosen_epoch else ""
    why = f": {step.message or step.reason}" if step.reason else ""
    text = f"step {step.index} ({step.kind}) {step.state}{score}{chosen}{why}"
    return [EmitEvent("Normal", f"Step{step.state}", text[:1024])]


def _tracking_events(before: Status, result: StageResult) -> list[EmitEvent]:
    """Told once a run: each stage that misses MLflow says so in its own facts."""
    missed = result.facts.get(MLFLOW_FACT)
    known = any(MLFLOW_FACT in stage.facts for step in before.steps for stage in step.stages)
    return [] if missed is None or known else [EmitEvent("Warning", "TrackingFailed", f"MLflow: {missed}"[:1024])]


def _record_failure(
    spec: Spec,
    status: Status,
    observed: Observed,
    step: StepStatus,
    stage: StageStatus,
    task: TaskObservation,
    spoken: StageResult | StageFailure | None,
) -> tuple[Status, list[EmitEvent]]:
    foreign, message = _cause(task, spoken)
    reason = camel_case(foreign)
    usage = spoken.usage if isinstance(spoken, StageFailure) and spoken.usage.calls else stage.usage
    stage = changed(stage, usage=_with_gpu(spec, observed, stage, usage))
    where = f"step {step.index} ({step.kind}), stage {stage.name}, attempt {stage.attempt}"
    if task.exit_code == EXIT_PREEMPTED:
        stage = changed(
            stage, state="Pending", reason="Preempted", message=message[:MAX_MESSAGE], finished=observed.now
        )
        event = EmitEvent("Normal", "Preempted", f"{where}: stopped after a checkpoint; it will be continued")
        return _stored(status, with_stage(step, stage)), [event]
    stage = changed(stage, failures=stage.failures + 1)
    permanent = task.is_permanent or task.exit_code in PERMANENT_EXIT_CODES
    if permanent or stage.failures >= spec.attempts:
        tried = "" if permanent else f" (attempt {stage.attempt}, {stage.failures} failed)"
        return fail_stage(status, observed, step, stage, reason, f"{message}{tried}"), []
    # Pending with a finish time: the next attempt waits for its backoff.
    stage = changed(stage, state="Pending", reason=reason, message=message[:MAX_MESSAGE], finished=observed.now)
    event = EmitEvent("Warning", "AttemptFailed", f"{where} failed and will be retried: {reason}: {message}"[:1024])
    return _stored(status, with_stage(step, stage)), [event]


def _cause(task: TaskObservation, spoken: StageResult | StageFailure | None) -> tuple[str, str]:
    if isinstance(spoken, StageFailure):
        return spoken.error, spoken.message
    if task.state == "succeeded":
        return "ResultLost", "the worker ended well but its result message was lost; the next attempt repeats it"
    if task.message:
        return task.reason or "WorkerDied", task.message
    names = {EXIT_CONFIGURATION: "BadConfiguration", EXIT_PERMANENT: "PermanentFailure", EXIT_PREEMPTED: "Preempted"}
    reason = task.reason or names.get(task.exit_code or 0, "WorkerDied")
    ended = f"the worker ended with exit code {task.exit_code}" if task.exit_code is not None else "the worker is gone"
    tail = f"; the end of its log:\n{task.log_tail}" if task.log_tail else ""
    return reason, f"{ended}{f' ({task.reason})' if task.reason else ''}{tail}"


def next_start(stage: StageStatus) -> datetime | None:
    """When the next attempt of a stage that is to be tried again may start; None: at once."""
    # Preemptions are not counted as failures, but must not follow each other without a pause either.
    bad = stage.attempt - stage.failures if stage.reason == "Preempted" else stage.failures
    if bad == 0 or stage.finished is None:
        return None
    return stage.finished + timedelta(seconds=BACKOFF_SECONDS[min(bad, len(BACKOFF_SECONDS)) - 1])


def backoff_over(observed: Observed, stage: StageStatus) -> bool:
    """Whether the next attempt may start."""
    earliest = next_start(stage)
    # An end that is still to come was written before the clock was put back: nobody knows how long ago that is.
    is_put_back = stage.finished is not None and observed.now < stage.finished
    return earliest is None or is_put_back or observed.now >= earliest


def keep_clock(
    spec: Spec, status: Status, observed: Observed, step: StepStatus, stage: StageStatus, *, works: bool
) -> Status:
    """`stage.attempt_started` is set while its attempt works, and only then: what it spends until it waits or is held
    enters its usage at once. Changes nothing while nothing changes."""
    if works == (stage.attempt_started is not None):
        return status
    if works:
        stage = changed(stage, attempt_started=observed.now)
    else:
        stage = changed(stage, usage=_with_gpu(spec, observed, stage, stage.usage), attempt_started=None)
    return _stored(status, with_stage(step, stage))


def _candidate(step: StepStatus, score: CandidateScore, adapter: Artifact | None) -> Candidate:
    return Candidate(
        id=candidate_id(score.prompts, adapter),
        step=step.index,
        prompt_set=score.prompts,
        adapter=adapter,
        score=decimal(score.score),
        low=decimal(score.low),
        high=decimal(score.high),
        n=score.n,
        errors=score.errors,
    )


def _test_score(result: StageResult) -> TestScore | None:
    if not result.scores:
        return None
    best, *others = result.scores
    baseline = next((s.score for s in others if s.prompts is None), None)
    return TestScore(
        score=decimal(best.score),
        low=decimal(best.low),
        high=decimal(best.high),
        n=best.n,
        errors=best.errors,
        baseline=decimal(baseline) if baseline is not None else None,
    )


def _with_gpu(spec: Spec, observed: Observed, stage: StageStatus, usage: Usage) -> Usage:
    """`usage` with the GPU time that the platform held for the stage: its servers', or its training nodes', while it
    worked. Where the platform holds no accelerator, what the worker says stays."""
    if stage.name == "train":
        held = spec.training.nodes * observed.training_accelerators
    else:
        held = spec.serving.replicas * observed.serving_accelerators
    if held == 0 or stage.name == "check":
        return usage
    worked = observed.now - (stage.attempt_started or observed.now)
    # Negative where the clock was put back.
    seconds = max(0, int(worked.total_seconds()))
    return changed(usage, gpu_seconds=stage.usage.gpu_seconds + seconds * held)
