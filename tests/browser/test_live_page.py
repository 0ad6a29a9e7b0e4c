"""The page of `tandem ui` in a real browser: it follows the run, it is accessible, and what users wrote stays text."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING

import pytest
from tests.browser.browser import DESKTOP, PHONE, Watched, colours, opened, overflowing, violations
from tests.browser.serving import served
from tests.made_up_run import LAYOUT, MadeUp, lines, made_up, prompts, record
from tests.unit.trainer.report.sample import HOSTILE, LONG_WORD

from tandem_api.v1alpha1.status import CurrentStep

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

PAGES = {
    "overview": "/",
    "search": "/steps/3/search",
    "trial": "/steps/3/trials/3?with=1",
    "examples": "/steps/2/traces/examples",
    "training": "/steps/2/training",
    "logs": "/logs",
    "log": "/logs/worker-1p-optimize-1",
}


class Shown:
    """A browser on the page of a made-up run."""

    def __init__(self, run: MadeUp, address: str, watched: Watched) -> None:
        self.run, self.watched, self.page = run, watched, watched.page
        self.root = address.partition("/?")[0]
        self.go(address.removeprefix(self.root))

    def go(self, path: str) -> Page:
        self.page.goto(self.root + path)
        self.page.get_by_text("Live", exact=True).wait_for()
        return self.page


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as opened_things:
        yield opened_things


def show(stack: ExitStack, browser: Browser, run: MadeUp, size: tuple[int, int] = DESKTOP, dark: bool = False) -> Shown:
    address = stack.enter_context(served(run))
    return Shown(run, address, stack.enter_context(opened(browser, size, dark=dark)))


@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_every_page_is_accessible_fits_and_complains_of_nothing(
    browser: Browser, stack: ExitStack, size: tuple[int, int]
) -> None:
    shown = show(stack, browser, made_up(), size, dark=size == PHONE)
    for path in PAGES.values():
        page = shown.go(path)
        assert violations(page) == [], path
        assert overflowing(page) == [], path
        assert colours(page.screenshot()) > 20, path
    assert shown.watched.complaints == []
    assert {url.startswith(shown.root) for url in shown.watched.requests} == {True}
    assert all("token" not in url for url in shown.watched.requests[1:]), "the token leaves the address at once"


def test_what_users_and_models_wrote_stays_text(browser: Browser, stack: ExitStack) -> None:
    shown = show(stack, browser, made_up(text=lambda text: f"{text} {HOSTILE} {LONG_WORD}"), PHONE)
    shown.run.texts = {"<script>alert(1)<b>": f"{HOSTILE}\n{LONG_WORD}"}
    for path in [*PAGES.values(), "/steps/3/optimize/examples?q=" + "%3Cscript%3E"]:
        if path.startswith("/logs/"):
            page = shown.go("/logs")
            page.locator("td a").click()
        else:
            page = shown.go(path)
        page.wait_for_timeout(200)
        assert page.locator("main script, img, iframe").count() == 0, path
        assert overflowing(page) == [], path
    shown.go("/steps/2/traces/examples").locator("td a").first.click()
    assert "<script>alert" in shown.page.locator("pre").first.text_content()
    assert shown.watched.complaints == []
    assert {url.startswith(shown.root) for url in shown.watched.requests} == {True}


def test_what_happens_appears_by_itself_and_leaves_the_readers_place(browser: Browser, stack: ExitStack) -> None:
    shown = show(stack, browser, made_up())
    page, run = shown.page, shown.run
    step = CurrentStep(index=3, kind="p", stage="optimize", progress=88, message="trial 18 of 20")
    best = run.run.status.baseline.model_copy(update={"step": 3, "id": "new@base", "score": "0.9100"})
    steps = list(run.run.status.steps)
    steps[3] = steps[3].model_copy(update={"candidates": (best,)})
    changes = {"step": step, "best": best, "steps": tuple(steps)}
    run.run = run.run.model_copy(update={"status": run.run.status.model_copy(update=changes)})
    page.get_by_text("trial 18 of 20").wait_for()
    page.get_by_role("cell", name="new@base ★ best").wait_for()
    # What the reader has opened, typed and chosen stays.
    shown.go("/steps/3/search")
    opened_text = page.locator("#texts details").last
    opened_text.locator("summary").click()
    page.get_by_label("Words in the prompts").fill("half-typed")
    page.locator("#trials a").first.focus()
    table = LAYOUT.stage(3, "p", "optimize").trials
    run.store.objects[table] = b"\n".join(run.store.objects[table].splitlines()[:5])
    page.get_by_text("5 of 5 trials").wait_for()
    assert opened_text.get_attribute("open") is not None
    assert page.get_by_label("Words in the prompts").input_value() == "half-typed"
    assert page.evaluate("document.activeElement.textContent") == "Trial 0"
    # A store that is away is told, and what was seen is still shown.
    run.is_down = True
    page.get_by_text("the bucket does not answer").wait_for()
    assert page.get_by_text("5 of 5 trials").count() == 1


def test_trials_are_filtered_ordered_read_and_compared(browser: Browser, stack: ExitStack) -> None:
    shown = show(stack, browser, made_up())
    page = shown.go("/steps/3/search")
    page.get_by_label("Order").select_option("score")
    page.get_by_label("Words in the prompts").fill("praise")
    page.get_by_role("button", name="Show").click()
    page.get_by_text("3 of 12 trials").wait_for()
    assert page.locator("#trials tbody tr a").all_text_contents() == ["Trial 11", "Trial 7", "Trial 3"]
    page.get_by_role("link", name="Trial 7").click()
    page.get_by_label("Compare with").select_option("1")
    page.get_by_role("button", name="Compare").click()
    page.get_by_text("only in trial 1").wait_for()
    assert "Praise for a part" in " ".join(page.locator("ins").all_text_contents())
    assert "Answer with one word" in " ".join(page.locator("del").all_text_contents())
    assert page.locator("details.added").count() == 2


def test_traces_are_filtered_and_opened_as_they_come(browser: Browser, stack: ExitStack) -> None:
    shown = show(stack, browser, made_up())
    page = shown.go("/steps/2/traces/examples")
    page.get_by_text("120 of 120 runs").wait_for()
    page.get_by_label("Status").select_option("unparsable")
    page.get_by_role("button", name="Show").click()
    page.get_by_text("10 of 120 runs").wait_for()
    shown.run.store.put(f"{LAYOUT.stage(2, 'w', 'traces').ledger}2.jsonl", lines([record(131, prompts(3), calls=True)]))
    page.get_by_text("11 of 121 runs").wait_for()
    page.get_by_role("link", name="t-131").click()
    page.get_by_role("heading", name="Example t-131").wait_for()
    assert "no line begins with" in page.locator("pre").first.text_content()
    assert "Review: Slow at first" in page.locator("#call-1").text_content()


def test_it_says_when_the_command_has_ended(browser: Browser, stack: ExitStack) -> None:
    with served(made_up()) as address:
        page = stack.enter_context(opened(browser)).page
        page.goto(address)
        page.get_by_text("Live", exact=True).wait_for()
    page.get_by_text("has the command ended?").wait_for()
