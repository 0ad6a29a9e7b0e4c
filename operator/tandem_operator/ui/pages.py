"""The pages: what each shows of one look at the run, as HTML. Every value is escaped by the templates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Any
from urllib.parse import urlencode

from jinja2 import Environment, FunctionLoader

from tandem_api.layout import StageLayout
from tandem_api.pages.plots import LossPoint, loss_plot, scores_plot, timeline_plot
from tandem_api.pages.templates import environment
from tandem_api.v1alpha1.status import StageStatus, StepStatus
from tandem_operator.ui import journals, views
from tandem_operator.ui.model import Seen
from tandem_operator.ui.sources import Source

#: Lines of a loss log that are shown as a table; the figure has all of them.
MAX_LOSS_LINES = 60
#: Texts of models that are shown, the newest of them.
MAX_TEXTS = 50


@dataclass(frozen=True)
class Asked:
    """What an address asks for."""

    path: dict[str, str]
    query: dict[str, str]


#: Makes a page; None: there is no such thing.
Page = Callable[[Source, Seen, Asked], str | None]


def overview(source: Source, seen: Seen, _: Asked) -> str | None:
    """Where the run is and what it found."""
    status = seen.run.status
    marks = views.score_marks(status)
    return _render(
        "overview",
        source,
        seen,
        marks=marks,
        scores=scores_plot(marks, float(status.baseline.score) if status.baseline else None),
        candidates=views.candidates(status),
        timeline=timeline_plot(views.bars(status, seen.now)),
        has_report=source.report() is not None
        or seen.mirror.get(f"{seen.mirror.layout.result}report.html") is not None,
        events=source.events()[::-1],
    )


def search(source: Source, seen: Seen, asked: Asked) -> str | None:
    """The trials of a `p` step."""
    step = _step(seen, asked, "p")
    if step is None:
        return None
    stage = _layout(seen, step, "optimize")
    table = journals.trials(seen.mirror, stage)
    wanted = views.TrialFilter.parse(asked.query)
    texts = journals.written_texts(seen.mirror, stage)
    return _render(
        "search",
        source,
        seen,
        step=step,
        stage=views.stage_of(step, "optimize"),
        rows=views.trial_rows(seen.mirror, stage, table.records, wanted),
        trials=table.records,
        winner=_winner(step),
        longest=max((trial.n for trial in table.records), default=0),
        has_full=any(trial.full is not None for trial in table.records),
        damaged=table.damaged + texts.damaged,
        kinds=sorted({trial.kind for trial in table.records}),
        orders=views.ORDERS,
        wanted=wanted,
        runs=len(journals.scored_examples(seen.mirror, stage).records),
        texts=texts.records[::-1][:MAX_TEXTS],
        all_texts=len(texts.records),
    )


def trial(source: Source, seen: Seen, asked: Asked) -> str | None:
    """One trial's prompts, and how they differ from another's."""
    step = _step(seen, asked, "p")
    if step is None:
        return None
    stage = _layout(seen, step, "optimize")
    trials = {str(one.index): one for one in journals.trials(seen.mirror, stage).records}
    shown = trials.get(asked.path["trial"])
    if shown is None:
        return None
    other = trials.get(asked.query.get("with", next(iter(trials))))
    prompts = journals.prompt_set(seen.mirror, stage, shown.prompts.sha256)
    against = journals.prompt_set(seen.mirror, stage, other.prompts.sha256) if other is not None else None
    return _render(
        "trial",
        source,
        seen,
        step=step,
        trial=shown,
        other=other,
        trials=list(trials.values()),
        prompts=prompts,
        differences=views.prompt_diff(against, prompts) if prompts and against and other != shown else None,
    )


def examples(source: Source, seen: Seen, asked: Asked) -> str | None:
    """The runs of the program that a stage has paid for."""
    found = _stage(seen, asked)
    if found is None:
        return None
    step, stage = found
    ledger = journals.scored_examples(seen.mirror, _layout(seen, step, stage.name))
    wanted = views.ExampleFilter.parse(asked.query)
    names = views.candidate_names(seen.run, seen.mirror)
    page = views.example_page(ledger.records, wanted)

    def page_link(number: int) -> str:
        return "?" + urlencode({**{k: v for k, v in asked.query.items() if k != "token"}, "page": number})

    return _render(
        "examples",
        source,
        seen,
        step=step,
        stage=stage,
        page=page,
        page_link=page_link,
        total=len(ledger.records),
        damaged=ledger.damaged,
        wanted=wanted,
        statuses=sorted({record.status for record in ledger.records}),
        candidates={
            sha256: names.get(sha256, sha256[:8]) for sha256 in dict.fromkeys(r.candidate for r in ledger.records)
        },
        short_id=journals.short_id,
    )


def example(source: Source, seen: Seen, asked: Asked) -> str | None:
    """One run of the program, with its calls where these were kept."""
    found = _stage(seen, asked)
    if found is None:
        return None
    step, stage = found
    records = journals.scored_examples(seen.mirror, _layout(seen, step, stage.name)).records
    record = next((record for record in records if journals.short_id(record) == asked.path["id"]), None)
    if record is None:
        return None
    names = views.candidate_names(seen.run, seen.mirror)
    name = names.get(record.candidate, record.candidate[:8])
    return _render("example", source, seen, step=step, stage=stage, record=record, candidate=name)


def training(source: Source, seen: Seen, asked: Asked) -> str | None:
    """The loss of a `w` step's training."""
    step = _step(seen, asked, "w")
    if step is None:
        return None
    log = journals.loss_log(seen.mirror, _layout(seen, step, "train"))
    curves = {
        name: [LossPoint(line["step"], line[name]) for line in log if name in line] for name in ("loss", "eval_loss")
    }
    every = -(-len(log) // MAX_LOSS_LINES) or 1
    return _render(
        "training",
        source,
        seen,
        step=step,
        stage=views.stage_of(step, "train"),
        traces=views.stage_of(step, "traces"),
        plot=loss_plot(str(step.index), curves["loss"], curves["eval_loss"]),
        has_validation=bool(curves["eval_loss"]),
        log=[line for number, line in enumerate(log, start=1) if number % every == 0 or "eval_loss" in line],
        every=every,
    )


def logs(source: Source, seen: Seen, asked: Asked) -> str | None:
    """The list of logs, or one of them."""
    name = asked.path.get("log")
    text = source.log(name) if name is not None else None
    if name is not None and text is None:
        return None
    words = asked.query.get("q", "").lower().split()
    lines = [line for line in (text or "").splitlines() if all(word in line.lower() for word in words)]
    listed = source.logs() if name is None else []
    return _render("logs", source, seen, logs=listed, name=name, lines=lines, wanted=asked.query.get("q", ""))


PAGES: dict[str, Page] = {
    "/": overview,
    "/steps/{step}/search": search,
    "/steps/{step}/trials/{trial}": trial,
    "/steps/{step}/training": training,
    "/steps/{step}/{stage}/examples": examples,
    "/steps/{step}/{stage}/examples/{id}": example,
    "/logs": logs,
    "/logs/{log}": logs,
}


def _render(template: str, source: Source, seen: Seen, /, **values: Any) -> str:
    run = seen.run
    began, ended = run.status.started, run.status.finished
    return (
        _environment()
        .get_template(template)
        .render(
            run=run,
            status=run.status,
            now=seen.now,
            strategy=run.spec.strategy_text.replace("->", "→"),
            seconds=((ended or seen.now) - began).total_seconds() if began else None,
            is_over=views.has_ended(run.status),
            waiting=views.waiting(run.status),
            problems=seen.problems,
            where=source.where,
            scored=_scored(seen),
            name_of_step=_step_name,
            **values,
        )
    )


@cache
def _environment() -> Environment:
    folder = resources.files(__package__).joinpath("templates")
    made = environment(FunctionLoader(lambda name: folder.joinpath(f"{name}.html.j2").read_text(encoding="utf-8")))
    made.globals |= {"kinds": views.KINDS, "loading_seconds": views.loading_seconds}
    return made


def _step(seen: Seen, asked: Asked, kind: str) -> StepStatus | None:
    step = next((step for step in seen.run.status.steps if str(step.index) == asked.path["step"]), None)
    return step if step is not None and step.kind == kind else None


def _stage(seen: Seen, asked: Asked) -> tuple[StepStatus, StageStatus] | None:
    step = next((step for step in seen.run.status.steps if str(step.index) == asked.path["step"]), None)
    stage = views.stage_of(step, asked.path["stage"]) if step is not None else None
    return (step, stage) if step is not None and stage is not None else None


def _layout(seen: Seen, step: StepStatus, stage: Any) -> StageLayout:
    return seen.mirror.layout.stage(step.index, step.kind, stage)


def _scored(seen: Seen) -> set[tuple[int, str]]:
    """The stages that have runs of the program to show."""
    return {
        (step.index, stage.name)
        for step in seen.run.status.steps
        for stage in step.stages
        if seen.mirror.keys(_layout(seen, step, stage.name).ledger)
    }


def _winner(step: StepStatus) -> int | None:
    stage = views.stage_of(step, "optimize")
    winner = stage.facts.get("winner") if stage is not None else None
    return winner if isinstance(winner, int) else None


def _step_name(step: StepStatus) -> str:
    return f"Step {step.index} ({views.KINDS[step.kind]})"
