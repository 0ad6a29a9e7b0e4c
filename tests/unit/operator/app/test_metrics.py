"""The metrics' text for sample runs; runs that are gone leave nothing behind."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from kubernetes.client import ApiException
from prometheus_client.exposition import generate_latest
from tests.unit.operator.app.helpers import run_of

from tandem_api.v1alpha1 import OptimizationRun
from tandem_operator.app.metrics import MOST_REASONS, Metrics, ProcessState
from tandem_operator.app.queue import Outcome
from tandem_operator.app.run_metrics import MOST_SERIES, MOST_STEPS, RunMetrics

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
    assert f'tandem_run_state{{{where},state="Running"}} 1.0' in lines
    assert f"tandem_run_best_score{{{where}}} 0.81" in lines
    assert f"tandem_run_baseline_score{{{where}}} 0.412" in lines
    assert f'tandem_run_step_duration_seconds{{kind="baseline",{where},step="0"}} 330.0' in lines
    # So far.
    assert f'tandem_run_step_duration_seconds{{kind="p",{where},step="1"}} 60.0' in lines
    assert not any('step="2"' in line for line in lines)
    assert not any(line.startswith("tandem_run_test_score{") for line in lines)


def test_what_was_spent_is_told_by_stage_over_all_steps(metrics: Metrics) -> None:
    times = {"started": "2026-11-21T07:00:00Z", "finished": "2026-11-21T07:01:00Z"}
    usage = {"calls": 5, "promptTokens": 90, "completionTokens": 10, "gpuSeconds": 60}
    evaluate = {"name": "evaluate", "state": "Succeeded", "attempt": 1, **times, "usage": usage}
    train = {"name": "train", "state": "Running", "attempt": 3, "started": "2026-11-21T07:50:00Z"}
    train |= {"usage": {"gpuSeconds": 7}, "finished": "2026-11-21T07:51:00Z"}
    select = [{**evaluate, "name": f"select-{number}"} for number in (1, 2)]
    steps = [
        {"index": 0, "kind": "baseline", "state": "Succeeded", "stages": [{**evaluate, "name": "check"}, evaluate]},
        {"index": 1, "kind": "w", "state": "Running", "stages": [*select, train, evaluate]},
    ]
    see(metrics, run_of(status=status(steps=steps)))
    where, lines = 'name="reviews",namespace="team"', text(metrics)
    for line in (
        f'tandem_run_lm_calls_total{{{where},stage="evaluate"}} 10.0',
        f'tandem_run_tokens_total{{{where},stage="evaluate",type="prompt"}} 180.0',
        f'tandem_run_tokens_total{{{where},stage="select",type="completion"}} 20.0',
        f'tandem_run_gpu_seconds_total{{{where},stage="train"}} 7.0',
        f'tandem_run_stage_seconds_total{{{where},stage="select"}} 120.0',
        # An earlier attempt's end is not the stage's.
        f'tandem_run_stage_seconds_total{{{where},stage="train"}} 600.0',
        f"tandem_run_retries_total{{{where}}} 2.0",
    ):
        assert line in lines
    # Neither calls a model.
    assert not any("lm_calls" in line and ("train" in line or "check" in line) for line in lines)


def test_what_goes_on_and_what_is_waited_for(metrics: Metrics) -> None:
    when = "2026-11-21T07:59:00Z"
    waits = {"type": "Progressing", "status": "True", "reason": "WaitingForQuota", "lastTransitionTime": when}
    step = {"index": 1, "kind": "p", "stage": "optimize", "attempt": 1, "progress": 40}
    see(metrics, run_of(status=status(step=step, conditions=[waits])))
    where, lines = 'name="reviews",namespace="team"', text(metrics)
    assert f'tandem_run_waiting{{{where},reason="WaitingForQuota"}} 1.0' in lines
    assert f'tandem_run_current_stage{{kind="p",{where},stage="optimize",step="1"}} 1.0' in lines
    assert f"tandem_run_stage_progress_ratio{{{where}}} 0.4" in lines
    # A reason that a worker's own code has made up is none to wait for.
    see(metrics, run_of(status=status(step=step, conditions=[{**waits, "reason": "MadeUp"}])))
    assert not any("MadeUp" in line for line in text(metrics))


def test_budgets_and_how_much_of_them_is_used(metrics: Metrics) -> None:
    run = run_of(status=status(started="2026-11-21T07:50:00Z"))
    budget = run.spec.budget.model_validate({"tokens": 2000, "gpuHours": "0.1", "deadlineSeconds": 1200})
    run = run.model_copy(update={"spec": run.spec.model_copy(update={"budget": budget})})
    see(metrics, run)
    where, lines = 'name="reviews",namespace="team"', text(metrics)
    assert f"tandem_run_budget_gpu_seconds{{{where}}} 360.0" in lines
    used = {"tokens": 1000 / 2000, "gpu": 60 / 360, "deadline": 600 / 1200}
    for label, ratio in used.items():
        assert f'tandem_run_budget_used_ratio{{budget="{label}",{where}}} {ratio}' in lines


def largest() -> OptimizationRun:
    """A run with everything that has a series: all kinds of stages, the longest strategy, all limits."""
    times = {"started": "2026-11-21T07:00:00Z", "finished": "2026-11-21T07:01:00Z"}
    names = ("check", "evaluate", "optimize", "traces", "train", *(f"select-{number}" for number in range(1, 8)))
    stages = [{"name": name, "state": "Running", "attempt": 2, **times} for name in names]
    step = {
        "kind": "w",
        "state": "Running",
        "score": "0.5",
        "stages": stages,
        "candidates": [candidate("0.5")],
        **times,
    }
    waits = {"type": "Progressing", "status": "True", "reason": "Unschedulable", "lastTransitionTime": times["started"]}
    run = run_of(
        status=status(
            steps=[{**step, "index": index} for index in range(64)],
            step={"index": 63, "kind": "w", "stage": "train", "attempt": 1, "progress": 40},
            conditions=[waits],
            test={"score": "0.5", "low": "0.1", "high": "0.9", "n": 9, "baseline": "0.4"},
            **times,
        )
    )
    budget = run.spec.budget.model_validate({"tokens": 2000, "gpuHours": "0.1", "deadlineSeconds": 1200})
    return run.model_copy(update={"spec": run.spec.model_copy(update={"budget": budget})})


def test_a_run_has_a_bounded_number_of_series_whatever_its_strategy(metrics: Metrics) -> None:
    see(metrics, largest())
    lines = [line for line in text(metrics) if 'name="reviews"' in line]
    # Its end is in, too, which no run that goes on has.
    assert 45 < len(lines) <= MOST_SERIES
    steps = [line for line in lines if line.startswith("tandem_run_step_score{")]
    assert len(steps) == MOST_STEPS and 'step="63"' in steps[-1]


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


def test_reasons_that_workers_make_up_are_bounded(metrics: Metrics) -> None:
    for number in range(3 * MOST_REASONS):
        see(metrics, run_of(status=status(number + 1, f"Reason{number}")))
    retries = [line for line in text(metrics) if line.startswith("tandem_stage_retries_total{")]
    assert len(retries) == MOST_REASONS + 1
    assert f'tandem_stage_retries_total{{reason="Other"}} {2.0 * MOST_REASONS - 1}' in retries


def test_stages_that_end_are_timed_once(metrics: Metrics) -> None:
    def seen(state: str, **times: str) -> None:
        stage = {"name": "select-2", "attempt": 1, "state": state, "started": "2026-11-21T07:00:00Z", **times}
        see(metrics, run_of(status={"steps": [{"index": 1, "kind": "w", "stages": [stage]}]}))

    seen("Running")
    for _ in range(2):
        seen("Succeeded", finished="2026-11-21T07:00:20Z")
    lines = text(metrics)
    assert 'tandem_stage_duration_seconds_count{stage="select"} 1.0' in lines
    assert 'tandem_stage_duration_seconds_sum{stage="select"} 20.0' in lines


@pytest.mark.parametrize("hours", ["0", "0.0", "1e-400"])
def test_a_budget_of_nothing_is_spent(metrics: Metrics, hours: str) -> None:
    """One such run of one user ended the operator, which is for all, at each of its starts."""
    run = run_of(status=status())
    budget = run.spec.budget.model_copy(update={"gpu_hours": hours})
    see(metrics, run.model_copy(update={"spec": run.spec.model_copy(update={"budget": budget})}))
    assert 'tandem_run_budget_used_ratio{budget="gpu",name="reviews",namespace="team"} 1.0' in text(metrics)


def test_a_stage_that_was_left_when_its_step_was_stopped_takes_no_more_time() -> None:
    now = [NOW]
    runs = RunMetrics(lambda: now[0])
    stage = {"name": "optimize", "attempt": 1, "state": "Running", "started": "2026-11-21T07:00:00Z"}
    step = {"index": 1, "kind": "p", "state": "Stopped", "started": "2026-11-21T07:00:00Z", "stages": [stage]}
    for _ in range(2):
        runs.replace(KEY, run_of(status={"steps": [{**step, "finished": "2026-11-21T07:05:00Z"}]}))
        (family,) = [one for one in runs.collect() if one.name == "tandem_run_stage_seconds"]
        assert [sample.value for sample in family.samples] == [300.0]
        now[0] += timedelta(days=1)


def test_a_refused_run_has_failed_and_one_that_was_corrected_has_not(metrics: Metrics) -> None:
    for _ in range(2):
        metrics.passed(KEY, Outcome(None, None, is_refused=True), 0.1)
    assert 'tandem_runs{state="Failed"} 1.0' in text(metrics)
    see(metrics, run_of(status=status()))
    assert 'tandem_runs{state="Failed"} 0.0' in text(metrics)
    metrics.passed(KEY, Outcome(None, None, is_refused=True), 0.1)
    see(metrics, None)
    assert 'tandem_runs{state="Failed"} 0.0' in text(metrics)


def test_when_a_run_last_came_forward() -> None:
    now = [NOW]
    runs = RunMetrics(lambda: now[0])

    def told(**more: Any) -> float:
        """Seconds since NOW's hour began."""
        runs.replace(KEY, run_of(status=status(**more)))
        (family,) = [one for one in runs.collect() if one.name == "tandem_run_last_progress_timestamp_seconds"]
        return family.samples[0].value - NOW.timestamp()

    step = {"index": 1, "kind": "p", "stage": "evaluate", "attempt": 1}
    # What an operator that starts can know: when the step began.
    assert told(step=step) == -60
    now[0] += timedelta(hours=1)
    assert told(step=step) == -60
    assert told(step={**step, "attempt": 2}, attempt=2, reason="OOMKilled") == -60
    assert told(step={**step, "progress": 3}) == 3600
    now[0] += timedelta(hours=1)
    assert told(step={**step, "progress": 0}) == 3600
    assert told(step={**step, "progress": 0}, usage={"calls": 5}) == 7200
    # A server that is lost and ready again is no work done.
    assert (
        told(step={**step, "progress": 0}, usage={"calls": 5}, serving={"readySince": "2026-11-21T11:00:00Z"}) == 7200
    )
    # When it was last 3% or less is not in the status: an operator that starts does not call a long stage stuck.
    runs.replace(KEY, None)
    assert told(step={**step, "progress": 3}) == 7200
    # One that was held is not stuck because of that, for an operator that has just begun, either.
    resumed = {"type": "Suspended", "status": "False", "reason": "NotSuspended"}
    runs.replace(KEY, None)
    assert told(conditions=[{**resumed, "lastTransitionTime": "2026-11-21T08:30:00Z"}]) == 1800
    # Nothing is expected of one that is held, or has ended.
    for phase in ("Suspended", "Succeeded", "Failed"):
        with pytest.raises(IndexError):
            told(phase=phase)


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


def test_calls_to_the_api_server(metrics: Metrics) -> None:
    metrics.called("get", "200", 0.02)
    metrics.called("get", "404", 0.2)
    lines = text(metrics)
    assert 'tandem_api_requests_total{code="404",verb="get"} 1.0' in lines
    assert 'tandem_api_request_duration_seconds_count{verb="get"} 2.0' in lines


def test_no_series_is_told_twice(metrics: Metrics) -> None:
    see(metrics, largest())
    names = Counter(line.rpartition(" ")[0] for line in text(metrics) if not line.startswith("#"))
    assert names.most_common(1)[0][1] == 1


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
