"""What the page's sections show, prepared from the facts: one view a search, a training and a predictor. Pure.

Called by `render`. Counts that stages report get their names in words here.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from tandem_api.pages import formats
from tandem_api.pages.plots import LossPoint, loss_plot
from tandem_api.records import PredictorPrompt
from tandem_api.v1alpha1.spec import Spec
from tandem_api.v1alpha1.status import StageStatus, StepStatus
from tandem_api.v1alpha1.weight_optimizers import WeightOptimizer
from tandem_trainer.report.facts import Facts, Search, Training
from tandem_trainer.report.prompt_settings import prompt_settings

#: Lines of a training log that the page repeats as a table; the figure has all of them.
MAX_LOG_LINES = 40


@dataclass(frozen=True)
class SearchView:
    """One `p` step for the page."""

    step: StepStatus
    search: Search
    winner: int | None
    settings: tuple[tuple[str, str], ...]
    facts: tuple[tuple[str, str], ...]
    examples: int
    """Examples that the longest scored candidate was run on; a score over fewer compares with no other."""
    dropped: int
    """Candidates that the race has dropped."""
    has_full: bool
    """Some candidates were scored on all of validation after the search on a part."""
    has_parameters: bool
    """The search chose parameters to make some of its candidates."""


@dataclass(frozen=True)
class EpochView:
    """An epoch's adapter, raced against the best before it."""

    epoch: int
    score: str | None
    """Over `examples`; None where the race was not settled."""
    examples: int | None
    standing: str
    """Against those before it."""
    is_taken: bool


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
    epochs: tuple[EpochView, ...]
    """What it chose among, in the order in which they were scored; empty where it takes the last epoch."""
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


def search_view(facts: Facts, search: Search) -> SearchView:
    """A search, with its step's settings and counts."""
    step = _step(facts, search.step)
    stage = _stage(step, "optimize")
    counts = dict(stage.facts) if stage else {}
    winner = counts.pop("winner", None)
    return SearchView(
        step=step,
        search=search,
        winner=winner if isinstance(winner, int) else None,
        settings=prompt_settings(facts.request.spec, step.index, predictors=len(facts.vanilla.predictors)),
        facts=_pairs(_without(counts, _SEARCH_SETTINGS), _SEARCH_LABELS),
        examples=max((trial.n for trial in search.trials), default=0),
        dropped=sum(trial.dropped for trial in search.trials),
        has_full=any(trial.full is not None for trial in search.trials),
        has_parameters=any(trial.parameters for trial in search.trials),
    )


def training_view(facts: Facts, training: Training) -> TrainingView:
    """A training, with its figure, its step's settings and counts."""
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
        settings=_weight_settings(facts.request.spec, step.index, training.facts),
        facts=_pairs(_without(training.facts, _TRAINING_SETTINGS)),
        epochs=_epochs(step),
        traces=_pairs(traces.facts if traces else {}),
        log=tuple(line for n, line in enumerate(training.log, start=1) if n % every == 0 or "eval_loss" in line),
        every=every,
    )


def predictor_views(facts: Facts) -> tuple[PredictorView, ...]:
    """Every predictor of the program, in its order."""
    return tuple(
        PredictorView(name, facts.vanilla.predictors.get(name, prompt), prompt, facts.templates.get(name, ()))
        for name, prompt in facts.prompts.predictors.items()
    )


def about_run(facts: Facts) -> tuple[tuple[str, str], ...]:
    """What was run, for who wants to run it again."""
    request, spec, sampling = facts.request, facts.request.spec, facts.request.spec.model.sampling
    program, metric, data = spec.program, spec.metric, spec.data
    about = [("run", f"{request.namespace}/{request.name} (uid {request.uid})")]
    if program.inline is not None:
        about.append(("program", f"{program.inline.module}: {program.inline.signature}"))
    else:
        about.append(("program", f"{program.entrypoint} {program.arguments or ''}".strip()))
    about += [
        ("format", program.adapter_name),
        ("metric", metric.entrypoint or f"{metric.builtin} of the field {metric.field}"),
        ("inputs", ", ".join(data.inputs)),
    ]
    for name, split in (("train", data.train), ("validation", data.validation), ("test", data.test)):
        size = facts.sizes.get(name, 0)
        if split is not None:
            about.append((name, f"{formats.counted(size, 'example')} of {split.uri}"))
        elif name == "validation":
            about.append((name, f"{formats.counted(size, 'example')}, held out of the training data"))
        else:
            about.append((name, "none"))
    about += [
        ("model", spec.model.uri),
        ("sampling", f"temperature {sampling.temperature}, top-p {sampling.top_p}, {sampling.max_tokens} tokens"),
        ("seed", str(spec.seed)),
    ]
    if facts.status.started is not None:
        about.append(("started", f"{facts.status.started:%Y-%m-%d %H:%M:%S} UTC"))
    if facts.versions:
        about.append(("versions", ", ".join(f"{name} {version}" for name, version in facts.versions.items())))
    return tuple(about)


def _step(facts: Facts, index: int) -> StepStatus:
    return next(step for step in facts.status.steps if step.index == index)


def _stage(step: StepStatus, name: str) -> StageStatus | None:
    return next((stage for stage in step.stages if stage.name == name), None)


def _epochs(step: StepStatus) -> tuple[EpochView, ...]:
    """The select stages that ended, with what they found."""
    views = []
    for name, epoch in step.selects.items():
        stage = _stage(step, name)
        if stage is None or not stage.facts:
            continue
        score, examples = stage.facts.get("score"), stage.facts.get("examples")
        views.append(
            EpochView(
                epoch=epoch.epoch,
                score=None if score is None else str(score),
                examples=examples if isinstance(examples, int) else None,
                standing=str(stage.facts.get("standing", stage.state.lower())),
                is_taken=bool(step.candidates) and epoch.adapter == step.adapter,
            )
        )
    return tuple(views)


def _weight_settings(spec: Spec, index: int, facts: Mapping[str, int | str]) -> tuple[tuple[str, str], ...]:
    """`facts`: of the training, which chose what the manifest left out."""
    chosen = spec.weights_of(index)
    given = {"rank": chosen.rank, "alpha": chosen.alpha, "learning_rate": chosen.learning_rate}
    rank, alpha, rate = (facts.get(name, value or "by the model's size") for name, value in given.items())
    modules = chosen.target_modules if isinstance(chosen.target_modules, str) else ", ".join(chosen.target_modules)
    return (
        ("optimizer", f"{chosen.type}, rank {rank}, alpha {alpha}"),
        ("modules", modules),
        ("learning rate", f"{rate}, {chosen.schedule}"),
        ("epochs", str(chosen.epochs)),
        ("checkpoint", _checkpoint(chosen)),
        ("batch size", str(chosen.batch_size)),
        ("prompts in the rows", chosen.prompts),
    )


def _checkpoint(chosen: WeightOptimizer) -> str:
    if chosen.checkpoint == "last":
        return "the last epoch's"
    return f"the best on validation of epochs {', '.join(map(str, chosen.kept_epochs))}"


#: What a search reports and `prompt_settings` tells.
_SEARCH_SETTINGS = {"optimizer", "class", "variant"}
#: What a training reports and `_weight_settings` tells.
_TRAINING_SETTINGS = {"epochs", "prompts", "rank", "alpha", "learning_rate"}
#: What stages count, in words and in the order in which it is shown; all else comes after it, under its own name.
_LABELS = {
    "bootstrap_examples": "bootstrap runs",
    "bootstrap_passed": "bootstrap runs passed",
    "retried": "run again with demos",
    "retry_passed": "passed then",
    "candidates": "candidates made",
    "scored": "candidates scored",
    "search_examples": "examples per candidate",
    "winner_kind": "chosen",
    "runs": "runs",
    "failed": "runs failed",
    "passed": "runs passed",
    "duplicates": "duplicates, dropped",
    "capped": "beyond maxPerExample",
    "kept": "traces kept",
    "examples_with_traces": "examples with traces",
    "rows": "training rows",
    "validation_rows": "validation rows",
    "dropped": "rows too long, dropped",
    "steps": "optimizer steps",
    "tokens": "tokens trained on",
    "seconds": "training time",
    "loss": "training loss, last epoch",
    "eval_loss": "validation loss, last",
}
#: What means something else in a search.
_SEARCH_LABELS = {
    **_LABELS,
    "dropped": "candidates dropped early",
    "runs": "runs of the program",
    "metric_calls": "runs of the program",
}


def _without(facts: Mapping[str, int | str], names: Set[str]) -> dict[str, int | str]:
    return {name: value for name, value in facts.items() if name not in names}


def _pairs(facts: dict[str, int | str], labels: Mapping[str, str] = _LABELS) -> tuple[tuple[str, str], ...]:
    """A stage's counts with their names in words."""
    pairs = []
    for name in (*(name for name in labels if name in facts), *(name for name in facts if name not in labels)):
        value = facts[name]
        label = labels.get(name, name.replace("rows.", "rows of ").replace("adapter.", "adapter ").replace("_", " "))
        if name == "seconds" and isinstance(value, int):
            pairs.append((label, formats.duration(value)))
        else:
            pairs.append((label, formats.count(value) if isinstance(value, int) else value))
    return tuple(pairs)
