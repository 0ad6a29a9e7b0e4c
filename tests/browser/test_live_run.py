"""`tandem ui` over a real run: while the engine writes the folder and its S3 server, and after both are gone."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.browser.browser import opened, violations
from tests.engine.world import ROOT, Engine

if TYPE_CHECKING:
    from playwright.sync_api import Browser


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    """A run with an S3 server of its own."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    run = Engine(tmp_path / "run", {}, environment | {"PYTHONPATH": str(ROOT)}, {"storage": None, "strategy": "p -> w"})
    yield run
    for process in run.processes():
        process.kill()


@contextmanager
def ui(engine: Engine) -> Iterator[str]:
    """The command, until Ctrl-C; its address."""
    argv = [sys.executable, "-m", "tandem_operator.cli.main", "ui", str(engine.workdir)]
    process = subprocess.Popen(argv, cwd=ROOT, env=engine.environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        printed = "".join(process.stdout.readline() for _ in range(2))
        found = re.search(r"http://127\.0\.0\.1:\d+/\?token=\S{40,}", printed)
        assert found is not None, printed
        yield found[0]
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


def test_a_run_is_followed_to_its_report_and_can_be_read_afterwards(browser: Browser, engine: Engine) -> None:
    driver = engine.start("--latency", "0.02")
    try:
        engine.wait_for("the status", lambda: (engine.workdir / "status.yaml").exists())
        with ui(engine) as address, opened(browser) as watched:
            page = watched.page
            page.goto(address)
            page.get_by_text("Live", exact=True).wait_for()
            # Nothing is loaded again from here on: the page follows by itself.
            page.get_by_role("cell", name="0 (baseline)").first.wait_for()
            page.get_by_role("cell", name=re.compile("vanilla@base")).wait_for()
            page.get_by_role("link", name="1 Search").wait_for()
            driver.communicate(timeout=240)
            assert driver.returncode == 0, engine.logs()
            page.get_by_role("link", name="Read the report").wait_for()
            assert page.get_by_text("Completed").first.is_visible()
            assert watched.complaints == []
    finally:
        engine.kill(driver) if driver.poll() is None else None
    assert engine.processes() == []

    # The run's S3 server is gone: what pages need is copied once, and nothing is left running for it.
    with ui(engine) as address, opened(browser) as watched:
        page, root = watched.page, address.partition("/?")[0]
        page.goto(address)
        page.get_by_role("link", name="1 Search").click()
        page.get_by_role("link", name=re.compile("Trial 1$")).click()
        page.get_by_role("heading", name=re.compile("Predictor")).wait_for()
        page.goto(f"{root}/steps/2/traces/examples")
        page.get_by_text("60 of 60 runs").wait_for()
        page.locator("td a").first.click()
        assert page.locator("#call-1 pre").count() >= 2
        assert violations(page) == []
        page.goto(f"{root}/logs")
        assert page.locator("td a").count() > 5
        assert engine.processes() == []
        # Whoever looks is in nobody's way.
        assert "writes=0" in engine.drive()
        page.goto(f"{root}/report")
        page.get_by_role("heading", name="Scores of all candidates").wait_for()
        assert watched.complaints == []
