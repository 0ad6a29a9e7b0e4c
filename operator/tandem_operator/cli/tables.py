"""A run's results as tables that fit 80 columns."""

from __future__ import annotations

from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from tandem_api.conditions import ACCEPTED, PROGRESSING, SERVING_READY, SUCCEEDED, WAITING, find
from tandem_api.v1alpha1 import OptimizationRun, Status
from tandem_api.v1alpha1.status import StageStatus, StepStatus
from tandem_operator.cli.narration import interval, seconds_between
from tandem_operator.cli.text import short


def print_run(out: Console, run: OptimizationRun) -> None:
    """Where a run is, what it waits for, and what it found so far."""
    status = run.status
    out.print(f"{run.metadata.name}: {status.phase}", style="bold", markup=False)
    current = status.step
    if current is not None:
        percent = f", {current.progress}%" if current.progress is not None else ""
        out.print(f"step {current.index} ({current.kind}), {current.stage}{percent} {current.message}", markup=False)
    for kind in (PROGRESSING, SERVING_READY, ACCEPTED):
        condition = find(status.conditions, kind)
        if condition is not None and condition.reason in WAITING:
            what = "warning" if kind == ACCEPTED else "waiting"
            out.print(f"{what}     {condition.reason}: {condition.message}", markup=False)
    out.print()
    out.print(results(run))


def results(run: OptimizationRun) -> Group:
    """Every candidate with its interval, the best one, the test score, and what each stage cost."""
    parts: list[RenderableType] = []
    if any(step.candidates for step in run.status.steps):
        parts += [_candidates(run.status), Text()]
    if any(stage.started for step in run.status.steps for stage in step.stages):
        parts += [_stages(run.status), Text()]
    parts += [Text(line) for line in summary(run)]
    return Group(*parts)


def summary(run: OptimizationRun) -> list[str]:
    """The outcome in a few lines."""
    status = run.status
    lines = []
    if status.baseline is not None:
        lines.append(f"baseline    {interval(status.baseline)}")
    if status.best is not None:
        lines.append(f"best        {interval(status.best)}: {status.best.id} (step {status.best.step})")
    if status.test is not None:
        before = f"; baseline there {short(status.test.baseline)}" if status.test.baseline is not None else ""
        lines.append(f"test        {interval(status.test)}{before}")
    used = status.usage
    lines.append(
        f"tokens      {used.tokens:,} in {used.calls:,} calls "
        f"({used.prompt_tokens:,} prompt, {used.completion_tokens:,} completion)"
    )
    succeeded = find(status.conditions, SUCCEEDED)
    if succeeded is not None and succeeded.status != "Unknown":
        lines.append(f"outcome     {status.phase}: {succeeded.reason}: {succeeded.message}")
    return lines


def _table(title: str, *columns: tuple[str, str]) -> Table:
    table = Table(title=title, title_justify="left", box=None, padding=(0, 2, 0, 0))
    table.title_style = "bold"
    for name, side in columns:
        table.add_column(name, justify="right" if side == "right" else "left", no_wrap=side == "right")
    return table


def _candidates(status: Status) -> Table:
    table = _table(
        "Candidates (validation set)",
        ("step", "left"),
        ("prompts@adapter", "left"),
        ("score", "right"),
        ("95% interval", "right"),
        ("n", "right"),
        ("errors", "right"),
        ("", "left"),
    )
    for step in status.steps:
        for candidate in step.candidates:
            best = status.best is not None and (candidate.step, candidate.id) == (status.best.step, status.best.id)
            table.add_row(
                f"{step.index} {step.kind}",
                candidate.id,
                short(candidate.score),
                f"{short(candidate.low)} - {short(candidate.high)}",
                str(candidate.n),
                str(candidate.errors),
                "best" if best else "",
                style="bold" if best else "",
            )
    return table


def _stages(status: Status) -> Table:
    table = _table(
        "Stages",
        ("step", "left"),
        ("stage", "left"),
        ("state", "left"),
        ("attempts", "right"),
        ("tokens", "right"),
        ("waited s", "right"),
        ("seconds", "right"),
    )
    waited = worked = 0.0
    for step in status.steps:
        for stage in step.stages:
            if stage.requested is None and stage.started is None:
                continue
            wait, work = seconds_between(stage.requested, stage.started), seconds_between(stage.started, stage.finished)
            waited, worked = waited + (wait or 0), worked + (work or 0)
            table.add_row(*_stage_cells(step, stage), _seconds(wait), _seconds(work))
    table.add_section()
    table.add_row("all", "", "", "", f"{status.usage.tokens:,}", _seconds(waited), _seconds(worked))
    return table


def _stage_cells(step: StepStatus, stage: StageStatus) -> tuple[str, ...]:
    return f"{step.index} {step.kind}", stage.name, stage.state, str(stage.attempt), f"{stage.usage.tokens:,}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}"
