"""The page `report.html`: one self-contained file that tells what a run did and what it came to.

Called by `bundle` with what `facts` gathered. The sentences are in `findings`, the snippets in `handover`, the layout
in `report.html.j2`, figures and style in `tandem_api.pages`; here they are put together. Pure, and it never fails for
what a run may look like: a page that cannot be made would cost the result of hours.
"""

from __future__ import annotations

from functools import cache
from importlib import resources

from jinja2 import Template

from tandem_api.pages import style
from tandem_api.pages.plots import Bar, ScoreMark, scores_plot, timeline_plot
from tandem_api.pages.templates import environment
from tandem_trainer.report.facts import Facts, StageTimes
from tandem_trainer.report.findings import KINDS, candidate_rows, verdict, warnings
from tandem_trainer.report.handover import handover
from tandem_trainer.report.views import about_run, predictor_views, search_view, training_view

#: Texts with more characters, or more lines, are folded away behind their beginning.
MAX_SHOWN, MAX_LINES = 320, 8
#: Searches with more candidates show their table on demand only.
MAX_OPEN_TRIALS = 16
#: Prompts with more demos show them on demand only.
MAX_OPEN_DEMOS = 6


def render_report(facts: Facts) -> str:
    """The page, complete and escaped."""
    rows = candidate_rows(facts)
    baseline = facts.status.baseline
    return _template().render(
        facts=facts,
        request=facts.request,
        spec=facts.request.spec,
        strategy=facts.request.spec.strategy_text.replace("->", "→"),
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
        searches=[search_view(facts, search) for search in facts.searches],
        trainings=[training_view(facts, training) for training in facts.trainings],
        predictors=predictor_views(facts),
        handover=handover(facts),
        about=about_run(facts),
        step_tokens={
            step.index: sum(times.usage.tokens for times in facts.stages if times.step == step.index)
            for step in facts.status.steps
        },
        max_shown=MAX_SHOWN,
        max_lines=MAX_LINES,
        max_open_trials=MAX_OPEN_TRIALS,
        max_open_demos=MAX_OPEN_DEMOS,
    )


@cache
def _template() -> Template:
    folder = resources.files(__package__)
    made = environment()
    made.globals["css"] = style()
    return made.from_string(folder.joinpath("report.html.j2").read_text(encoding="utf-8"))


def _bar(times: StageTimes) -> Bar:
    return Bar(f"{times.step} {times.kind}: {times.stage}", times.start, times.seconds, times.loading)
