"""The page `report.html`: one self-contained file that tells what a run did and what it came to.

Called by `bundle` with what `facts` gathered. The sentences are in `findings`, the figures in `plots`, the snippets in
`handover`, the layout in `report.html.j2` and `report.css`; here they are put together. Pure, and it never fails for
what a run may look like: a page that cannot be made would cost the result of hours.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, StrictUndefined, Template
from markupsafe import Markup

from tandem_api.records import PredictorPrompt
from tandem_api.v1alpha1.spec import Spec
from tandem_api.v1alpha1.status import StageStatus, StepStatus
from tandem_trainer.report import formats
from tandem_trainer.report.facts import Facts, Search, StageTimes, Training
from tandem_trainer.report.findings import KINDS, candidate_rows, verdict, warnings
from tandem_trainer.report.handover import handover
from tandem_trainer.report.plots import Bar, LossPoint, ScoreMark, loss_plot, scores_plot, timeline_plot

#: Texts with more characters, or more lines, are folded away behind their beginning.
MAX_SHOWN, MAX_LINES = 320, 8
#: Lines of a training log that the page repeats as a table; the figure has all of them.
MAX_LOG_LINES = 40
#: Searches with more candidates show their table on demand only.
MAX_OPEN_TRIALS = 16


@dataclass(frozen=True)
class SearchView:
    """One `p` step for the page."""

    step: StepStatus
    search: Search
    winner: int | None
    settings: tuple[tuple[str, str], ...]
    facts: tuple[tuple[str, str], ...]
    has_full: bool
    """Some candidates were scored on all of validation after the search on a part."""


@dataclass(frozen=True)
class TrainingView:
    """One `w` step for the page."""

    step: StepStatus
    plot: Markup
    has_validation: bool
    settings: tuple[tuple[str, str], ...]
    facts: tuple[tuple[str, str], ...]
    traces: tuple[tuple[str, str], ...]
    """What the traces stage before it counted."""
    log: tuple[dict[str, float], ...]
    every: int
    """The table holds each n-th line of the log."""


@dataclass(frozen=True)
class PredictorView:
    """A predictor's prompt before and after."""

    name: str
    before: PredictorPrompt
    after: PredictorPrompt
    messages: tuple[dict[str, Any], ...]


def render_report(facts: Facts) -> str:
    """The page, complete and escaped."""
    rows = candidate_rows(facts)
    baseline = facts.status.baseline
    return _template().render(
        facts=facts,
        request=facts.request,
        spec=facts.request.spec,
        strategy=" → ".join(step.kind for step in facts.request.spec.steps),
        kinds=KINDS,
        verdict=verdict(facts),
        warnings=warnings(facts),
        rows=rows,
        baseline=baseline,
        scores=scores_plot(
            [
                ScoreMark(
                    label=row.label,
                    score=float(row.candidate.score),
                    low=float(row.candidate.low),
                    high=float(row.candidate.high),
                    optimized=row.candidate.prompt_set is not None,
                    adapter=row.candidate.adapter is not None,
                    best=row.is_best,
                )
                for row in rows
            ],
            float(baseline.score) if baseline else None,
        ),
        timeline=timeline_plot([_bar(times) for times in facts.stages]),
        elapsed=max((times.start + times.seconds for times in facts.stages), default=0.0),
        searches=[_search(facts, search) for search in facts.searches],
        trainings=[_training(facts, training) for training in facts.trainings],
        predictors=[
            PredictorView(name, facts.vanilla.predictors.get(name, prompt), prompt, facts.templates.get(name, ()))
            for name, prompt in facts.prompts.predictors.items()
        ],
        handover=handover(facts),
        max_shown=MAX_SHOWN,
        max_lines=MAX_LINES,
        max_open_trials=MAX_OPEN_TRIALS,
    )


@cache
def _template() -> Template:
    environment = Environment(
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=lambda value: formats.ABSENT if value is None else value,
    )
    names = ("percent", "interval", "points", "count", "counted", "duration", "measure", "text")
    environment.filters |= {name: getattr(formats, name) for name in names}
    folder = resources.files(__package__)
    environment.globals["css"] = Markup(folder.joinpath("report.css").read_text(encoding="utf-8"))
    return environment.from_string(folder.joinpath("report.html.j2").read_text(encoding="utf-8"))


def _bar(times: StageTimes) -> Bar:
    return Bar(f"{times.step} {times.kind}: {times.stage}", times.start, times.seconds, times.loading)


def _step(facts: Facts, index: int) -> StepStatus:
    return next(step for step in facts.status.steps if step.index == index)


def _stage(step: StepStatus, name: str) -> StageStatus | None:
    return next((stage for stage in step.stages if stage.name == name), None)


def _search(facts: Facts, search: Search) -> SearchView:
    step = _step(facts, search.step)
    stage = _stage(step, "optimize")
    counts = dict(stage.facts) if stage else {}
    winner = counts.pop("winner", None)
    return SearchView(
        step=step,
        search=search,
        winner=winner if isinstance(winner, int) else None,
        settings=_prompt_settings(facts.request.spec, step.index),
        facts=_pairs(counts),
        has_full=any(trial.full is not None for trial in search.trials),
    )


def _training(facts: Facts, training: Training) -> TrainingView:
    step = _step(facts, training.step)
    traces = _stage(step, "traces")
    curves = {
        name: [LossPoint(line.get("step", 0), line[name]) for line in training.log if name in line]
        for name in ("loss", "eval_loss")
    }
    every = -(-len(training.log) // MAX_LOG_LINES) or 1
    return TrainingView(
        step=step,
        plot=loss_plot(str(step.index), curves["loss"], curves["eval_loss"]),
        has_validation=bool(curves["eval_loss"]),
        settings=_weight_settings(facts.request.spec, step.index),
        facts=_pairs(training.facts),
        traces=_pairs(traces.facts if traces else {}),
        log=tuple(line for n, line in enumerate(training.log, start=1) if n % every == 0 or "eval_loss" in line),
        every=every,
    )


def _prompt_settings(spec: Spec, index: int) -> tuple[tuple[str, str], ...]:
    chosen = spec.prompts_of(index)
    start = spec.steps[index - 1].start_from or "original"
    return (
        ("optimizer", chosen.type),
        ("starts from", f"the {start} prompts"),
        ("candidates", f"at most {chosen.candidates}"),
        ("demos", f"at most {chosen.max_bootstrapped_demos} bootstrapped, {chosen.max_labeled_demos} in all"),
        ("threshold", chosen.threshold),
    )


def _weight_settings(spec: Spec, index: int) -> tuple[tuple[str, str], ...]:
    chosen = spec.weights_of(index)
    modules = chosen.target_modules if isinstance(chosen.target_modules, str) else ", ".join(chosen.target_modules)
    return (
        ("optimizer", f"{chosen.type}, rank {chosen.rank}, alpha {chosen.alpha}"),
        ("modules", modules),
        ("learning rate", f"{chosen.learning_rate}, {chosen.schedule}"),
        ("batch size", str(chosen.batch_size)),
        ("prompts in the rows", chosen.prompts),
    )


_LABELS = {
    "bootstrap_examples": "training examples run",
    "bootstrap_passed": "of these passed",
    "retried": "run again with demos",
    "retry_passed": "of these passed",
    "scored": "candidates scored",
    "search_examples": "examples per candidate",
    "rows": "training rows",
    "validation_rows": "validation rows",
    "dropped": "rows too long, dropped",
    "steps": "optimizer steps",
    "tokens": "tokens trained on",
    "seconds": "training time",
    "loss": "training loss, last epoch",
    "eval_loss": "validation loss, last",
    "capped": "beyond maxPerExample",
}


def _pairs(facts: dict[str, int | str]) -> tuple[tuple[str, str], ...]:
    """A stage's counts with their names in words."""
    pairs = []
    for name, value in facts.items():
        label = _LABELS.get(name, name.replace("_", " ").replace("rows.", "rows of "))
        if name == "seconds" and isinstance(value, int):
            pairs.append((label, formats.duration(value)))
        else:
            pairs.append((label, formats.count(value) if isinstance(value, int) else value))
    return tuple(pairs)
