"""Rules that end the search early: budgets and stop rules. The final test is made all the same."""

from __future__ import annotations

from datetime import timedelta

from tandem_api.v1alpha1 import Spec, Status
from tandem_api.v1alpha1.status import StepStatus
from tandem_operator.decide.plan import ENDED, changed
from tandem_operator.snapshot import Observed

REASONS = ("TargetReached", "PatienceExhausted", "BudgetExhausted", "DeadlineReached")


def deadline_passed(spec: Spec, status: Status, observed: Observed) -> bool:
    """Whether the run has used up its wall-clock time."""
    if spec.budget.deadline_seconds is None or status.started is None:
        return False
    return observed.now >= status.started + timedelta(seconds=spec.budget.deadline_seconds)


def stop_reason(spec: Spec, status: Status, observed: Observed) -> tuple[str, str] | None:
    """Why no further step of the strategy is begun: (reason, message), or None to go on."""
    best = status.best
    if best is None:
        return None
    target = spec.stop.target_score
    if target is not None and float(best.score) >= float(target):
        return "TargetReached", f"the best score {best.score} has reached the target {target}"
    if spec.stop.patience is not None:
        since = [s for s in status.steps if s.kind in ("p", "w") and s.state in ENDED and s.index > best.step]
        if len(since) >= spec.stop.patience:
            return "PatienceExhausted", f"{len(since)} steps in a row did not improve the best score {best.score}"
    budget = spec.budget
    if budget.tokens is not None and status.usage.tokens >= budget.tokens:
        return "BudgetExhausted", f"{status.usage.tokens} of {budget.tokens} tokens are spent"
    if budget.gpu_hours is not None and status.usage.gpu_seconds >= float(budget.gpu_hours) * 3600:
        return "BudgetExhausted", f"{status.usage.gpu_seconds / 3600:.2f} of {budget.gpu_hours} GPU hours are spent"
    if deadline_passed(spec, status, observed):
        return "DeadlineReached", f"{budget.deadline_seconds} seconds have passed since the start"
    return None


def skip_remaining(steps: tuple[StepStatus, ...], reason: str, message: str) -> tuple[StepStatus, ...]:
    """Every step of the strategy that has not begun is skipped; the final one stays."""
    return tuple(
        changed(step, state="Skipped", reason=reason, message=message)
        if step.kind in ("p", "w") and step.state == "Pending"
        else step
        for step in steps
    )
