"""What is shown while a run goes on: a line for each transition, a little progress, a live panel on a terminal."""

from __future__ import annotations

import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from rich.console import Console
from tests.unit.operator.local.children import small_run

from tandem_api.contract import Progress, StorageRef
from tandem_api.v1alpha1 import OptimizationRun, Status
from tandem_api.v1alpha1.status import (
    Artifact,
    Candidate,
    CurrentStep,
    EpochAdapter,
    ServingStatus,
    StageName,
    StageStatus,
    StepState,
    StepStatus,
    Usage,
)
from tandem_operator.actions import EmitEvent
from tandem_operator.cli.glance import from_platform
from tandem_operator.cli.live import LiveDisplay, PlainDisplay, panel
from tandem_operator.cli.narration import duration, narrate
from tandem_operator.cli.tables import results
from tandem_operator.snapshot import Observed, ServingObservation, TaskObservation

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
LONG_ID = f"{'a' * 12}@{'b' * 12}"
EPOCHS = tuple(
    EpochAdapter(epoch=epoch, adapter=Artifact(uri=f"s3://bucket/epoch-{epoch}/", sha256=f"{epoch}" * 64))
    for epoch in (3, 2, 1)
)


def stage(name: StageName, state: StepState, **changes: object) -> StageStatus:
    times = {"requested": NOW, "started": NOW + timedelta(seconds=5), "finished": NOW + timedelta(seconds=65)}
    return StageStatus(name=name, state=state, attempt=1).model_copy(update={**times, **changes})


def step(state: StepState, *stages: StageStatus, **changes: object) -> StepStatus:
    return StepStatus(index=1, kind="p", state=state, stages=stages).model_copy(update=changes)


def candidate(identity: str = "vanilla@base", score: str = "0.8750") -> Candidate:
    return Candidate(id=identity, step=1, score=score, low="0.8000", high="0.9250", n=120, errors=2)


def observed(progress: Progress | None = None, serving: ServingObservation | None = None) -> Observed:
    tasks = {"small-1p-optimize-1": TaskObservation("running", progress=progress)}
    return Observed("default", "small", "uid", 1, NOW, StorageRef(bucket="bucket"), serving=serving, tasks=tasks)


@pytest.fixture
def run(tmp_path: Path) -> OptimizationRun:
    current = CurrentStep(index=1, kind="p", stage="optimize", attempt=1)
    status = Status(steps=(step("Running", stage("optimize", "Running")),), step=current, started=NOW)
    return small_run(tmp_path).model_copy(update={"status": status})


@pytest.mark.parametrize(
    ("old", "new", "want"),
    [
        pytest.param(
            step("Pending", stage("optimize", "Pending")),
            step("Running", stage("optimize", "Running")),
            ["step 1 (p), optimize: started"],
            id="a stage begins",
        ),
        pytest.param(
            step("Running", stage("optimize", "Running")),
            step("Running", stage("optimize", "Running", attempt=2)),
            ["step 1 (p), optimize: started (attempt 2)"],
            id="another attempt begins",
        ),
        pytest.param(
            step("Running", stage("optimize", "Running")),
            step(
                "Succeeded",
                stage("optimize", "Succeeded", usage=Usage(prompt_tokens=12000, completion_tokens=345)),
                candidates=(candidate(),),
                score="0.8750",
            ),
            [
                "step 1 (p), optimize: done, in 1 min 00 s, 12,345 tokens",
                "step 1 (p): candidate vanilla@base: 0.875 (95%: 0.800 to 0.925), n=120, 2 errors",
                "step 1 (p): succeeded, score 0.875",
            ],
            id="a stage and its step end",
        ),
        pytest.param(
            step("Running", stage("evaluate", "Running"), epochs=EPOCHS, adapter=EPOCHS[1].adapter),
            step(
                "Succeeded",
                stage("evaluate", "Succeeded"),
                candidates=(candidate(),),
                score="0.8750",
                epochs=EPOCHS,
                adapter=EPOCHS[1].adapter,
            ),
            [
                "step 1 (p), evaluate: done, in 1 min 00 s",
                "step 1 (p): candidate vanilla@base: 0.875 (95%: 0.800 to 0.925), n=120, 2 errors",
                "step 1 (p): succeeded, score 0.875, with the adapter of epoch 2 of 3",
            ],
            id="a step that has chosen an epoch ends",
        ),
        pytest.param(
            step("Running", stage("select-1", "Running"), epochs=EPOCHS, adapter=EPOCHS[0].adapter),
            step("Stopped", stage("select-1", "Stopped"), epochs=EPOCHS, adapter=EPOCHS[0].adapter),
            ["step 1 (p), select-1: stopped, in 1 min 00 s", "step 1 (p): stopped"],
            id="a step stops before any epoch was scored",
        ),
        pytest.param(
            step("Running", stage("optimize", "Running")),
            step("Failed", stage("optimize", "Failed", reason="BadData", message="row 3"), message="row 3"),
            ["step 1 (p), optimize: failed, in 1 min 00 s: row 3", "step 1 (p): failed"],
            id="a failure is told once",
        ),
        pytest.param(
            step("Pending", stage("optimize", "Pending")),
            step("Skipped", stage("optimize", "Pending"), reason="DeadlineReached", message="60 seconds have passed"),
            ["step 1 (p): skipped: 60 seconds have passed"],
            id="a step is crossed out",
        ),
        pytest.param(
            step("Running", stage("optimize", "Running")),
            step("Running", stage("optimize", "Running")),
            [],
            id="nothing happens",
        ),
    ],
)
def test_every_transition_is_one_line(old: StepStatus, new: StepStatus, want: list[str]) -> None:
    assert narrate(Status(steps=(old,)), Status(steps=(new,))) == want


def test_the_model_server_is_ready_before_the_stage_that_waited_for_it_begins() -> None:
    loading = Status(
        steps=(step("Running", stage("optimize", "Pending")),), serving=ServingStatus(name="base", since=NOW)
    )
    assert narrate(Status(), Status(serving=loading.serving)) == ["model server: loading base"]
    ready = loading.serving.model_copy(update={"ready_since": NOW + timedelta(seconds=67)})
    begun = Status(steps=(step("Running", stage("optimize", "Running")),), serving=ready)
    assert narrate(loading, begun) == [
        "model server: base is ready after 1 min 07 s",
        "step 1 (p), optimize: started",
    ]
    again = ready.model_copy(update={"failures": 1, "ready_since": None})
    assert narrate(Status(serving=ready), Status(serving=again)) == ["model server: loading base"]
    assert narrate(Status(serving=ready), Status()) == ["model server: stopped"]


def test_plain_progress_is_one_line_in_ten_seconds(run: OptimizationRun) -> None:
    out, time = io.StringIO(), [0.0]
    display = PlainDisplay(Console(file=out, width=80), clock=lambda: time[0])
    display.begin(run.status)
    for second in range(31):
        time[0] = float(second)
        progress = Progress(done=second, total=360, message="candidate 3 of 12", score=0.8125, eta_seconds=80)
        display.update(run, from_platform(run, observed(progress)))
    lines = [line[10:] for line in out.getvalue().splitlines()]
    assert lines[0] == "going on with step 1 (p), optimize"
    assert [line.split(",")[1] for line in lines[1:]] == [
        " optimize: 10 of 360",
        " optimize: 20 of 360",
        " optimize: 30 of 360",
    ]
    assert lines[1].endswith("candidate 3 of 12, score 0.812, 1 min 20 s left")


def test_warnings_are_shown_whole_and_what_the_status_says_is_not_repeated() -> None:
    out = io.StringIO()
    display = PlainDisplay(Console(file=out, width=80))
    display.event(EmitEvent("Normal", "StepStarted", "step 1 (p) started"))
    display.event(EmitEvent("Warning", "ServingFailed", "the server failed:\n[red]CUDA out of memory"))
    lines = [line[10:] for line in out.getvalue().splitlines()]
    assert lines == ["warning: the server failed:", "[red]CUDA out of memory"]


def test_the_panel_shows_step_stage_bar_time_left_score_tokens_and_server(run: OptimizationRun) -> None:
    usage = Usage(prompt_tokens=1000, completion_tokens=234)
    progress = Progress(done=90, total=360, message="candidate 3 of 12", score=0.8125, eta_seconds=80, usage=usage)
    out = io.StringIO()
    best = run.model_copy(update={"status": run.status.model_copy(update={"best": candidate()})})
    glance = from_platform(best, observed(progress, ServingObservation("base", "ready")))
    Console(file=out, width=80).print(panel(best, glance))
    shown = out.getvalue()
    for text in (
        "small  step 1 of 0 (p)  optimize",
        "90 of 360",
        "1 min 20 s left",
        "candidate 3 of 12",
        "best 0.875 (step 1)",
        "score so far 0.812",
        "1,234 tokens",
        "model server: base, ready",
    ):
        assert text in shown


def test_a_terminal_gets_the_lines_and_the_panel(run: OptimizationRun) -> None:
    out = io.StringIO()
    with LiveDisplay(Console(file=out, force_terminal=True, width=80)) as display:
        display.update(run, from_platform(run, observed(serving=ServingObservation("base", "starting"))))
    shown = out.getvalue()
    assert "step 1 (p), optimize: started" in shown
    assert "model server: base, loading" in shown


def test_the_result_table_fits_80_columns_with_the_longest_names(run: OptimizationRun) -> None:
    done = step("Succeeded", stage("optimize", "Succeeded"), candidates=(candidate(LONG_ID),))
    status = run.status.model_copy(
        update={"steps": (done,) * 3, "best": candidate(LONG_ID), "usage": Usage(prompt_tokens=10**9)}
    )
    out = io.StringIO()
    Console(file=out, width=80).print(results(run.model_copy(update={"status": status})))
    lines = out.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    assert any(line.startswith(f"1 p   {LONG_ID}  0.875  0.800 - 0.925  120       2  best") for line in lines)
    assert any(line.split()[:5] == ["1", "p", "optimize", "Succeeded", "1"] for line in lines)


@pytest.mark.parametrize(
    ("seconds", "want"), [(0.4, "0 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")]
)
def test_durations_read_well(seconds: float, want: str) -> None:
    assert duration(seconds) == want
