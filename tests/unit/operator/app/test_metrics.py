"""The metrics' text for sample runs; runs that are gone leave nothing behind."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from kubernetes.client import ApiException
from prometheus_client.exposition import generate_latest
from tests.unit.operator.app.helpers import run_of

from tandem_api.v1alpha1 import OptimizationRun
from tandem_operator.app.metrics import Metrics, ProcessState, RunMetrics
from tandem_operator.app.queue import Outcome

NOW = datetime(2026, 11, 21, 8, 0, 0, tzinfo=UTC)
KEY = ("team", "reviews")


def candidate(score: str) -> dict[str, Any]:
    return {"id": "vanilla@base", "step": 0, "score": score, "low": "0.1", "high": "0.9", "n": 100}


def status(attempt: int = 1, reason: str | None = None, **more: Any) -> dict[str, Any]:
    stage = {"name": "evaluate", "state": "Running", "attempt": attempt, "reason": reason}
    baseline = {"index": 0, "kind": "baseline", "state": "Succeeded", "started": "2026-11-21T07:50:00Z"}
    return {
        "phase": "Optimizing",
        "steps": [
            {**baseline, "finished": "2026-11-21T07:55:30Z"},
            {"index": 1, "kind": "p", "state": "Running", "started": "2026-11-21T07:59:00Z", "stages": [stage]},
            {"index": 2, "kind": "w"},
        ],
        "baseline": candidate("0.412"),
        "best": candidate("0.81"),
        "usage": {"promptTokens": 900, "completionTokens": 100, "gpuSeconds": 60},
        **more,
    }


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(RunMetrics(lambda: NOW))


def text(metrics: Metrics) -> list[str]:
    return generate_latest(metrics.registry).decode().splitlines()


def see(metrics: Metrics, run: OptimizationRun | None, key: tuple[str, str] = KEY) -> None:
    metrics.passed(key, Outcome(None, run), 0.2)


def test_a_run_and_its_series(metrics: Metrics) -> None:
    see(metrics, run_of(status=status()))
    lines = text(metrics)
    where = 'name="reviews",namespace="team"'
    assert 'tandem_runs{state="Running"} 1.0' in lines
    assert 'tandem_runs{state="Failed"} 0.0' in lines
    assert f"tandem_run_best_score{{{where}}} 0.81" in lines
    assert f"tandem_run_baseline_score{{{where}}} 0.412" in lines
    assert f'tandem_run_tokens{{{where},type="completion"}} 100.0' in lines
    assert f"tandem_run_gpu_seconds{{{where}}} 60.0" in lines
    assert f'tandem_run_step_duration_seconds{{kind="baseline",{where},step="0"}} 330.0' in lines
    # So far.
    assert f'tandem_run_step_duration_seconds{{kind="p",{where},step="1"}} 60.0' in lines
    assert not any('step="2"' in line for line in lines)
    assert not any(line.startswith("tandem_run_test_score{") for line in lines)


def test_runs_that_are_gone_leave_no_series(metrics: Metrics) -> None:
    see(metrics, run_of(status=status()))
    see(metrics, run_of("other", status=status()), ("team", "other"))
    see(metrics, None)
    lines = text(metrics)
    assert not any('name="reviews"' in line for line in lines)
    assert any('name="other"' in line for line in lines)
    assert 'tandem_runs{state="Running"} 1.0' in lines
    see(metrics, None, ("team", "other"))
    assert 'tandem_runs{state="Running"} 0.0' in text(metrics)


@pytest.mark.parametrize("phase", ["Pending", "Suspended", "Succeeded", "Failed"])
def test_runs_by_state(metrics: Metrics, phase: str) -> None:
    see(metrics, run_of(status={"phase": phase}))
    assert f'tandem_runs{{state="{phase}"}} 1.0' in text(metrics)


def test_further_attempts_are_counted_once_by_reason(metrics: Metrics) -> None:
    for _ in range(2):
        see(metrics, run_of(status=status(1)))
    see(metrics, run_of(status=status(1, "OOMKilled")))
    see(metrics, run_of(status=status(2, "OOMKilled")))
    see(metrics, run_of(status=status(2, "OOMKilled")))
    see(metrics, run_of(status=status(3, "Preempted")))
    lines = text(metrics)
    assert 'tandem_stage_retries_total{reason="OOMKilled"} 1.0' in lines
    assert 'tandem_stage_retries_total{reason="Preempted"} 1.0' in lines


def test_what_was_tried_before_this_process_is_not_counted_again(metrics: Metrics) -> None:
    see(metrics, run_of(status=status(5, "OOMKilled")))
    assert not any(line.startswith("tandem_stage_retries_total{") for line in text(metrics))


def test_a_new_run_of_the_same_name_is_another(metrics: Metrics) -> None:
    see(metrics, run_of(status=status(1)))
    again = run_of(status=status(3, "OOMKilled"))
    see(metrics, again.model_copy(update={"metadata": again.metadata.model_copy(update={"uid": "new"})}))
    assert not any(line.startswith("tandem_stage_retries_total{") for line in text(metrics))


def test_passes_and_their_failures(metrics: Metrics) -> None:
    see(metrics, None)
    metrics.failed(KEY, ApiException(status=409), 0.3)
    metrics.failed(KEY, ValueError("text of no interest"), 40.0)
    lines = text(metrics)
    assert "tandem_reconcile_duration_seconds_count 3.0" in lines
    assert 'tandem_reconcile_duration_seconds_bucket{le="0.5"} 2.0' in lines
    assert 'tandem_reconcile_errors_total{type="Api409"} 1.0' in lines
    assert 'tandem_reconcile_errors_total{type="ValueError"} 1.0' in lines


def test_a_failed_pass_keeps_the_runs_series(metrics: Metrics) -> None:
    see(metrics, run_of(status=status()))
    metrics.failed(KEY, ValueError(), 0.1)
    assert any(line.startswith("tandem_run_best_score{") for line in text(metrics))


def test_the_process(metrics: Metrics) -> None:
    leads = [False]
    metrics.registry.register(ProcessState(lambda: leads[0], lambda: 12))
    assert "tandem_leader 0.0" in text(metrics)
    leads[0] = True
    lines = text(metrics)
    assert "tandem_leader 1.0" in lines
    assert "tandem_queue_depth 12.0" in lines
    assert any(line.startswith('tandem_build_info{version="') for line in lines)
    assert any(line.startswith("process_resident_memory_bytes") for line in lines)
