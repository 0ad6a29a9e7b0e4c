"""Children end with their run: stopped, killed with the engine, or found by the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from tests.unit.operator.local.children import living, python, until

from tandem_api.errors import ConfigurationError
from tandem_operator.platforms.local.processes import Child, Launch, kill_leftovers, spawn, wait_for_exit

WAIT = "import signal; print('up', flush=True); signal.pause()"
STUBBORN = "import signal; signal.signal(15, signal.SIG_IGN); print('up', flush=True)\nwhile True: signal.pause()"
#: Starts a stubborn process in a session of its own, and waits.
PARENT_OF_STUBBORN = f"""
import signal, subprocess, sys
subprocess.Popen([sys.executable, "-S", "-c", {STUBBORN!r}], start_new_session=True)
print("parent", flush=True)
signal.pause()
"""


def launch(folder: Path, script: str, name: str = "child") -> Launch:
    return Launch(name, python(script), dict(os.environ), folder, folder / "logs" / f"{name}.log")


def start(folder: Path, script: str, name: str = "child", *, ups: int = 1) -> Child:
    """Start it and wait until it and its own children have said that they are up."""
    child = spawn(launch(folder, script, name), folder)
    until(lambda: child.log.read_text().count("\nup") >= ups)
    return child


def test_a_stopped_child_may_finish_what_it_does(tmp_path: Path) -> None:
    script = "import signal, sys\nsignal.signal(15, lambda *_: sys.exit(143))\nprint('up', flush=True)\nsignal.pause()"
    child = start(tmp_path, script)
    child.stop(grace_seconds=10)
    assert child.exit_code == 143


def test_a_child_that_does_not_stop_is_killed_after_its_grace(tmp_path: Path) -> None:
    child = start(tmp_path, STUBBORN)
    child.stop(grace_seconds=0.1)
    assert child.exit_code == -signal.SIGKILL


def test_hurry_ends_the_grace(tmp_path: Path) -> None:
    child = start(tmp_path, STUBBORN)
    begun = time.monotonic()
    child.stop(grace_seconds=60, hurry=lambda: True)
    assert time.monotonic() - begun < 60
    assert child.exit_code == -signal.SIGKILL


def test_stopping_a_child_ends_its_children_in_other_sessions_too(tmp_path: Path) -> None:
    child = start(tmp_path, PARENT_OF_STUBBORN)
    assert len(living(tmp_path)) == 2
    child.stop(grace_seconds=10)
    assert living(tmp_path) == []


def test_a_child_that_renames_itself_is_still_known_by_its_environment(tmp_path: Path) -> None:
    pytest.importorskip("setproctitle", reason="comes with vllm: make environment")
    rename = "import setproctitle, signal; setproctitle.setproctitle('VLLM::EngineCore')"
    script = f"{rename}; print('up', flush=True); signal.pause()"
    argv = (sys.executable, "-c", script)
    child = spawn(Launch("child", argv, dict(os.environ), tmp_path, tmp_path / "child.log"), tmp_path)
    until(lambda: "\nup" in child.log.read_text())
    assert [process.pid for process in living(tmp_path)] == [child.pid]
    child.stop(grace_seconds=10)


@pytest.fixture
def killed_engine(tmp_path: Path) -> tuple[int, int]:
    """The process ids of a child and its stubborn grandchild whose engine has been killed by SIGKILL."""
    script = f"""
import os, signal
from pathlib import Path
from tandem_operator.platforms.local.processes import Launch, spawn
folder = Path({str(tmp_path)!r})
argv = {python(PARENT_OF_STUBBORN)!r}
print(spawn(Launch("child", argv, dict(os.environ), folder, folder / "child.log"), folder).pid, flush=True)
signal.pause()
"""
    engine = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert engine.stdout is not None
    child = int(engine.stdout.readline())
    until(lambda: "\nup" in (tmp_path / "child.log").read_text())
    grandchild = next(process.pid for process in living(tmp_path) if process.pid != child)
    engine.kill()
    engine.communicate()
    return child, grandchild


def test_a_child_dies_with_its_engine(killed_engine: tuple[int, int]) -> None:
    child, grandchild = killed_engine
    until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE)
    os.kill(grandchild, signal.SIGKILL)


def test_what_a_killed_engine_left_behind_is_gone_after_the_next_start(
    tmp_path: Path, killed_engine: tuple[int, int]
) -> None:
    assert kill_leftovers(tmp_path, grace_seconds=0.1) >= 1
    assert living(tmp_path) == []


def test_leftovers_of_other_folders_are_left_alone(tmp_path: Path) -> None:
    other = start(tmp_path / "other", WAIT) if (tmp_path / "other").mkdir() is None else None
    assert other is not None
    assert kill_leftovers(tmp_path) == 0
    assert other.exit_code is None
    other.stop(grace_seconds=10)


def test_a_waiting_engine_wakes_at_once_when_a_child_ends(tmp_path: Path) -> None:
    child = start(tmp_path, WAIT)
    begun = time.monotonic()
    child.terminate()
    wait_for_exit([child], timeout_seconds=60)
    assert time.monotonic() - begun < 60
    assert child.exit_code == -signal.SIGTERM
    # One that has been seen to does not wake anybody again.
    wait_for_exit([child], timeout_seconds=0.01)


def test_the_tail_of_a_log_is_of_this_start_only_and_shows_the_last_state_of_a_progress_bar(tmp_path: Path) -> None:
    for text in ("first", "second"):
        child = spawn(launch(tmp_path, f"print('{text}\\n 10%\\r 90%\\r100%\\n\\nlast')"), tmp_path)
        wait_for_exit([child], timeout_seconds=30)
        assert child.tail() == f"{text}\n100%\nlast"
    assert child.log.read_text().count("=== ") == 2


def test_the_cause_of_a_servers_death_is_found_far_above_the_end_of_its_log(tmp_path: Path) -> None:
    script = """
print("(APIServer pid=1) WARNING: this can cause errors like `OSError: [Errno 24] Too many open files`")
for _ in range(2):
    print("(Worker pid=2) ERROR 11-21 05:13:19 [executor.py:10] RuntimeError: CPU Generator does not use offset")
print("(APIServer pid=1) ERROR vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.")
print("shutting down\\n" * 400)
"""
    child = spawn(launch(tmp_path, script), tmp_path)
    wait_for_exit([child], timeout_seconds=30)
    assert child.errors().splitlines() == [
        "RuntimeError: CPU Generator does not use offset",
        "vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue.",
    ]
    assert "Error" not in child.tail()


def test_a_program_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    broken = Launch("server", ("/nowhere/server",), {}, tmp_path, tmp_path / "server.log")
    with pytest.raises(ConfigurationError, match="server cannot be started: /nowhere/server"):
        spawn(broken, tmp_path)
