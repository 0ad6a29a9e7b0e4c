"""How a run ended, as the worker knows that does its last attempt. Pure, but for one object in S3: the moment it ended,
which must be the same whoever logs it, and however often."""

from __future__ import annotations

from datetime import UTC, datetime

from tandem_api.contract import CandidateScore, StageRequest, StageResult
from tandem_api.errors import EXIT_PREEMPTED, PERMANENT_EXIT_CODES
from tandem_api.records import Record
from tandem_api.store import ObjectStore
from tandem_api.v1alpha1.base import decimal
from tandem_api.v1alpha1.status import MAX_MESSAGE, StageStatus, Status, StepState, TestScore
from tandem_trainer.stored import stored


class Ending(Record):
    """The end of a run."""

    finished: datetime
    reason: str | None = None
    """Why there is no result; None: there is one."""
    message: str | None = None


def result_ends_run(request: StageRequest, result: StageResult) -> bool:
    """Whether no stage comes after this result: it is the final one, or a baseline that has scored nothing."""
    return request.kind == "final" or (request.kind == "baseline" and result.outcome != "done" and not result.scores)


def failure_ends_run(request: StageRequest, exit_code: int) -> bool:
    """Whether the engine will give up after this failure: nothing can change it, or it was tried often enough."""
    if exit_code == EXIT_PREEMPTED:
        return False
    stage = _stage(request)
    failures = (stage.failures if stage is not None else 0) + 1
    return exit_code in PERMANENT_EXIT_CODES or failures >= request.spec.attempts


def keep_ending(store: ObjectStore, request: StageRequest, reason: str | None, message: str | None) -> Ending:
    """The run's end as it was first noted, or now. A result takes the place of a failure that was not the last."""
    kept = read_ending(store, request)
    if kept is not None and (kept.reason is None) == (reason is None):
        return kept
    ending = Ending(finished=datetime.now(UTC), reason=reason, message=message)
    store.put(_key(request), ending.model_dump_json().encode())
    return ending


def read_ending(store: ObjectStore, request: StageRequest) -> Ending | None:
    """The run's end as it was noted by this stage, if it was. Raises DataError for a damaged one."""
    return stored(store, _key(request), Ending, "the end of a run", "delete it")


def status_after(request: StageRequest, status: Status, ending: Ending, result: StageResult | None) -> Status:
    """The status as the engine will have it once the attempt has ended; GPU time as far as it is known before."""
    state: StepState = "Failed"
    if result is not None:
        state = {"done": "Succeeded", "skipped": "Skipped", "stopped": "Stopped"}[result.outcome]  # type: ignore[assignment]
    why = {"reason": ending.reason, "message": ending.message[:MAX_MESSAGE] if ending.message else None}
    end = {"state": state, "finished": ending.finished, **why}
    steps = []
    for step in status.steps:
        if step.index == request.index:
            stages = tuple(
                _with_result(stage.model_copy(update=end), result) if stage.name == request.stage else stage
                for stage in step.stages
            )
            tokens = sum(stage.usage.tokens for stage in stages)
            step = step.model_copy(update={**end, "stages": stages, "tokens": tokens})
        steps.append(step)
    found: dict[str, object] = {"steps": tuple(steps), "finished": ending.finished}
    if result is not None and request.kind == "final":
        found |= {"result": result.bundle, "test": _test_score(result.scores)}
    return status.model_copy(update=found)


def _key(request: StageRequest) -> str:
    return f"{request.stage_layout.root}ending.json"


def _stage(request: StageRequest) -> StageStatus | None:
    steps = request.status.steps if request.status is not None else ()
    stages = (stage for step in steps if step.index == request.index for stage in step.stages)
    return next((stage for stage in stages if stage.name == request.stage), None)


def _with_result(stage: StageStatus, result: StageResult | None) -> StageStatus:
    if result is None:
        return stage
    seconds = max(stage.usage.gpu_seconds, result.usage.gpu_seconds)
    usage = result.usage.model_copy(update={"gpu_seconds": seconds})
    return stage.model_copy(update={"usage": usage, "facts": result.facts})


def _test_score(scores: tuple[CandidateScore, ...]) -> TestScore | None:
    if not scores:
        return None
    best, *others = scores
    baseline = next((decimal(score.score) for score in others if score.prompts is None), None)
    given = {name: decimal(getattr(best, name)) for name in ("score", "low", "high")}
    return TestScore(**given, n=best.n, errors=best.errors, baseline=baseline)
