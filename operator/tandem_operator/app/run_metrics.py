"""The series of runs, as each was last seen, which one that goes on is every few seconds. A run that is gone has none
any more. They are made when a run is seen, so that a scrape of all runs has little to do.

A run has at most MOST_SERIES, whatever its strategy: stages of all its steps are summed by their kind, and of its steps
only those that began last have series of their own. What earlier ones came to is in Prometheus' memory.
"""

from __future__ import annotations

import threading
from collections import Counter as Tally
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Literal

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tandem_api import conditions
from tandem_api.v1alpha1 import OptimizationRun, Status
from tandem_api.v1alpha1.status import StageStatus, StepStatus
from tandem_operator.app.progress import last_progress
from tandem_operator.app.queue import Key

STATES: Final = ("Pending", "Running", "Suspended", "Succeeded", "Failed")
MOST_SERIES: Final = 60
#: Steps with series of their own.
MOST_STEPS: Final = 5
#: Stages, as series are labelled with them.
STAGE_KINDS: Final = ("check", "evaluate", "optimize", "traces", "train", "select")
#: Stages that call no model.
_SILENT: Final = frozenset({"check", "train"})

Labels = tuple[str, ...]
Sample = tuple[str, Labels, float]


@dataclass(frozen=True)
class Family:
    """One metric of runs; `labels` beside the run's namespace and name."""

    name: str
    text: str
    labels: Labels = ()
    kind: Literal["gauge", "counter"] = "gauge"

    def empty(self) -> GaugeMetricFamily | CounterMetricFamily:
        """The family without a sample."""
        made = GaugeMetricFamily if self.kind == "gauge" else CounterMetricFamily
        return made(f"tandem_run_{self.name}", self.text, labels=("namespace", "name", *self.labels))


FAMILIES: Final = (
    Family("info", "1; what the run is.", ("uid", "strategy", "model")),
    Family("state", "1, with the state that the run is in.", ("state",)),
    Family("waiting", "1 while the run waits for something outside of it, with what for.", ("reason",)),
    Family("current_stage", "1, with the stage that is worked on.", ("step", "kind", "stage")),
    Family("stage_progress_ratio", "How much of the current stage is done, from 0 to 1."),
    Family("started_timestamp_seconds", "When the run's first step began."),
    Family("finished_timestamp_seconds", "When the run ended."),
    Family("last_progress_timestamp_seconds", "When a run that is to go on last came forward."),
    Family("best_score", "Validation score of the best candidate so far."),
    Family("baseline_score", "Validation score of the unchanged program."),
    Family("last_score", "Validation score of the last step that has one."),
    Family("test_score", "Score of the best program on the test set."),
    Family("test_baseline_score", "Score of the unchanged program on the test set."),
    Family("step_score", "Best validation score among a step's candidates.", ("step", "kind")),
    Family("step_duration_seconds", "How long a step took, or has taken so far.", ("step", "kind")),
    Family("candidates", "Candidates that were scored on the whole validation set."),
    Family("stage_seconds", "Time that stages took, from their first attempt's start.", ("stage",), "counter"),
    Family("lm_calls", "LM calls that ended stages and attempts have paid for.", ("stage",), "counter"),
    Family("tokens", "Tokens that ended stages and attempts have spent.", ("stage", "type"), "counter"),
    Family("gpu_seconds", "Seconds of all accelerators that were held for stages.", ("stage",), "counter"),
    Family("retries", "Further attempts of stages.", (), "counter"),
    Family("serving_restarts", "Times that model servers were started anew after a failure.", (), "counter"),
    Family("budget_tokens", "Limit of tokens."),
    Family("budget_gpu_seconds", "Limit of accelerator seconds."),
    Family("budget_deadline_seconds", "Limit of the time from the first step's start."),
    Family("budget_used_ratio", "Used part of a limit; may pass 1.", ("budget",)),
)


@dataclass(frozen=True)
class Known:
    """A run, when it was seen to come forward, and its series."""

    run: OptimizationRun
    progressed: datetime
    series: tuple[Sample, ...]


class RunMetrics(Collector):
    """The series of all runs. Safe to use from several threads."""

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._seen: dict[Key, Known] = {}
        self._refused: set[Key] = set()

    def replace(self, key: Key, run: OptimizationRun | None, *, is_refused: bool = False) -> OptimizationRun | None:
        """Remember the run as it is now (None: it is gone, or refused); how it was before."""
        with self._lock:
            before = self._seen.pop(key, None)
            self._refused.discard(key)
            if run is not None:
                known = (before.run, before.progressed) if before is not None else None
                now = self._now()
                progressed = last_progress(known, run, now)
                self._seen[key] = Known(run, progressed, tuple(series(run, progressed, now)))
            elif is_refused:
                self._refused.add(key)
        return before.run if before is not None else None

    def collect(self) -> Iterator[Metric]:
        """All families, those without series too."""
        with self._lock:
            seen, refused = sorted(self._seen.items(), key=lambda item: item[0]), len(self._refused)
        yield _states([one.run for _, one in seen], refused)
        families = {family.name: family.empty() for family in FAMILIES}
        for key, one in seen:
            for name, labels, value in one.series:
                families[name].add_metric((*key, *labels), value)
        yield from families.values()


def series(run: OptimizationRun, progressed: datetime, now: datetime) -> Iterator[Sample]:
    """All of one run's: the family's name, labels, value. `progressed`: when it last came forward."""
    status, state = run.status, state_of(run)
    yield "info", (run.metadata.uid, status.strategy or "", run.spec.model.uri), 1
    yield "state", (state,), 1
    if state in ("Pending", "Running"):
        yield "last_progress_timestamp_seconds", (), progressed.timestamp()
        yield from _current(status)
    for name, at in (("started", status.started), ("finished", status.finished)):
        if at is not None:
            yield f"{name}_timestamp_seconds", (), at.timestamp()
    yield from _scores(status)
    yield from _steps(status, now)
    yield from _spent(status, now)
    yield "retries", (), sum(retries_of(stage) for step in status.steps for stage in step.stages)
    yield "serving_restarts", (), status.serving.restarts
    yield from _budget(run, now)


def retries_of(stage: StageStatus) -> int:
    """Its attempts beyond the first."""
    return max(stage.attempt - 1, 0)


def state_of(run: OptimizationRun) -> str:
    """One of STATES."""
    # While a run goes on its phase says what it does.
    return run.status.phase if run.status.phase in STATES else "Running"


def stage_kind(stage: StageStatus) -> str:
    """Its name; one for all select stages."""
    return stage.name.partition("-")[0]


def _states(runs: list[OptimizationRun], refused: int) -> Metric:
    family = GaugeMetricFamily("tandem_runs", "Runs by state.", labels=("state",))
    counts = Tally(map(state_of, runs))
    counts["Failed"] += refused
    for state in STATES:
        family.add_metric((state,), counts[state])
    return family


def _current(status: Status) -> Iterator[Sample]:
    for kind in (conditions.PROGRESSING, conditions.SERVING_READY):
        condition = conditions.find(status.conditions, kind)
        if condition is not None and condition.reason in conditions.WAITING:
            yield "waiting", (condition.reason,), 1
            break
    step = status.step
    if step is not None and step.stage is not None:
        yield "current_stage", (str(step.index), step.kind, step.stage), 1
        if step.progress is not None:
            yield "stage_progress_ratio", (), step.progress / 100


def _scores(status: Status) -> Iterator[Sample]:
    if status.best is not None:
        yield "best_score", (), float(status.best.score)
    if status.baseline is not None:
        yield "baseline_score", (), float(status.baseline.score)
    scored = [step.score for step in status.steps if step.score is not None]
    if scored:
        yield "last_score", (), float(scored[-1])
    if status.test is not None:
        yield "test_score", (), float(status.test.score)
        if status.test.baseline is not None:
            yield "test_baseline_score", (), float(status.test.baseline)
    yield "candidates", (), sum(len(step.candidates) for step in status.steps)


def _steps(status: Status, now: datetime) -> Iterator[Sample]:
    begun = [step for step in status.steps if step.started is not None]
    for step in begun[-MOST_STEPS:]:
        labels = (str(step.index), step.kind)
        yield "step_duration_seconds", labels, _seconds(step, now)
        if step.score is not None:
            yield "step_score", labels, float(step.score)


def _spent(status: Status, now: datetime) -> Iterator[Sample]:
    # Plain sums: a run may have hundreds of stages.
    sums: dict[str, list[float]] = {}
    for step in status.steps:
        # A step that a deadline has stopped leaves its last stage as it was.
        until = step.finished or now
        for stage in step.stages:
            if stage.started is not None:
                total, usage = sums.setdefault(stage_kind(stage), [0.0, 0, 0, 0, 0]), stage.usage
                total[0] += _seconds(stage, until)
                total[1] += usage.gpu_seconds
                total[2] += usage.calls
                total[3] += usage.prompt_tokens
                total[4] += usage.completion_tokens
    for kind, (seconds, gpu_seconds, calls, prompt, completion) in sums.items():
        yield "stage_seconds", (kind,), seconds
        if kind != "check":
            yield "gpu_seconds", (kind,), gpu_seconds
        if kind not in _SILENT:
            yield "lm_calls", (kind,), calls
            yield "tokens", (kind, "prompt"), prompt
            yield "tokens", (kind, "completion"), completion


def _budget(run: OptimizationRun, now: datetime) -> Iterator[Sample]:
    budget, status = run.spec.budget, run.status
    limits: list[tuple[str, str, float, float]] = []
    if budget.tokens is not None:
        limits.append(("tokens", "tokens", status.usage.tokens, budget.tokens))
    if budget.gpu_hours is not None:
        limits.append(("gpu", "gpu_seconds", status.usage.gpu_seconds, float(budget.gpu_hours) * 3600))
    if budget.deadline_seconds is not None:
        passed = ((status.finished or now) - status.started).total_seconds() if status.started is not None else 0.0
        limits.append(("deadline", "deadline_seconds", max(passed, 0.0), budget.deadline_seconds))
    for label, name, used, limit in limits:
        yield f"budget_{name}", (), limit
        # A limit may be 0, or so little that a float is.
        yield "budget_used_ratio", (label,), used / limit if limit > 0 else 1.0


def _seconds(one: StepStatus | StageStatus, now: datetime) -> float:
    """From its start to its end, or until now where it goes on. A stage that is tried again has a finish, too."""
    has_ended = one.state not in ("Pending", "Running")
    end = one.finished if has_ended and one.finished is not None else now
    return max((end - (one.started or end)).total_seconds(), 0.0)
