"""Stage attempts: started once, watched, stopped, and remembered after the engine's death."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from tests.unit.operator.local.children import living, nothing_left, python, small_run, until

from tandem_api.contract import StageRequest, StorageRef
from tandem_operator.platforms.local import tasks as module
from tandem_operator.platforms.local.processes import wait_for_exit
from tandem_operator.platforms.local.tasks import Tasks
from tandem_operator.platforms.local.workdir import Workdir
from tandem_operator.snapshot import TaskObservation

SAY = "import os, pathlib; pathlib.Path(os.environ['TANDEM_TERMINATION_FILE']).write_text('{}')"
WAIT = "import signal; print('up', flush=True); signal.pause()"
CHECKPOINT = "import signal, sys\nsignal.signal(15, lambda *_: sys.exit(143))\nprint('up', flush=True)\nsignal.pause()"
STUBBORN = "import signal\nsignal.signal(15, signal.SIG_IGN)\nprint('up', flush=True)\nwhile True: signal.pause()"
NAME = "small-0b-check-1"


def request(folder: Path, uid: str = "uid") -> StageRequest:
    return StageRequest(
        namespace="default",
        name="small",
        uid=uid,
        index=0,
        kind="baseline",
        stage="check",
        attempt=1,
        spec=small_run(folder, stageTimeoutSeconds=60).spec,
        storage=StorageRef(bucket="bucket"),
    )


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    with nothing_left(tmp_path):
        yield


def begin(folder: Path, script: str, *, ups: int = 1) -> Tasks:
    """Start an attempt of that script and wait until it has said that it is up."""
    tasks = Tasks(Workdir(folder), python(script))
    tasks.start(NAME, request(folder), dict(os.environ))
    until(lambda: Workdir(folder).log(NAME).read_text().count("\nup") >= ups)
    return tasks


def end_of(tasks: Tasks) -> TaskObservation:
    """Wait for the attempt's end."""
    until(lambda: tasks.observe()[NAME].state != "running")
    return tasks.observe()[NAME]


def test_an_attempt_that_ends_well_tells_its_last_word(tmp_path: Path) -> None:
    tasks = begin(tmp_path, SAY, ups=0)
    assert end_of(tasks) == TaskObservation("succeeded", exit_code=0, termination="{}")


def test_an_attempt_runs_once_however_often_it_is_asked_for(tmp_path: Path) -> None:
    tasks = begin(tmp_path, SAY, ups=0)
    tasks.start(NAME, request(tmp_path), dict(os.environ))
    end_of(tasks)
    tasks.start(NAME, request(tmp_path), dict(os.environ))
    assert tasks.children == ()
    assert Workdir(tmp_path).log(NAME).read_text().count("=== ") == 1


def test_a_failed_attempt_shows_its_exit_code_and_the_end_of_its_log(tmp_path: Path) -> None:
    tasks = begin(tmp_path, "import sys; print('no such module'); sys.exit(42)", ups=0)
    assert end_of(tasks) == TaskObservation("failed", exit_code=42, log_tail="no such module")


def test_progress_is_read_while_it_runs(tmp_path: Path) -> None:
    report = """
import os, pathlib, signal
path = pathlib.Path(os.environ["TANDEM_PROGRESS_FILE"])
path.write_text('{"done": 3, "total": 12, "message": "candidate 1 of 4"}')
print("up", flush=True)
signal.pause()
"""
    tasks = begin(tmp_path, report)
    for _ in range(2):
        progress = tasks.observe()[NAME].progress
        assert progress is not None
        assert (progress.done, progress.total, progress.message) == (3, 12, "candidate 1 of 4")
    tasks.close()


def test_a_stopped_attempt_may_checkpoint(tmp_path: Path) -> None:
    tasks = begin(tmp_path, CHECKPOINT)
    tasks.stop(NAME)
    tasks.stop(NAME)
    assert end_of(tasks).exit_code == 143


def test_an_attempt_that_does_not_stop_is_killed_after_its_grace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.1)
    tasks = begin(tmp_path, STUBBORN)
    tasks.stop(NAME)
    end = end_of(tasks)
    assert (end.exit_code, end.reason) == (137, "KilledAfterGrace")


def test_an_attempt_that_takes_too_long_has_failed_even_if_it_stops_in_good_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tasks = begin(tmp_path, CHECKPOINT)
    monkeypatch.setattr(module.time, "monotonic", lambda clock=module.time.monotonic: clock() + 61)
    end = end_of(tasks)
    assert (end.state, end.exit_code, end.reason) == ("failed", None, "DeadlineExceeded")
    assert "spec.stageTimeoutSeconds" in end.log_tail


@pytest.mark.parametrize(("kills", "want"), [((3, 4), "OOMKilled"), ((3, 3), "Killed")])
def test_a_killed_worker_was_out_of_memory_if_the_kernel_has_killed_for_memory_since(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kills: tuple[int, int], want: str
) -> None:
    counts = iter(kills)
    monkeypatch.setattr(module, "oom_kills", lambda: next(counts))
    tasks = begin(tmp_path, WAIT)
    os.kill(tasks.children[0].pid, signal.SIGKILL)
    end = end_of(tasks)
    assert (end.state, end.exit_code, end.reason) == ("failed", 137, want)


def test_what_an_ended_attempt_left_running_is_killed(tmp_path: Path) -> None:
    script = "import subprocess, sys; subprocess.Popen([sys.executable, '-S', '-c', 'import signal; signal.pause()'])"
    end_of(begin(tmp_path, script, ups=0))
    assert living(tmp_path) == []


def test_an_end_that_was_recorded_is_known_after_a_crash_of_the_engine(tmp_path: Path) -> None:
    before = end_of(begin(tmp_path, SAY, ups=0))
    after = Tasks(Workdir(tmp_path), python(WAIT))
    after.load("uid")
    assert after.observe() == {NAME: before}


def test_an_attempt_without_a_recorded_end_is_absent_after_a_crash_and_starts_anew(tmp_path: Path) -> None:
    crashed = begin(tmp_path, WAIT)
    psutil.Process(crashed.children[0].pid).kill()
    wait_for_exit(crashed.children, 10)
    after = Tasks(Workdir(tmp_path), python(SAY))
    after.load("uid")
    assert after.observe() == {}
    after.start(NAME, request(tmp_path), dict(os.environ))
    assert end_of(after).state == "succeeded"
    crashed.close()


def test_the_last_word_of_an_earlier_start_is_not_taken_for_this_ones(tmp_path: Path) -> None:
    folder = tmp_path / "tasks" / NAME
    folder.mkdir(parents=True)
    (folder / "termination.json").write_text('{"outcome": "done"}')
    assert end_of(begin(tmp_path, "raise SystemExit(1)", ups=0)).termination == ""


def test_attempts_of_another_run_in_the_same_folder_are_forgotten(tmp_path: Path) -> None:
    end_of(begin(tmp_path, SAY, ups=0))
    after = Tasks(Workdir(tmp_path), python(WAIT))
    after.load("another uid")
    assert after.observe() == {}


def test_attempts_that_end_because_the_engine_does_go_on_with_its_next_start(tmp_path: Path) -> None:
    begin(tmp_path, CHECKPOINT).close()
    after = Tasks(Workdir(tmp_path), python(WAIT))
    after.load("uid")
    assert after.observe() == {}


def test_an_attempt_that_finishes_while_the_engine_ends_is_not_repeated(tmp_path: Path) -> None:
    finishing = f"import signal, sys\ndef end(*_):\n    {SAY}\n    sys.exit(0)\nsignal.signal(15, end)\n"
    begin(tmp_path, finishing + "print('up', flush=True)\nsignal.pause()").close()
    after = Tasks(Workdir(tmp_path), python(WAIT))
    after.load("uid")
    assert after.observe()[NAME] == TaskObservation("succeeded", exit_code=0, termination="{}")


def test_a_second_interrupt_kills_at_once(tmp_path: Path) -> None:
    begin(tmp_path, STUBBORN).close(hurry=lambda: True)
    assert living(tmp_path) == []
