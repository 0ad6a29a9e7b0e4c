"""Prometheus metrics: of passes, API calls and the process, and of every run (`run_metrics`). docs/metrics.md has the
table of all of them."""

from __future__ import annotations

import threading
from collections import Counter as Tally
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, version
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.gc_collector import GCCollector
from prometheus_client.platform_collector import PlatformCollector
from prometheus_client.process_collector import ProcessCollector
from prometheus_client.registry import Collector

from tandem_api.v1alpha1 import OptimizationRun
from tandem_api.v1alpha1.status import StageStatus
from tandem_operator.app.queue import Key, Outcome
from tandem_operator.app.retry import error_type
from tandem_operator.app.run_metrics import STAGE_KINDS, RunMetrics, retries_of, stage_kind
from tandem_operator.decide.plan import ENDED

#: A pass takes milliseconds when nothing is to be done, and seconds when the object store or the API server is slow.
_PASS_BUCKETS: Final = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_CALL_BUCKETS: Final = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
#: From seconds, of a check, to a day, of a training.
_STAGE_BUCKETS: Final = (5, 15, 60, 300, 900, 1800, 3600, 7200, 14400, 28800, 86400)
#: A worker's own code may fail for reasons of any name: those that come after so many are one.
MOST_REASONS: Final = 50
OTHER: Final = "Other"


class ProcessState(Collector):
    """Gauges that are read off the process at each scrape."""

    def __init__(self, leads: Callable[[], bool], depth: Callable[[], int]) -> None:
        self._leads = leads
        self._depth = depth

    def collect(self) -> Iterator[Metric]:
        """All families."""
        yield GaugeMetricFamily("tandem_leader", "Whether this replica leads.", value=float(self._leads()))
        yield GaugeMetricFamily("tandem_queue_depth", "Runs that are due and wait for a worker.", value=self._depth())
        build = GaugeMetricFamily("tandem_build_info", "1; the version that runs.", labels=("version",))
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
        self._duration = self._histogram("reconcile_duration_seconds", "How long passes take.", (), _PASS_BUCKETS)
        self._errors = self._counter("reconcile_errors", "Passes that failed; conflicts too.", "type")
        self._reasons: set[str] = set()
        self._lock = threading.Lock()
        self._retries = self._counter(
            "stage_retries", "Further attempts of stages, by why the attempt before them ended.", "reason"
        )
        self._stages = self._histogram(
            "stage_duration_seconds", "How long ended stages took, all attempts together.", ("stage",), _STAGE_BUCKETS
        )
        for stage in STAGE_KINDS:
            # There from the start, so that the first one that ends is seen as a change.
            self._stages.labels(stage)
        self._calls = self._counter("api_requests", "Calls to the API server, but for the watch.", "verb", "code")
        self._call_duration = self._histogram(
            "api_request_duration_seconds", "How long they took.", ("verb",), _CALL_BUCKETS
        )

    def passed(self, key: Key, outcome: Outcome, seconds: float) -> None:
        """A pass ended: its duration, the run's new state, and what has happened since the run was last seen."""
        self._duration.observe(seconds)
        before = self._runs.replace(key, outcome.run, is_refused=outcome.is_refused)
        if before is not None and outcome.run is not None and before.metadata.uid == outcome.run.metadata.uid:
            for reason, count in _retries(before, outcome.run).items():
                self._retries.labels(self._bounded(reason)).inc(count)
            for stage in _ended(before, outcome.run):
                if stage.started is not None and stage.finished is not None:
                    took = (stage.finished - stage.started).total_seconds()
                    self._stages.labels(stage_kind(stage)).observe(max(took, 0.0))

    def failed(self, key: Key, error: Exception, seconds: float) -> None:
        """A pass raised. The run's series stay as they were last seen."""
        self._duration.observe(seconds)
        self._errors.labels(error_type(error)).inc()

    def called(self, verb: str, code: str, seconds: float) -> None:
        """A call to the API server ended. From any thread."""
        self._calls.labels(verb, code).inc()
        self._call_duration.labels(verb).observe(seconds)

    def _bounded(self, reason: str) -> str:
        with self._lock:
            if len(self._reasons) < MOST_REASONS:
                self._reasons.add(reason)
            return reason if reason in self._reasons else OTHER

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"tandem_{name}", text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, labels: tuple[str, ...], buckets: tuple[float, ...]) -> Histogram:
        return Histogram(f"tandem_{name}", text, labels, buckets=buckets, registry=self.registry)


def _retries(before: OptimizationRun, now: OptimizationRun) -> Tally[str]:
    """How many attempts were begun between the two, beyond the first of each stage, by reason."""
    old = _stages(before)
    found: Tally[str] = Tally()
    for place, stage in _stages(now).items():
        was = old.get(place)
        new = retries_of(stage) - (retries_of(was) if was is not None else 0)
        if new > 0:
            # A stage that is tried again still says why its last attempt ended.
            found[stage.reason or (was.reason if was is not None else None) or "Unknown"] += new
    return found


def _ended(before: OptimizationRun, now: OptimizationRun) -> list[StageStatus]:
    """The stages that have ended between the two."""
    old = {place for place, stage in _stages(before).items() if stage.state in ENDED}
    return [stage for place, stage in _stages(now).items() if stage.state in ENDED and place not in old]


def _stages(run: OptimizationRun) -> dict[tuple[int, str], StageStatus]:
    return {(step.index, stage.name): stage for step in run.status.steps for stage in step.stages}


def _version() -> str:
    try:
        return version("tandem")
    except PackageNotFoundError:
        return "unknown"
