"""The progress and its file: throttled, atomic, and honest about the time that is left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tandem_api.contract import Progress
from tandem_api.v1alpha1.status import Usage
from tandem_trainer.progress import ProgressReporter


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "progress.json"


def read(path: Path) -> Any:
    return json.loads(path.read_text())


def test_reports_within_half_a_second_are_held_back_and_flushed(path: Path, clock: Clock) -> None:
    progress = ProgressReporter(path, clock)
    progress.report(1, 10, message="first")
    clock.now += 0.4
    progress.report(2, 10)
    assert read(path)["message"] == "first"
    progress.flush()
    assert read(path)["done"] == 2
    clock.now += 0.5
    progress.report(3, 10, usage=Usage(calls=3, prompt_tokens=9), score=0.5, loss=1.25)
    written = Progress.model_validate_json(path.read_text())
    assert written.usage == Usage(calls=3, prompt_tokens=9)
    assert (written.score, written.loss) == (0.5, 1.25)


def test_the_end_is_always_written(path: Path, clock: Clock) -> None:
    progress = ProgressReporter(path, clock)
    progress.report(9, 10)
    progress.report(10, 10)
    assert read(path)["done"] == 10


def test_time_left_leaves_out_what_an_earlier_attempt_had_done(path: Path, clock: Clock) -> None:
    progress = ProgressReporter(path, clock)
    progress.report(50, 100)
    assert "eta_seconds" not in read(path)
    clock.now += 10
    progress.report(60, 100)
    assert read(path)["eta_seconds"] == 40.0


def test_a_count_that_falls_starts_the_clock_again(path: Path, clock: Clock) -> None:
    progress = ProgressReporter(path, clock)
    progress.report(90, 100)
    clock.now += 1000
    progress.report(0, 10)
    clock.now += 2
    progress.report(1, 10)
    assert read(path)["eta_seconds"] == 18.0


def test_the_last_report_is_always_at_hand(path: Path, clock: Clock) -> None:
    progress = ProgressReporter(path, clock)
    assert progress.latest == Progress()
    progress.report(1, 10)
    progress.report(2, 10, message="held back")
    assert (progress.latest.message, read(path)["done"]) == ("held back", 1)


def test_unwritable_file_does_not_end_the_work(tmp_path: Path, clock: Clock) -> None:
    ProgressReporter(tmp_path / "missing" / "progress.json", clock).report(1, 1)
    assert list(tmp_path.iterdir()) == []


def test_without_a_file_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TANDEM_PROGRESS_FILE", raising=False)
    progress = ProgressReporter.from_environment()
    progress.report(1, 1)
    progress.flush()
    assert list(tmp_path.iterdir()) == []
