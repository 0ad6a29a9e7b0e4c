"""`tandem report` of a cluster's run: fetched from the bucket with the user's own credentials, or told why not."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import pytest
from tests.unit.operator.cli.cluster_case import at_stage, ended, manifest, tandem, with_status
from tests.unit.operator.cli.fake_cluster import FakeCluster
from tests.unit.operator.local.children import small_run

from tandem_operator.platforms.local.workdir import Workdir

PAGE = "<html>the report\N{HEAVY CHECK MARK}</html>".encode()
KEY = "/bucket/team/default/small/uid-small/result/report.html"


class Bucket(BaseHTTPRequestHandler):
    """Holds one report, for one user."""

    objects: dict[str, bytes]

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        found = self.objects.get(self.path)
        code, error = (200, "") if found is not None else (404, "NoSuchKey")
        if "ada/" not in self.headers.get("Authorization", ""):
            found, code, error = None, 403, "InvalidAccessKeyId"
        data = found if found is not None else f"<Error><Code>{error}</Code></Error>".encode()
        self.send_response(code)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[str]:
    """Its address. The user's own credentials fit."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    for name, value in (("AWS_ACCESS_KEY_ID", "ada"), ("AWS_SECRET_ACCESS_KEY", "secret"), ("HOME", str(tmp_path))):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    # It remembers the first account that it found.
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("OneBucket", (Bucket,), {"objects": {KEY: PAGE}}))
    threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def finished(endpoint: str) -> dict[str, Any]:
    storage = {"s3": {"bucket": "bucket", "prefix": "team", "endpoint": endpoint}}
    return with_status(manifest(storage=storage), ended())


def test_the_report_is_written_here_and_its_path_is_printed(cluster: FakeCluster, store: str, tmp_path: Path) -> None:
    cluster.put(finished(store))
    assert tandem("report", "small").stdout == "small-report.html\n"
    assert Path("small-report.html").read_bytes() == PAGE
    (tmp_path / "folder").mkdir()
    assert tandem("report", "small", "--out", "folder").stdout == "folder/small-report.html\n"
    assert tandem("report", "small", "--out", "folder/it.html").stdout == "folder/it.html\n"
    assert {path.name for path in Path("folder").iterdir()} == {"it.html", "small-report.html"}
    assert tandem("report", "small", "--out", "-").stdout_bytes == PAGE


def test_the_store_may_have_another_address_from_here(cluster: FakeCluster, store: str) -> None:
    cluster.put(finished("http://seaweedfs.of-the-cluster.invalid:8333"))
    assert tandem("report", "small", "--endpoint", store).exit_code == 0
    assert Path("small-report.html").read_bytes() == PAGE


def test_credentials_that_do_not_fit_are_told_to_be_the_users(
    cluster: FakeCluster, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.put(finished(store))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "eve")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    result = tandem("report", "small")
    assert result.exit_code == 1
    assert "the access key is unknown to the server" in result.stderr
    assert (
        "with your own AWS credentials (AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)" in result.stderr
    )
    assert "forward a port of it and give --endpoint URL" in result.stderr
    assert not Path("small-report.html").exists()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    assert "no credentials; set AWS_ACCESS_KEY_ID" in tandem("report", "small").stderr


def test_a_profile_that_is_not_there_is_told(cluster: FakeCluster, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.put(finished(store))
    monkeypatch.setenv("AWS_PROFILE", "typo")
    result = tandem("report", "small")
    assert result.exit_code == 2
    assert f"cannot use the bucket bucket at {store}: The config profile (typo) could not" in result.stderr
    assert "your own AWS credentials" in result.stderr


def test_a_report_that_was_removed_is_missed(cluster: FakeCluster, store: str) -> None:
    run = finished(store)
    run["status"]["result"]["uri"] = "s3://bucket/team/default/small/other/result/"
    cluster.put(run)
    result = tandem("report", "small")
    assert result.exit_code == 1
    assert "s3://bucket/team/default/small/other/result/report.html does not exist: it was removed" in result.stderr


def test_a_run_that_goes_on_or_has_failed_has_none(cluster: FakeCluster) -> None:
    cluster.put(with_status(manifest(), at_stage("optimize")))
    result = tandem("report", "small")
    assert result.exit_code == 1
    assert "small has no report yet: the run is at Working" in result.stderr
    assert "tandem watch small waits for it" in result.stderr
    cluster.put(with_status(manifest(), {**ended("False", "TooManyErrors"), "result": None}))
    result = tandem("report", "small")
    assert result.exit_code == 1
    assert "small has no report: the run failed: TooManyErrors: that is why" in result.stderr


def test_a_folder_that_is_not_there_is_told(cluster: FakeCluster, store: str) -> None:
    cluster.put(finished(store))
    result = tandem("report", "small", "--out", "nowhere/it.html")
    assert result.exit_code == 2
    assert "--out nowhere/it.html: there is no folder nowhere" in result.stderr


def test_a_local_run_comes_first_and_can_be_copied(cluster: FakeCluster, store: str, tmp_path: Path) -> None:
    cluster.put(finished(store))
    workdir = Workdir(tmp_path / "runs/small")
    workdir.path.mkdir(parents=True)
    workdir.write_run(small_run(tmp_path, strategy="p -> p"))
    assert "result/report.html does not exist: the run is at Pending" in tandem("report", "small").stderr
    workdir.result.mkdir()
    (workdir.result / "report.html").write_text("local")
    assert tandem("report", "small").stdout == f"{workdir.result / 'report.html'}\n"
    assert tandem("report", "small", "--out", "copy.html").stdout == "copy.html\n"
    assert Path("copy.html").read_text() == "local"
    assert tandem("report", "small", "-n", "default").stdout == "small-report.html\n"
