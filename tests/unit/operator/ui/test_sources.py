"""Where a run is read from: only what belongs to it, and what cannot be had is told with its fix."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.made_up_run import made_up
from tests.unit.operator.cli.cluster_case import at_stage, manifest, tandem, with_status
from tests.unit.operator.cli.conftest import cluster, no_cluster  # noqa: F401 (fixtures)
from tests.unit.operator.cli.fake_cluster import FakeCluster
from tests.unit.operator.cli.test_cluster_logs import pod, printed

from tandem_api.errors import ConfigurationError, TandemError
from tandem_operator.cli.cluster.access import Access
from tandem_operator.platforms.local.workdir import Workdir
from tandem_operator.ui import sources
from tandem_operator.ui.command import find
from tandem_operator.ui.mirror import Mirror
from tandem_operator.ui.model import Live
from tandem_operator.ui.sources import MAX_FETCHED_BYTES, MAX_LOG_BYTES, MAX_LOG_LINES, Folder, layout_of


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A run's folder without objects."""
    path = tmp_path / "run"
    (path / "logs").mkdir(parents=True)
    (path / "status.yaml").write_text(yaml.safe_dump(made_up().run.to_json()))
    return path


def test_only_logs_of_the_folder_are_shown(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "secret.log").write_text("secret")
    (folder / "logs" / "s3.log").write_text("well")
    (folder / "logs" / "link.log").symlink_to(tmp_path / "secret.log")
    source = Folder(Workdir(folder))
    assert [log.name for log in source.logs()] == ["s3"]
    assert source.log("s3") == "well"
    for name in ("link", "../../secret", "/etc/passwd", "..", "", "s3.log"):
        assert source.log(name) is None


def test_of_a_long_log_the_end_is_shown(folder: Path) -> None:
    (folder / "logs" / "long.log").write_bytes(b"\xff line\n" * 500_000 + b"the last")
    lines = (Folder(Workdir(folder)).log("long") or "").splitlines()
    assert len(lines) == MAX_LOG_LINES and lines[-1] == "the last"


def test_damaged_events_are_left_out(folder: Path) -> None:
    event = {"time": "t", "type": "Normal", "reason": "StepStarted", "message": "m"}
    (folder / "events.jsonl").write_bytes(json.dumps(event).encode() + b'\n{"time": \n[]\n\xff\n{}\n')
    assert [event.reason for event in Folder(Workdir(folder)).events()] == ["StepStarted", ""]


def test_a_run_without_objects_is_shown_and_nothing_is_written(folder: Path) -> None:
    before = sorted(folder.rglob("*"))
    assert Live(Folder(Workdir(folder))).seen().problems == ()
    assert sorted(folder.rglob("*")) == before


def test_objects_that_cannot_be_had_are_told_and_the_status_is_shown(folder: Path) -> None:
    s3 = folder / "s3"
    s3.mkdir()
    owner = Workdir(folder)
    owner.lock()
    try:
        seen = Live(Folder(Workdir(folder))).seen()
    finally:
        owner.unlock()
    assert "just being started or ended" in seen.problems[0] and seen.run.metadata.name == "reviews"


@pytest.mark.parametrize("content", ["", "{", "{}", '{"s3": "x"}'])
def test_a_damaged_note_of_the_ports_is_no_error(folder: Path, content: str) -> None:
    (folder / "s3").mkdir()
    (folder / "s3" / "ports.json").write_text(content)
    (folder / "s3" / "identity.json").write_text("[]")
    source = Folder(Workdir(folder))
    assert source._sync_running(Mirror(layout_of(source.read()))) is False


def test_a_name_that_is_nowhere_is_told_with_both_places(tmp_path: Path, no_cluster: None) -> None:  # noqa: F811
    with pytest.raises(TandemError, match=r"(?s)there is no run 'nothing'.*On a cluster: there is no kubeconfig"):
        find("nothing", Access(), None)
    assert tandem("ui", "nothing").exit_code == 2


@pytest.fixture
def on_cluster(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> FakeCluster:  # noqa: F811
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("HOME", "/nowhere")
    cluster.put(with_status(manifest(), at_stage("optimize")))
    cluster.pods = [pod("small-serving-x"), pod("small-1p-optimize-1-x", 1, task="small-1p-optimize-1")]
    cluster.logs = {"small-1p-optimize-1-x": [iter(printed("scoring")) for _ in range(2)]}
    return cluster


def test_a_run_on_a_cluster_is_shown_with_its_pods_logs(on_cluster: FakeCluster) -> None:
    source = find("small", Access(), None)
    assert source.read().status.phase == "Working"
    assert [log.name for log in source.logs()] == ["small-1p-optimize-1-x", "small-serving-x"]
    assert "scoring" in (source.log("small-1p-optimize-1-x") or "")
    assert source.log("small-other") is None
    assert {method for method, *_ in on_cluster.requests} == {"GET"}


def test_of_a_pods_log_only_the_end_is_fetched(on_cluster: FakeCluster) -> None:
    on_cluster.logs["small-1p-optimize-1-x"] = [iter(printed("x" * MAX_LOG_BYTES, "the last"))]
    text = find("small", Access(), None).log("small-1p-optimize-1-x") or ""
    assert len(text) == MAX_LOG_BYTES and text.endswith("the last")
    (query,) = [query for path, query, _ in on_cluster.asked("GET") if path.endswith("/log")]
    assert (query["tailLines"], query["limitBytes"]) == (str(MAX_LOG_LINES), str(MAX_FETCHED_BYTES))


def test_a_pod_that_says_nothing_does_not_keep_the_pages_waiting(
    on_cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "LOG_QUIET_SECONDS", 0.2)
    ended = threading.Event()

    def silent() -> Iterator[str]:
        yield from printed("scoring")
        ended.wait(60)

    on_cluster.logs["small-1p-optimize-1-x"] = [silent()]
    try:
        with pytest.raises(TandemError):
            find("small", Access(), None).log("small-1p-optimize-1-x")
        assert not ended.is_set()
    finally:
        ended.set()


def test_without_a_key_to_the_bucket_it_says_what_is_missing(on_cluster: FakeCluster) -> None:
    seen = Live(find("small", Access(), "http://127.0.0.1:9")).seen()
    assert "no credentials" in seen.problems[0] and "--endpoint" in seen.problems[0]
    assert seen.run.metadata.name == "small"


def test_a_run_that_is_deleted_meanwhile_is_told(on_cluster: FakeCluster) -> None:
    live = Live(find("small", Access(), None))
    on_cluster.remove("small")
    seen: Any = live.seen()
    assert "as it was" in seen.problems[0] and seen.run.status.phase == "Working"


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        find(str(tmp_path), Access(), None)
