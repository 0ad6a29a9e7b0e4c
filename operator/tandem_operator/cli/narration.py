"""What happened between two looks at a run, in plain lines. Pure."""

from __future__ import annotations

from datetime import datetime, timedelta

from tandem_api.conditions import PROGRESSING, SERVING_READY, is_held_up
from tandem_api.contract import Progress
from tandem_api.v1alpha1 import Status
from tandem_api.v1alpha1.status import Candidate, CurrentStep, StageStatus, StepStatus, TestScore
from tandem_operator.cli.text import short


def narrate(old: Status, new: Status) -> list[str]:
    """One line for every transition of a step or stage, every new candidate, and every change of the model server."""
    lines: list[str] = []
    states = {step.index: step.state for step in old.steps}
    before = {(step.index, stage.name): stage for step in old.steps for stage in step.stages}
    known = {(candidate.step, candidate.id) for step in old.steps for candidate in step.candidates}
    for step in new.steps:
        for stage in step.stages:
            lines += _stage_lines(step, before.get((step.index, stage.name)), stage)
        lines += [
            f"{_place(step)}: candidate {candidate.id}: {interval(candidate)}"
            for candidate in step.candidates
            if (candidate.step, candidate.id) not in known
        ]
        if step.state not in ("Pending", "Running", states.get(step.index, "Pending")):
            lines.append(_step_line(step))
    if new.test is not None and new.test != old.test:
        lines.append(f"test: {interval(new.test)}")
    ready, other = _serving_lines(old, new)
    return [*ready, *lines, *other]


def interval(score: Candidate | TestScore) -> str:
    """`0.875 (95%: 0.806 to 0.922), n=120`, with the number of errors if there are any."""
    errors = f", {score.errors} errors" if score.errors else ""
    return f"{short(score.score)} (95%: {short(score.low)} to {short(score.high)}), n={score.n}{errors}"


def whereabouts(status: Status) -> str:
    """Where a run is that has not ended; what holds it up is told beside."""
    current, is_held = status.step, is_held_up(status.conditions, PROGRESSING, SERVING_READY)
    if current is None:
        return "waiting" if is_held else "going on"
    return f"{'at' if is_held else 'going on with'} step {current.index} ({current.kind}), {current.stage}"


def progress_line(current: CurrentStep, progress: Progress, amount: str) -> str:
    """How far the current stage is; `amount` is its part that is done, empty if that is not known."""
    parts = [part for part in (amount, progress.message) if part]
    parts += [f"score {progress.score:.3f}"] if progress.score is not None else []
    parts += [f"loss {progress.loss:.3f}"] if progress.loss is not None else []
    parts += [f"{progress.usage.tokens:,} tokens"] if progress.usage.tokens else []
    parts += [f"{duration(progress.eta_seconds)} left"] if progress.eta_seconds is not None else []
    return f"step {current.index} ({current.kind}), {current.stage}: {', '.join(parts) or 'working'}"


def seconds_between(start: datetime | None, end: datetime | None) -> float | None:
    """None while one of the two is not known."""
    return (end - start).total_seconds() if start is not None and end is not None else None


def duration(seconds: float) -> str:
    """`42 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


def _place(step: StepStatus) -> str:
    return f"step {step.index} ({step.kind})"


def _step_line(step: StepStatus) -> str:
    score = f", score {short(step.score)}" if step.score is not None else ""
    epoch = f", {step.chosen_epoch}" if step.chosen_epoch else ""
    told = any(stage.state == step.state for stage in step.stages)
    why = f": {step.message or step.reason}" if (step.message or step.reason) and not told else ""
    return f"{_place(step)}: {step.state.lower()}{score}{epoch}{why}"


def _stage_lines(step: StepStatus, old: StageStatus | None, new: StageStatus) -> list[str]:
    was = old or StageStatus(name=new.name)
    place = f"{_place(step)}, {new.name}"
    if new.state == "Running" and (was.state, was.attempt) != (new.state, new.attempt):
        return [f"{place}: started" + (f" (attempt {new.attempt})" if new.attempt > 1 else "")]
    if new.state == was.state or new.state in ("Pending", "Running"):
        return []
    took = seconds_between(new.started, new.finished)
    parts = [f"{place}: {'done' if new.state == 'Succeeded' else new.state.lower()}"]
    parts += [f"in {duration(took)}"] if took is not None else []
    parts += [f"{new.usage.tokens:,} tokens"] if new.usage.tokens else []
    why = f": {new.message or new.reason}" if new.message or new.reason else ""
    return [f"{', '.join(parts)}{why}"]


def _serving_lines(old: Status, new: Status) -> tuple[list[str], list[str]]:
    """What is told before the stages, which wait for it, and what is told after them, for they are its cause."""
    before, now = old.serving, new.serving
    if now.name is None:
        return [], ["model server: stopped"] if before.name is not None else []
    if now.name != before.name or now.failures > before.failures:
        return [], [f"model server: loading {now.name}"]
    if now.ready_since is not None and before.ready_since is None:
        loaded = now.ready_since - (now.since or now.ready_since)
        return [f"model server: {now.name} is ready after {duration(loaded / timedelta(seconds=1))}"], []
    return [], []
