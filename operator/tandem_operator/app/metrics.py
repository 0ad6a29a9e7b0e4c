"""Prometheus metrics: of passes, and of every run as it was last seen. A run that is gone has no series any more."""

from __future__ import annotations

import threading
from collections import Counter as Tally
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from tandem_api.v1alpha1 import OptimizationRun
from tandem_api.v1alpha1.status import StageStatus, StepStatus
from tandem_operator.app.queue import Key, Outcome
from tandem_operator.app.retry import error_type

STATES = ("Pending", "Running", "Suspended", "Succeeded", "Failed")
#: A pass takes milliseconds when nothing is to be done, and seconds when the object store or the API server is slow.
_BUCKETS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_WHERE = ("namespace", "name")


class RunMetrics(Collector):
    """The series of runs, made anew for each scrape. Safe to use from several threads."""

    def __init__(self, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._runs: dict[Key, OptimizationRun] = {}

    def replace(self, key: Key, run: OptimizationRun | None) -> OptimizationRun | None:
        """Remember the run as it is now (None: it is gone); how it was before."""
        with self._lock:
            before = self._runs.pop(key, None)
            if run is not None:
                self._runs[key] = run
        return before

    def collect(self) -> Iterator[Metric]:
        """All families, those without series too."""
        with self._lock:
            runs = sorted(self._runs.items())
        yield _states([run for _, run in runs])
        best, baseline, test, spent, gpu, steps = (
            GaugeMetricFamily(f"tandem_run_{name}", text, labels=(*_WHERE, *labels))
            for name, text, labels in (
                ("best_score", "Validation score of the best candidate so far.", ()),
                ("baseline_score", "Validation score of the unchanged program.", ()),
                ("test_score", "Score of the best program on the test set.", ()),
                ("tokens", "Tokens that the run's workers have spent.", ("type",)),
                ("gpu_seconds", "Seconds of all accelerators that the run has held.", ()),
                ("step_duration_seconds", "How long a step took, or has taken so far.", ("step", "kind")),
            )
        )
        for key, run in runs:
            status = run.status
            if status.best is not None:
                best.add_metric(key, float(status.best.score))
            if status.baseline is not None:
                baseline.add_metric(key, float(status.baseline.score))
            if status.test is not None:
                test.add_metric(key, float(status.test.score))
            spent.add_metric((*key, "prompt"), status.usage.prompt_tokens)
            spent.add_metric((*key, "completion"), status.usage.completion_tokens)
            gpu.add_metric(key, status.usage.gpu_seconds)
            for step in status.steps:
                if step.started is not None:
                    steps.add_metric((*key, str(step.index), step.kind), self._seconds(step))
        yield from (best, baseline, test, spent, gpu, steps)

    def _seconds(self, step: StepStatus) -> float:
        began = step.started or self._now()
        return max(((step.finished or self._now()) - began).total_seconds(), 0.0)


class ProcessState(Collector):
    """Gauges that are read off the process at each scrape."""

    def __init__(self, leads: Callable[[], bool], depth: Callable[[], int]) -> None:
        self._leads = leads
        self._depth = depth

    def collect(self) -> Iterator[Metric]:
        """All families."""
        yield GaugeMetricFamily("tandem_leader", "Whether this replica leads.", value=float(self._leads()))
        yield GaugeMetricFamily("tandem_queue_depth", "Runs that are due and wait for a worker.", value=self._depth())
        build = GaugeMetricFamily("tandem_build_info", "The version that runs.", labels=("version",))
        build.add_metric((_version(),), 1)
        yield build


class Metrics:
    """All of them in one registry; the queue's monitor."""

    def __init__(self, runs: RunMetrics | None = None) -> None:
        self.registry = CollectorRegistry()
        for collector in (ProcessCollector, PlatformCollector, GCCollector):
            collector(registry=self.registry)
        self._runs = runs or RunMetrics()
        self.registry.register(self._runs)
        self._duration = Histogram(
            "tandem_reconcile_duration_seconds", "How long passes take.", buckets=_BUCKETS, registry=self.registry
        )
        self._errors = Counter(
            "tandem_reconcile_errors", "Passes that failed; conflicts too.", ("type",), registry=self.registry
        )
        self._retries = Counter(
            "tandem_stage_retries",
            "Further attempts of stages, by why the attempt before them ended.",
            ("reason",),
            registry=self.registry,
        )

    def passed(self, key: Key, outcome: Outcome, seconds: float) -> None:
        """A pass ended: its duration, the run's new state, and retries since the run was last seen."""
        self._duration.observe(seconds)
        before = self._runs.replace(key, outcome.run)
        if before is not None and outcome.run is not None and before.metadata.uid == outcome.run.metadata.uid:
            for reason, count in _retries(before, outcome.run).items():
                self._retries.labels(reason).inc(count)

    def failed(self, key: Key, error: Exception, seconds: float) -> None:
        """A pass raised. The run's series stay as they were last seen."""
        self._duration.observe(seconds)
        self._errors.labels(error_type(error)).inc()


def _states(runs: list[OptimizationRun]) -> Metric:
    family = GaugeMetricFamily("tandem_runs", "Runs by state.", labels=("state",))
    counts = Tally(_state(run) for run in runs)
    for state in STATES:
        family.add_metric((state,), counts[state])
    return family


def _state(run: OptimizationRun) -> str:
    # While a run goes on its phase says what it does.
    return run.status.phase if run.status.phase in STATES else "Running"


def _retries(before: OptimizationRun, now: OptimizationRun) -> Tally[str]:
    """How many attempts were begun between the two, beyond the first of each stage, by reason."""
    old = _stages(before)
    found: Tally[str] = Tally()
    for place, stage in _stages(now).items():
        was = old.get(place)
        new = max(stage.attempt - 1, 0) - (max(was.attempt - 1, 0) if was is not None else 0)
        if new > 0:
            # A stage that is tried again still says why its last attempt ended.
            found[stage.reason or (was.reason if was is not None else None) or "Unknown"] += new
    return found


def _stages(run: OptimizationRun) -> dict[tuple[int, str], StageStatus]:
    return {(step.index, stage.name): stage for step in run.status.steps for stage in step.stages}


def _version() -> str:
    try:
        return version("tandem")
    except PackageNotFoundError:
        return "unknown"
