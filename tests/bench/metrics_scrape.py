"""What a scrape of many runs costs: time, CPU and bytes, beside the goals of 1 s and 5 MB.

    python -m tests.bench.metrics_scrape [--runs 1000] [--scrapes 5]

The runs are held in the operator's own metrics and asked for over HTTP, as Prometheus does it (gzip). Typical ones have
gone through `p -> w -> p`; the largest ones have 64 steps, 768 stages, and all series of a run that goes on.
"""

from __future__ import annotations

import argparse
import gzip
import resource
import time
from collections.abc import Callable
from datetime import UTC, datetime
from http.client import HTTPConnection
from typing import Any

from tests.bench.common import table
from tests.unit.operator.app.helpers import run_of
from tests.unit.operator.app.test_metrics import largest

from tandem_api.v1alpha1 import OptimizationRun
from tandem_operator.app.endpoints import Endpoints
from tandem_operator.app.health import Vitals
from tandem_operator.app.metrics import Metrics
from tandem_operator.app.queue import Outcome
from tandem_operator.app.run_metrics import MOST_SERIES

SECONDS, MEGABYTES = 1.0, 5.0
STAGES = {
    "baseline": ("check", "evaluate"),
    "p": ("optimize",),
    "w": ("traces", "train", "evaluate"),
    "final": ("evaluate",),
}


def typical() -> OptimizationRun:
    """A run `p -> w -> p` that has ended, with a budget of tokens."""
    times = {"started": "2026-11-21T07:00:00Z", "finished": "2026-11-21T07:41:00Z"}
    usage = {"calls": 4200, "promptTokens": 1234567, "completionTokens": 45678, "gpuSeconds": 2460}
    one = {"id": "vanilla@base", "step": 0, "score": "0.7345", "low": "0.61", "high": "0.79", "n": 100}
    steps: list[dict[str, Any]] = []
    for index, kind in enumerate(("baseline", "p", "w", "p", "final")):
        stages = [{"name": name, "state": "Succeeded", "attempt": 1, "usage": usage, **times} for name in STAGES[kind]]
        steps.append({"index": index, "kind": kind, "state": "Succeeded", "score": "0.7345", "stages": stages, **times})
    status = {"phase": "Succeeded", "strategy": "p -> w -> p", "steps": steps, "best": one, "baseline": one, **times}
    status["test"] = {"score": "0.7222", "low": "0.61", "high": "0.79", "n": 100, "baseline": "0.4111"}
    run = run_of(status=status)
    budget = run.spec.budget.model_validate({"tokens": 20_000_000})
    return run.model_copy(update={"spec": run.spec.model_copy(update={"budget": budget})})


def longest() -> OptimizationRun:
    """The largest that goes on."""
    run = largest()
    return run.model_copy(update={"status": run.status.model_copy(update={"finished": None, "test": None})})


def measure(make: Callable[[], OptimizationRun], runs: int, scrapes: int) -> tuple[float, float, float, float, float]:
    """Series a run, seconds and CPU seconds of the quickest scrape, megabytes plain and as sent."""
    metrics, run = Metrics(), make()
    for number in range(runs):
        metrics.passed(("team-a", f"reviews-{number:04}"), Outcome(None, run), 0.1)
    endpoints = Endpoints(0, 0, Vitals, metrics.registry)
    _, port = endpoints.start()
    times = []
    for _ in range(scrapes):
        began, cpu = time.perf_counter(), _cpu()
        connection = HTTPConnection("127.0.0.1", port, timeout=120)
        connection.request("GET", "/metrics", headers={"Accept-Encoding": "gzip"})
        sent = connection.getresponse().read()
        connection.close()
        times.append((time.perf_counter() - began, _cpu() - cpu))
    endpoints.stop()
    text = gzip.decompress(sent)
    series = sum(b'namespace="team-a"' in line for line in text.splitlines()) / runs
    return series, min(wall for wall, _ in times), min(cpu for _, cpu in times), len(text) / 1e6, len(sent) / 1e6


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure both kinds of runs and print a table; a ratio above 1 misses the goal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=1000)
    parser.add_argument("--scrapes", type=int, default=5)
    given = parser.parse_args()
    rows = []
    for name, make in (("typical", typical), ("largest", longest)):
        series, wall, cpu, plain, sent = measure(make, given.runs, given.scrapes)
        rows.append(
            (name, f"{series:.0f}", f"{series / MOST_SERIES:.2f}", f"{wall:.2f}", f"{wall / SECONDS:.2f}", f"{cpu:.2f}",
             f"{plain:.2f}", f"{plain / MEGABYTES:.2f}", f"{sent:.2f}")
        )  # fmt: skip
    print(f"{given.runs} runs, {datetime.now(UTC):%Y-%m-%d}; ratios are of {MOST_SERIES} series, {SECONDS:.0f} s, 5 MB")
    head = ("runs", "series a run", "ratio", "seconds", "ratio", "CPU s", "MB", "ratio", "MB as sent")
    print(table(head, rows))


if __name__ == "__main__":
    main()
