"""Makes docs/images: the report and the live page of a made-up run, in a browser. Arguments: which ones, or all."""

from __future__ import annotations

import io
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from PIL import Image  # noqa: E402
from tests.browser.browser import DESKTOP, PHONE, chromium, opened  # noqa: E402
from tests.browser.serving import served  # noqa: E402
from tests.made_up_run import REVIEWS, WORDINGS, made_up, prompts  # noqa: E402
from tests.unit.trainer.report import sample  # noqa: E402

from tandem_api.records import PredictorPrompt, PromptSet  # noqa: E402
from tandem_trainer.report.facts import Comparison, Facts  # noqa: E402
from tandem_trainer.report.render import render_report  # noqa: E402

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

IMAGES = ROOT / "docs/images"
MAX_BYTES = 300_000
#: Of the live page: its address, the size of the screen, the height of the picture.
LIVE = {
    "ui": ("/", DESKTOP, 1240),
    "ui-trial": ("/steps/3/trials/11?with=1", DESKTOP, 900),
    "ui-examples": ("/steps/2/traces/examples?q=second+half", DESKTOP, 720),
    "ui-phone": ("/", PHONE, 900),
}
REPORT = {"report": (DESKTOP, 1560), "report-phone": (PHONE, 900)}


def main(names: list[str]) -> None:
    """Make all pictures, or those of these names."""
    IMAGES.mkdir(exist_ok=True)
    with chromium() as browser:
        for name, (size, height) in REPORT.items():
            if not names or name in names:
                _keep(name, _report(browser, size, height))
        run = made_up()
        run.where = "runs/reviews"
        with served(run) as address:
            for name, (path, size, height) in LIVE.items():
                if not names or name in names:
                    _keep(name, _live(browser, address, path, size, height))


def _report(browser: Browser, size: tuple[int, int], height: int) -> bytes:
    with tempfile.TemporaryDirectory() as folder, opened(browser, size) as watched:
        path = Path(folder) / "report.html"
        path.write_text(render_report(_facts()), encoding="utf-8")
        watched.page.goto(path.as_uri())
        return _picture(watched.page, size, height)


def _live(browser: Browser, address: str, path: str, size: tuple[int, int], height: int) -> bytes:
    with opened(browser, size) as watched:
        watched.page.goto(address)
        watched.page.goto(address.partition("/?")[0] + path)
        watched.page.get_by_text("Live", exact=True).wait_for()
        return _picture(watched.page, size, height)


def _picture(page: Page, size: tuple[int, int], height: int) -> bytes:
    page.set_viewport_size({"width": size[0], "height": height})
    return page.screenshot()


def _keep(name: str, picture: bytes) -> None:
    """With 256 colours, which flat pages are none the worse for."""
    path = IMAGES / f"{name}.png"
    Image.open(io.BytesIO(picture)).convert("RGB").quantize(256).save(path, optimize=True)
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise SystemExit(f"{path} has {size:,} bytes, at most {MAX_BYTES:,} are allowed: make it less high")
    print(f"{path.relative_to(ROOT)}: {size / 1000:.0f} kB")


def _facts() -> Facts:
    """The report's sample without what is in it to try the page."""
    facts = sample.whole()
    answers = (
        ("negative", "positive", 0.0, 1.0),
        ("negative", "positive", 0.0, 1.0),
        ("positive", "negative", 1.0, 0.0),
    )
    comparisons = tuple(
        Comparison(f"v-{review[:3]}", {"review": review}, {"sentiment": sentiment}, f"sentiment: {before}",
                   f"sentiment: {after}", low, high)
        for (review, sentiment), (before, after, low, high) in zip(REVIEWS[1::2], answers, strict=True)
    )  # fmt: skip
    demos = tuple({"review": review, "sentiment": sentiment} for review, sentiment in REVIEWS[:4])
    best = PromptSet(predictors={"self": PredictorPrompt(instruction=WORDINGS[3], demos=demos)})
    check = facts.status.steps[0].stages[0].model_copy(update={"facts": {}})
    first = facts.status.steps[0].model_copy(update={"stages": (check, *facts.status.steps[0].stages[1:])})
    status = facts.status.model_copy(update={"steps": (first, *facts.status.steps[1:])})
    searches = tuple(
        replace(search, trials=tuple(trial.model_copy(update={"parameters": {}}) for trial in search.trials))
        for search in facts.searches
    )
    request = facts.request.model_copy(update={"status": status})
    return replace(
        facts,
        request=request,
        status=status,
        comparisons=comparisons,
        prompts=best,
        vanilla=prompts(0),
        searches=searches,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
