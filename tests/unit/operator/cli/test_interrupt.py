"""Ctrl-C stops a run in good order, twice kills, and the same command goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.operator.local.children import WORKER, living, nothing_left, python, until, write_manifest

from tandem_operator.cli.loop import Interrupt

#: Waits in the `optimize` stage until it is told to stop; everything else is done at once.
PATIENT = WORKER.replace(
    "result = {}",
    """result = {}
import signal, sys
def stop(*_):
    open(os.environ["TANDEM_WORKDIR"] + ".stopped", "a").write("stopped")
    if not os.path.exists(os.environ["TANDEM_WORKDIR"] + ".stubborn"):
        sys.exit(143)
if request["stage"] == "optimize" and not os.path.exists(os.environ["TANDEM_WORKDIR"] + ".go"):
    signal.signal(signal.SIGTERM, stop)
    open(os.environ["TANDEM_WORKDIR"] + ".waiting", "w").close()
    while True:
        signal.pause()
""",
)


class Engine:
    """`tandem run` in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workdir = folder / "runs" / "small"
        self.manifest = write_manifest(folder)

    def start(self) -> subprocess.Popen[str]:
        script = f"""
import sys
from pathlib import Path
from tandem_operator.cli.run import run_local
from tandem_operator.platforms.local.commands import Commands
from tests.unit.operator.local.children import scripted_server
commands = Commands(worker={python(PATIENT)!r}, server=scripted_server)
sys.exit(run_local(Path("run.yaml"), None, None, commands))
"""
        environment = {**os.environ, "AWS_ACCESS_KEY_ID": "key", "AWS_SECRET_ACCESS_KEY": "secret"}
        environment["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[4]), *sys.path])
        command = [sys.executable, "-c", script]
        return subprocess.Popen(command, cwd=self.folder, env=environment, stdout=subprocess.PIPE, text=True)

    def mark(self, name: str) -> Path:
        return self.workdir.with_name(f"small.{name}")

    def go_on(self) -> str:
        """Run to the end; what it printed."""
        self.mark("go").touch()
        engine = self.start()
        out, _ = engine.communicate(timeout=60)
        assert engine.returncode == 0, out
        return out

    def starts(self) -> list[str]:
        return self.mark("starts").read_text().splitlines()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = Engine(tmp_path)
    with nothing_left(engine.workdir):
        yield engine


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_stops_its_children_says_how_to_go_on_and_does(engine: Engine, number: int) -> None:
    process = engine.start()
    until(lambda: engine.mark("waiting").exists(), 30)
    process.send_signal(number)
    out, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert out.endswith("stopped; to go on: tandem run -f run.yaml --local\n")
    assert engine.mark("stopped").exists()
    assert living(engine.workdir) == []
    out = engine.go_on()
    assert "going on with step 1 (p), optimize" in out
    assert engine.starts() == [
        "baseline check 1", "baseline evaluate 1", "p optimize 1", "p optimize 1", "final evaluate 1"
    ]  # fmt: skip


def test_a_second_interrupt_does_not_wait_for_a_stubborn_worker(engine: Engine) -> None:
    engine.workdir.mkdir(parents=True)
    engine.mark("stubborn").touch()
    process = engine.start()
    until(lambda: engine.mark("waiting").exists(), 30)
    process.send_signal(signal.SIGINT)
    until(lambda: engine.mark("stopped").exists())
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130
    assert living(engine.workdir) == []


def test_a_killed_engine_is_cleaned_up_after_and_gone_on_from(engine: Engine) -> None:
    process = engine.start()
    until(lambda: engine.mark("waiting").exists(), 30)
    process.kill()
    process.communicate()
    engine.go_on()
    assert engine.starts().count("baseline evaluate 1") == 1


def test_a_hang_up_that_is_ignored_stays_so() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        interrupt = Interrupt()
        with interrupt.listening():
            os.kill(os.getpid(), signal.SIGHUP)
            assert not interrupt.is_asked
            os.kill(os.getpid(), signal.SIGTERM)
            assert interrupt.is_asked
            assert not interrupt.is_impatient
    finally:
        signal.signal(signal.SIGHUP, before)
