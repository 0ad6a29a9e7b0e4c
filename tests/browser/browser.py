"""A real Chromium for the tests and `tools/screenshots.py`: pages that tell what they asked for and what went wrong."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

ROOT = Path(__file__).parents[2]
#: Everything may take long on a busy machine.
PATIENCE_MS = 120_000
DESKTOP, PHONE = (1280, 900), (360, 740)


def use_side_environment() -> None:
    """Let this process import what drives the browser; what `.venv` holds itself comes first."""
    python = _output(ROOT / "tools/side-environment", "browser")
    where = _output(Path(python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))")
    if where not in sys.path:
        sys.path.append(where)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser. What it may not reach, it does not find: there is no name to resolve."""
    use_side_environment()
    from playwright.sync_api import sync_playwright

    path = _output(ROOT / "tools/chromium")
    # Without a sandbox where we are root: Chromium refuses otherwise, and shows nothing here but our own pages.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=path,
            args=[*arguments, "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"],
            timeout=PATIENCE_MS,
        )
        try:
            yield browser
        finally:
            browser.close()


@dataclass
class Watched:
    """A page, and what happened on it."""

    page: Page
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    """Errors of scripts, of the console and of the policy of contents."""


@contextmanager
def opened(
    browser: Browser, size: tuple[int, int] = DESKTOP, *, dark: bool = False, **options: Any
) -> Iterator[Watched]:
    """An empty page of that size in CSS pixels, with cookies and a cache of its own."""
    context = browser.new_context(
        viewport={"width": size[0], "height": size[1]}, color_scheme="dark" if dark else "light", **options
    )
    context.set_default_timeout(PATIENCE_MS)
    watched = Watched(context.new_page())
    watched.page.on("request", lambda request: watched.requests.append(request.url))
    watched.page.on("pageerror", lambda error: watched.complaints.append(str(error)))
    watched.page.on(
        "console",
        lambda said: watched.complaints.append(said.text) if said.type in ("error", "warning") else None,
    )
    watched.page.on("dialog", lambda dialog: (watched.complaints.append(dialog.message), dialog.dismiss()))
    try:
        yield watched
    finally:
        context.close()


def violations(page: Page) -> list[str]:
    """What axe-core finds wrong with the page as it is shown now: the rule and where."""
    from axe_playwright_python.sync_playwright import Axe

    found = Axe().run(page).response
    assert len(found["passes"]) > 10, "axe has looked at nothing"
    return [
        f"{violation['id']}: {node['target']} {node.get('failureSummary', '')}"
        for violation in found["violations"]
        for node in violation["nodes"]
    ]


def overflowing(page: Page) -> list[str]:
    """Elements that stick out of the page's width and that nothing lets one scroll to."""
    return list(page.evaluate(_OVERFLOWING))


def colours(picture: bytes) -> int:
    """How many colours a PNG shows: one or two are an empty page."""
    import io

    from PIL import Image

    found = Image.open(io.BytesIO(picture)).convert("RGB").getcolors(1 << 24)
    return len(found or ())


def _output(*command: str | Path) -> str:
    done = subprocess.run([str(part) for part in command], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout.strip()


_OVERFLOWING = """() => {
  const width = document.documentElement.clientWidth, found = [];
  const scrolls = e => { for (let p = e.parentElement; p; p = p.parentElement) {
    if (p.tagName === "svg" || ["auto", "scroll"].includes(getComputedStyle(p).overflowX)) return true;
  } return false; };
  for (const e of document.body.querySelectorAll("*")) {
    const box = e.getBoundingClientRect();
    if (box.width && box.right > width + 1 && !scrolls(e)) found.push(`${e.tagName}.${e.className} to ${box.right}`);
  }
  if (document.documentElement.scrollWidth > width) found.push(`page of ${document.documentElement.scrollWidth}`);
  return found;
}"""
