"""The run's folder: one engine at a time, and a resource that is always whole."""

from __future__ import annotations

import errno
import json
import os
import stat
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import NoReturn

import pytest
import yaml
from tests.unit.operator.local.children import small_run

from tandem_api.errors import ConfigurationError, StorageRefusedError
from tandem_api.v1alpha1 import Status
from tandem_api.v1alpha1.status import ServingStatus
from tandem_operator.actions import EmitEvent
from tandem_operator.platforms.local.workdir import Workdir, write_atomically


def test_the_stored_resource_reads_back_as_it_was_written(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path / "run")
    assert workdir.read_run() is None
    status = Status(phase="Checking", started=datetime(2026, 11, 21, 4, 5, 6, tzinfo=UTC))
    run = small_run(tmp_path).model_copy(update={"status": status})
    workdir.write_run(run)
    assert workdir.read_run() == run
    document = yaml.safe_load(workdir.status.read_text())
    assert list(document) == ["apiVersion", "kind", "metadata", "spec", "status"]


def test_a_new_status_and_a_new_spec_both_reach_the_file(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    run = small_run(tmp_path)
    for changed in (
        run,
        run.model_copy(update={"status": Status(serving=ServingStatus(name="base"))}),
        run.model_copy(update={"spec": run.spec.model_copy(update={"suspend": True})}),
    ):
        workdir.write_run(changed)
        assert Workdir(tmp_path).read_run() == changed


def test_a_write_that_dies_half_way_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "status.yaml"
    write_atomically(path, b"old")

    def die(fd: int) -> NoReturn:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", die)
    with pytest.raises(KeyboardInterrupt):
        write_atomically(path, b"new, but only half")
    assert path.read_bytes() == b"old"


def test_a_full_disk_is_told_with_the_file_and_the_way_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> NoReturn:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageRefusedError, match=r"status\.yaml cannot be written: no space left.*same command again"):
        write_atomically(tmp_path / "status.yaml", b"text")


def test_a_secret_file_is_readable_by_its_owner_only(tmp_path: Path) -> None:
    write_atomically(tmp_path / "key", b"secret", mode=0o600)
    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == 0o600


def test_a_damaged_resource_is_named_and_not_overwritten(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    for text in ("{", "apiVersion: other/v1"):
        workdir.status.write_text(text)
        with pytest.raises(ConfigurationError, match=r"(?s)status\.yaml is not an OptimizationRun.*--workdir"):
            workdir.read_run()


def test_two_engines_never_share_a_folder(tmp_path: Path) -> None:
    script = f"""
import sys
from pathlib import Path
from tandem_operator.platforms.local.workdir import Workdir
workdir = Workdir(Path({str(tmp_path)!r}))
workdir.lock()
print("locked", flush=True)
sys.stdin.read()
"""
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "locked\n"
        workdir = Workdir(tmp_path)
        with pytest.raises(ConfigurationError, match=rf"in use by another `tandem run` \(process {other.pid}\)"):
            workdir.lock()
        other.kill()
        other.wait()
        # The kernel gives a dead engine's lock back.
        workdir.lock()
        workdir.unlock()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"file/run cannot be written: Not a directory"):
        Workdir(tmp_path / "file" / "run").lock()


def test_events_are_one_json_object_a_line(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path)
    for message in ("first", "second\nline"):
        workdir.add_event(EmitEvent("Warning", "AttemptFailed", message))
    events = [json.loads(line) for line in workdir.events.read_text().splitlines()]
    assert [(event["reason"], event["message"]) for event in events] == [
        ("AttemptFailed", "first"),
        ("AttemptFailed", "second\nline"),
    ]
