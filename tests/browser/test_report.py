"""`report.html` as people open it: from a disk, on a phone, in the dark, on paper, with a keyboard, with a reader."""

from __future__ import annotations

import io
import re
import unicodedata
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.browser.browser import DESKTOP, PHONE, Watched, colours, opened, overflowing, violations
from tests.unit.trainer.report.sample import HOSTILE, LONG_TEXT, LONG_WORD, RUNS

from tandem_trainer.report.render import render_report

if TYPE_CHECKING:
    from playwright.sync_api import Browser

#: An A4 page between the report's margins, in CSS pixels.
PAPER = (688, 1000)
Open = Callable[..., Watched]


@pytest.fixture
def report(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """Opens the report of a made-up run, from its file."""
    shown = []

    def show(run: str = "whole", size: tuple[int, int] = DESKTOP, *, dark: bool = False) -> Watched:
        path = tmp_path / f"{run}.html"
        path.write_text(render_report(RUNS[run]()), encoding="utf-8")
        context = opened(browser, size, dark=dark)
        watched = context.__enter__()
        shown.append(context)
        watched.page.goto(path.as_uri())
        return watched

    yield show
    for context in shown:
        context.__exit__(None, None, None)


@pytest.mark.parametrize("run", RUNS)
def test_it_loads_nothing_runs_nothing_and_complains_of_nothing(report: Open, run: str) -> None:
    watched = report(run)
    watched.page.wait_for_load_state("networkidle")
    assert watched.requests == [watched.page.url]
    assert watched.complaints == []
    # What users wrote is text: nothing of it has become an element.
    assert watched.page.locator("script, img, iframe, object").count() == 0


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("size", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_it_shows_something_and_fits_the_screen(report: Open, size: tuple[int, int], dark: bool) -> None:
    page = report("whole", size, dark=dark).page
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert overflowing(page) == []
    assert colours(page.screenshot(full_page=True)) > 50
    background = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background))) < 200) == dark


@pytest.mark.parametrize("run", sorted(RUNS.keys() - {"whole"}))
def test_every_kind_of_run_fits_a_phone(report: Open, run: str) -> None:
    page = report(run, PHONE).page
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert overflowing(page) == []


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_is_accessible(report: Open, dark: bool) -> None:
    page = report("whole", dark=dark).page
    assert violations(page) == []
    page.evaluate("document.querySelectorAll('details').forEach(details => details.open = true)")
    assert violations(page) == []


@pytest.mark.parametrize("run", sorted(RUNS.keys() - {"whole"}))
def test_every_kind_of_run_is_accessible_on_a_phone(report: Open, run: str) -> None:
    assert violations(report(run, PHONE).page) == []


def test_everything_is_reached_and_opened_by_keyboard(report: Open) -> None:
    page = report().page
    wanted = page.evaluate(
        """() => [...document.querySelectorAll("a[href], summary, [tabindex='0']")]
            .filter(e => e.checkVisibility()).map((e, n) => { e.dataset.n = n; return String(n); })"""
    )
    reached, unmarked = [], []
    for _ in wanted:
        page.keyboard.press("Tab")
        number, name, is_marked = page.evaluate(
            """() => { const e = document.activeElement, style = getComputedStyle(e);
                return [e.dataset.n, e.textContent.trim().slice(0, 40),
                        style.outlineStyle !== "none" && parseFloat(style.outlineWidth) >= 1]; }"""
        )
        reached.append(number)
        if not is_marked:
            unmarked.append(name)
    assert reached == wanted and unmarked == []
    first = page.locator("summary").first
    first.focus()
    page.keyboard.press("Enter")
    assert first.locator("..").get_attribute("open") is not None
    page.locator(".skip").focus()
    box = page.locator(".skip").bounding_box()
    assert box is not None and box["x"] >= 0, "the way past the menu shows when it is reached"
    page.keyboard.press("Enter")
    assert page.url.endswith("#main")


def test_nothing_is_cut_where_it_is_printed(report: Open) -> None:
    """Paper has no scroll bars and nothing to click: what is folded away on the screen must be there."""
    page = report("whole", PAPER, dark=True).page
    page.emulate_media(media="print")
    assert overflowing(page) == []
    clipped = page.evaluate(
        """() => [...document.querySelectorAll(".scroll, pre, table, .box")]
            .filter(e => e.scrollWidth > e.clientWidth + 1).map(e => e.className || e.tagName)"""
    )
    assert clipped == []
    page.emulate_media(media=None)
    text = printed(page.pdf(format="A4", print_background=True))
    for piece in (LONG_TEXT.strip(), LONG_WORD, HOSTILE, "Loss and learning rate by optimizer step", "vllm serve"):
        assert squeezed(piece) in text, piece[:60]
    for cell in page.locator("td").all_text_contents():
        assert squeezed(cell) in text, cell
    assert "showthewhole" not in text


def printed(pdf: bytes) -> str:
    """All words of a PDF, without what lies between them."""
    from pypdf import PdfReader

    pages = PdfReader(io.BytesIO(pdf)).pages
    assert len(pages) > 2
    texts = [page.extract_text() for page in pages]
    assert all(text.strip() for text in texts), "an empty page"
    return squeezed("".join(texts))


def squeezed(text: str) -> str:
    """Without white space, and with ligatures as the letters that they are."""
    return re.sub(r"\s+", "", unicodedata.normalize("NFKC", text))
