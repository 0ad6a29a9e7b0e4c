"""The page: complete, well-formed, safe with whatever users wrote, and it loads nothing."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from typing import Any

import pytest
from tests.unit.trainer.report.sample import BEGAN, HOSTILE, LONG_TEXT, LONG_WORD, RUNS, chosen_epoch, spec, whole

from tandem_api.v1alpha1.status import Status
from tandem_trainer.report.facts import Facts
from tandem_trainer.report.prompt_settings import prompt_settings
from tandem_trainer.report.render import render_report
from tandem_trainer.report.views import search_view, training_view

VOID = {"meta", "br", "hr", "img", "input", "link"}


class Page(HTMLParser):
    """Parses strictly: every element is closed, in order."""

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.attributes: list[tuple[str, str, str | None]] = []
        self.tags: list[str] = []
        self.text = ""
        self.feed(html)
        self.close()
        assert self.open == [], f"not closed: {self.open}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(tag, name, value) for name, value in attrs]

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-1:]} at line {self.getpos()[0]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data

    def values(self, name: str) -> list[str]:
        return [value or "" for _, found, value in self.attributes if found == name]


@pytest.fixture(params=RUNS)
def facts(request: pytest.FixtureRequest) -> Facts:
    return RUNS[request.param]()


def test_the_page_is_well_formed_and_its_ids_are_unique(facts: Facts) -> None:
    page = Page(render_report(facts))
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    named = {word for name in ("aria-labelledby",) for value in page.values(name) for word in value.split()}
    linked = {value.removeprefix("#") for value in page.values("href")}
    assert named | linked <= set(ids)
    assert ("html", "lang", "en") in page.attributes and page.tags.count("h1") == page.tags.count("main") == 1


def test_the_page_loads_nothing_and_runs_nothing(facts: Facts) -> None:
    html = render_report(facts)
    page = Page(html)
    assert not {"script", "link", "img", "iframe", "object", "embed", "base", "form"} & set(page.tags)
    assert all(value.startswith("#") for value in page.values("href"))
    names = {name for _, name, _ in page.attributes}
    assert not {"src", "srcset", "style", "xlink:href"} & names and not [name for name in names if name[:2] == "on"]
    style = html[html.index("<style>") : html.index("</style>")]
    assert "url(" not in style and "@import" not in style
    assert any("default-src 'none'" in value for value in page.values("content"))


def test_what_users_wrote_is_shown_as_they_wrote_it(facts: Facts) -> None:
    html = render_report(facts)
    assert "<script" not in html and "<img" not in html and "&amp;amp;" not in html
    if facts.comparisons:
        text = Page(html).text
        assert HOSTILE in text and LONG_WORD in text and LONG_TEXT in text


def test_a_hostile_name_stays_text() -> None:
    facts = whole()
    html = render_report(replace(facts, request=facts.request.model_copy(update={"name": HOSTILE})))
    assert "<script" not in html and HOSTILE in Page(html).text


def test_absent_values_never_show_as_python_writes_them(facts: Facts) -> None:
    text = Page(render_report(facts)).text
    assert re.findall(r"\b(None|nan|inf|Undefined)\b", text.replace('{"nan": 2}', "")) == []


def test_every_candidate_step_and_stage_is_there(facts: Facts) -> None:
    text = Page(render_report(facts)).text
    for step in facts.status.steps:
        for candidate in step.candidates:
            assert candidate.id in text and f"{100 * float(candidate.score):.1f}%" in text
        if step.message:
            assert step.message in text
    for stage in facts.stages:
        assert f"{stage.step} {stage.kind}: {stage.stage}" in text
    for search in facts.searches:
        for trial in search.trials:
            assert f"{trial.tokens:,}" in text
    assert text.count("★ chosen") == sum(bool(search.trials) for search in facts.searches)
    assert f"{facts.usage.tokens:,}" in text and f"{facts.usage.calls:,} calls" in text


def test_a_dropped_candidates_score_does_not_look_like_a_full_one() -> None:
    html = render_report(whole())
    table = html.partition('id="trials-1"')[2].partition("</table>")[0]
    rows = [" ".join(re.sub(r"<[^>]*>", " ", row).split()) for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)]
    assert rows[-1].startswith("3 bootstrapped dropped instruction: {") and "57.5% so far" in rows[-1]
    assert "11 of 25" in rows[-1]
    assert "72.5% 57.5% to 87.5% 25 1" in rows[2], "a full one has its score and n as they are"
    text = Page(html).text
    assert "Racing dropped 1 candidate early." in text and "not scored" in text


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({}, {"candidates": "at most 12", "drops candidates": "at an error rate of 0.05, first after 10 examples"}),
        ({"exhaustive": True}, {"drops candidates": "never (exhaustive)"}),
        (
            {"type": "mipro", "trials": 20, "proposer": {"url": "https://host/v1", "model": "large"}},
            {"budget": "light, 20 trials", "writes instructions": "large at https://host/v1", "threshold": "1"},
        ),
        (
            {"type": "mipro", "trials": 2, "instructions": 3, "demoSets": 4, "samplesPerExample": 5},
            {"budget": "3 instructions, 4 demo sets, 2 trials", "runs per example": "5 at temperature 0.7"},
        ),
        (
            {"teacher": {"entrypoint": "a:b", "arguments": {"n": 1}}},
            {"teacher": 'a:b {"n": 1} on the served model'},
        ),
        ({"type": "gepa", "maxMetricCalls": 1000}, {"budget": "at most 1,000 runs of the program"}),
        (
            {"type": "gepa", "merge": False},
            {"budget": "light", "next candidate": "pareto", "writes": "the served model"},
        ),
        ({"maxBootstrappedDemos": 8}, {"demos": "at most 8 bootstrapped, 8 in all"}),
        ({"maxBootstrappedDemos": 2}, {"demos": "at most 2 bootstrapped, 3 in all"}),
        (
            {"type": "mipro", "variant": "zero-shot"},
            {"demos": "those of the starting prompts", "shown to the proposer": "bootstrapped demos"},
        ),
        ({"type": "dspy", "class": "SIMBA", "args": {"bsize": 4}}, {"class": "SIMBA", "arguments": '{"bsize": 4}'}),
    ],
)
def test_the_settings_of_every_type_of_optimizer_are_told(settings: dict[str, Any], told: dict[str, str]) -> None:
    rows = dict(prompt_settings(spec(promptOptimizer=settings), 1, predictors=2))
    assert rows["optimizer"] == settings.get("type", "bootstrap-random-search")
    assert rows.items() >= told.items()


@pytest.mark.parametrize(
    ("settings", "absent"),
    [
        ({"variant": "bayesian-bootstrap"}, {"writes instructions"}),
        (
            {"variant": "module-opro", "grounding": {"demos": False}},
            {"threshold", "runs per example", "teacher", "shown to the proposer"},
        ),
        ({"variant": "mipro++", "maxBootstrappedDemos": 0}, {"threshold", "shown to the proposer"}),
    ],
)
def test_settings_that_a_variant_does_not_use_are_not_told(settings: dict[str, Any], absent: set[str]) -> None:
    given = {"type": "mipro", "samplesPerExample": 2, "teacher": {"entrypoint": "a:b"}, **settings}
    rows = dict(prompt_settings(spec(promptOptimizer=given), 1, predictors=1))
    assert not absent & rows.keys()


@pytest.mark.parametrize(("predictors", "told"), [(1, "pareto"), (2, "pareto, merged ones, too")])
def test_candidates_are_merged_only_where_there_is_more_than_one_predictor(predictors: int, told: str) -> None:
    rows = dict(prompt_settings(spec(promptOptimizer={"type": "gepa"}), 1, predictors=predictors))
    assert rows["next candidate"] == told


@pytest.mark.parametrize(
    ("settings", "counts", "name"),
    [
        ({"type": "mipro", "variant": "zero-shot"}, {"variant": "zero-shot", "candidates": 4}, "variant"),
        ({"type": "dspy", "class": "SIMBA"}, {"class": "SIMBA"}, "class"),
    ],
)
def test_what_stands_among_the_settings_is_not_told_again_as_a_count(
    settings: dict[str, Any], counts: dict[str, int | str], name: str
) -> None:
    facts = whole()
    stage = facts.status.steps[1].stages[0].model_copy(update={"facts": counts})
    steps = list(facts.status.steps)
    steps[1] = steps[1].model_copy(update={"stages": (stage,)})
    request = facts.request.model_copy(update={"spec": spec(promptOptimizer=settings)})
    changed = replace(facts, request=request, status=facts.status.model_copy(update={"steps": tuple(steps)}))
    view = search_view(changed, facts.searches[0])
    assert [label for label, _ in view.settings + view.facts].count(name) == 1


def test_the_epochs_that_a_training_chose_among_are_told_with_their_scores() -> None:
    html = render_report(chosen_epoch())
    table = html.partition('id="epochs-1"')[2].partition("</table>")[0]
    rows = [" ".join(re.sub(r"<[^>]*>", " ", row).split()) for row in re.findall(r"<tr.*?</tr>", table, re.DOTALL)]
    assert rows[1:] == [
        "4 75.0% 40 best so far",
        "3 – – failed",
        "2 80.0% 40 best so far ★ taken",
        "1 – – stopped",
    ]
    assert 'id="epochs-2"' not in render_report(whole())


@pytest.mark.parametrize(
    ("facts", "told"),
    [
        (whole(), {"epochs": "3", "checkpoint": "the last epoch's"}),
        (chosen_epoch(), {"epochs": "4", "checkpoint": "the best on validation of epochs 1, 2, 3, 4"}),
    ],
)
def test_a_trainings_settings_tell_epochs_and_checkpoint_once(facts: Facts, told: dict[str, str]) -> None:
    view = training_view(facts, facts.trainings[0])
    assert dict(view.settings).items() >= told.items()
    assert not dict(view.settings).keys() & dict(view.facts).keys()


def test_a_fold_keeps_the_whole_text_and_short_texts_are_not_folded() -> None:
    html = render_report(whole())
    assert f'<div class="long">{LONG_TEXT}</div>' in html
    assert '<span class="long">A delight from start to end.</span>' in html


def test_changed_examples_are_marked_by_word_and_not_by_colour_alone() -> None:
    text = Page(render_report(whole())).text
    assert text.count("▲ better") == 3 and text.count("▼ worse") == 1 and text.count("= same score") == 1
    assert "15 became better, 2 worse, 23 stayed" in text


def test_gpu_time_is_shown_where_there_is_any() -> None:
    facts = whole()
    assert "GPU time" not in Page(render_report(facts)).text
    usage = facts.usage.model_copy(update={"gpu_seconds": 3700})
    assert "1 h 1 min" in Page(render_report(replace(facts, usage=usage))).text


def test_a_run_of_which_next_to_nothing_is_known_still_has_its_page() -> None:
    """The report comes last: it must not be what a run fails with."""
    facts = whole()
    bare = Status(steps=(), best=facts.best, started=BEGAN)
    empty = replace(
        facts, status=bare, test=(), stages=(), searches=(), trainings=(), comparisons=(), sizes={}, versions={}
    )
    text = Page(render_report(empty)).text
    assert "The best program scores 87.5% on validation." in text and "optimized" not in text.split("Scores")[0]


def test_counts_of_stages_are_told_in_words_and_in_the_order_of_the_work() -> None:
    """The status may hold them in any order."""
    facts = whole()
    counts: dict[str, int | str] = {"winner": 0, "retry_passed": 1, "odd_one": 5, "bootstrap_examples": 1200}
    stage = facts.status.steps[1].stages[0].model_copy(update={"facts": counts})
    steps = list(facts.status.steps)
    steps[1] = steps[1].model_copy(update={"stages": (stage,)})
    text = Page(render_report(replace(facts, status=facts.status.model_copy(update={"steps": tuple(steps)})))).text
    places = [text.index(label) for label in ("bootstrap runs1,200", "passed then1", "odd one5")]
    assert places == sorted(places)
