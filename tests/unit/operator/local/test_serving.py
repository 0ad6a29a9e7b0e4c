"""The model server: one at a time, ready when it lists the wanted name, and failed with the reason."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.operator.local.children import SERVER, living, nothing_left, python, scripted_server, small_run, until

from tandem_api.errors import ConfigurationError
from tandem_api.v1alpha1.status import Artifact
from tandem_operator.actions import EnsureServing
from tandem_operator.platforms.local import serving as module
from tandem_operator.platforms.local.commands import Commands, ServerLaunch, serving_argv
from tandem_operator.platforms.local.machine import free_port
from tandem_operator.platforms.local.serving import Serving
from tandem_operator.platforms.local.workdir import Workdir
from tandem_operator.snapshot import ServingObservation

ADAPTER = Artifact(uri="s3://tandem/adapter/", sha256="b" * 64)
BASE = EnsureServing("base", None, "base")
TUNED = EnsureServing("small-bbbb", ADAPTER, "merged")


class Fixture:
    """A `Serving` with a script in the server's place."""

    def __init__(self, folder: Path, script: str | None = None, port: int | None = None) -> None:
        server = scripted_server if script is None else lambda launch: python(script)
        self.workdir = Workdir(folder)
        self.spec = small_run(folder, serving={"startupTimeoutSeconds": 10}).spec
        self.serving = Serving(self.workdir, Commands(server=server), fixed_port=port)

    def ensure(self, wanted: EnsureServing) -> None:
        self.serving.ensure(wanted, self.spec, dict(os.environ))

    def seen(self) -> ServingObservation:
        seen = self.serving.observe()
        assert seen is not None
        return seen

    def settle(self) -> ServingObservation:
        """Wait until the server is ready or has failed."""
        until(lambda: self.seen().state != "starting")
        return self.seen()


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    with nothing_left(tmp_path):
        yield


def test_a_server_is_ready_once_it_lists_the_wanted_model(tmp_path: Path) -> None:
    fixture = Fixture(tmp_path)
    fixture.ensure(BASE)
    assert fixture.seen().state == "starting"
    seen = fixture.settle()
    assert (seen.name, seen.state) == ("base", "ready")
    assert seen.url.startswith("http://127.0.0.1:")
    assert fixture.serving.stop()
    assert fixture.serving.observe() is None
    assert not fixture.serving.stop()


def test_a_server_of_several_adapters_is_ready_once_it_lists_them_all(tmp_path: Path) -> None:
    listed, asked = tmp_path / "listed", tmp_path / "asked"
    listed.write_text("small-bbbb-0")
    names = f'open({str(asked)!r}, "a").write("x") and [{{"id": name}} for name in open(sys.argv[2]).read().split()]'
    server = SERVER.replace('[{"id": sys.argv[2]}]', names)
    fixture = Fixture(tmp_path)
    commands = Commands(server=lambda launch: python(server, str(launch.port), str(listed)))
    fixture.serving = Serving(fixture.workdir, commands, fixed_port=None)
    fixture.ensure(EnsureServing("small-bbbb", ADAPTER.model_copy(update={"adapters": 2}), "reload"))
    until(lambda: asked.exists() and len(asked.read_text()) > 3)
    assert fixture.seen().state == "starting"
    listed.write_text("small-bbbb-0 small-bbbb-1")
    assert fixture.settle().state == "ready"
    fixture.serving.stop()


def test_asking_again_for_what_is_served_changes_nothing(tmp_path: Path) -> None:
    fixture = Fixture(tmp_path)
    fixture.ensure(BASE)
    pid = fixture.serving.children[0].pid
    fixture.ensure(BASE)
    assert fixture.serving.children[0].pid == pid
    fixture.serving.stop()


def test_another_adapter_is_another_server_at_the_same_address(tmp_path: Path) -> None:
    fixture = Fixture(tmp_path)
    fixture.ensure(BASE)
    base = fixture.settle()
    fixture.ensure(TUNED)
    assert fixture.seen().name == "small-bbbb"
    assert len(living(fixture.workdir.path)) == 1
    assert fixture.settle().url == base.url
    fixture.serving.stop()


@pytest.mark.parametrize(("code", "permanent"), [(1, False), (42, True), (43, True)])
def test_a_server_that_ends_has_failed_with_the_end_of_its_log(tmp_path: Path, code: int, permanent: bool) -> None:
    fixture = Fixture(tmp_path, f"print('ValueError: no such model'); raise SystemExit({code})")
    fixture.ensure(BASE)
    seen = fixture.settle()
    assert (seen.state, seen.permanent) == ("failed", permanent)
    assert f"ended with exit code {code} before it was ready" in seen.message
    assert seen.message.endswith("ValueError: no such model")
    # Without a restart it stays so, with the same words.
    fixture.ensure(BASE)
    assert fixture.seen() == seen
    fixture.serving.stop()


def test_a_failed_server_is_started_anew_when_that_is_asked_for(tmp_path: Path) -> None:
    fixture = Fixture(tmp_path, "raise SystemExit(1)")
    fixture.ensure(BASE)
    fixture.settle()
    fixture.ensure(EnsureServing("base", None, "base", restart=1))
    fixture.settle()
    assert fixture.workdir.log("serving").read_text().count("=== ") == 2
    fixture.serving.stop()


def test_a_server_that_serves_another_model_never_becomes_ready(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fixture = Fixture(tmp_path)
    wrong = lambda launch: (*scripted_server(launch)[:-1], "another")  # noqa: E731
    fixture.serving = Serving(fixture.workdir, Commands(server=wrong), fixed_port=None)
    fixture.ensure(BASE)
    monkeypatch.setattr(module.time, "monotonic", lambda clock=module.time.monotonic: clock() + 11)
    seen = fixture.settle()
    assert seen.state == "failed"
    assert "not ready within 10 seconds (spec.serving.startupTimeoutSeconds)" in seen.message
    fixture.serving.stop()


def test_a_server_that_stops_answering_is_given_up_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "UNHEALTHY_SECONDS", 0.05)
    monkeypatch.setattr(module, "_READY_INTERVAL", 0.01)
    once = """
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        ready = self.path == "/v1/models"
        body = b'{"data": [{"id": "base"}]}'
        self.send_response(200 if ready else 503)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
    fixture = Fixture(tmp_path)
    server = lambda launch: python(once, str(launch.port))  # noqa: E731
    fixture.serving = Serving(fixture.workdir, Commands(server=server), fixed_port=None)
    fixture.ensure(BASE)
    until(lambda: fixture.seen().state == "failed")
    assert "has not answered for" in fixture.seen().message
    fixture.serving.stop()


def test_a_port_that_somebody_took_meanwhile_is_replaced_by_a_free_one(tmp_path: Path) -> None:
    fixture = Fixture(tmp_path)
    fixture.ensure(BASE)
    url = fixture.settle().url
    fixture.serving.stop()
    with socket.socket() as thief:
        thief.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        thief.bind(("127.0.0.1", int(url.rpartition(":")[2])))
        thief.listen()
        fixture.ensure(BASE)
        assert fixture.settle().url != url
        fixture.serving.stop()


def test_the_users_own_port_is_used_and_when_taken_it_is_an_error(tmp_path: Path) -> None:
    port = free_port()
    fixture = Fixture(tmp_path, port=port)
    fixture.ensure(BASE)
    assert fixture.settle().url == f"http://127.0.0.1:{port}"
    fixture.serving.stop()
    with socket.create_server(("127.0.0.1", port)), pytest.raises(ConfigurationError, match=f"port {port} .* in use"):
        fixture.ensure(BASE)


def test_the_real_server_is_given_the_model_the_adapter_and_the_users_arguments() -> None:
    launch = ServerLaunch("hf://a/b", "small-bbbb", 8000, "merged", ADAPTER, ("--max-model-len=512",))
    argv = serving_argv(launch)
    assert argv[:3] == (sys.executable, "-m", "tandem_trainer.serving")
    options = dict(zip(argv[3:-2:2], argv[4:-2:2], strict=True))
    assert options["--served-name"] == "small-bbbb"
    assert options["--mode"] == "merged"
    assert options["--adapter-uri"] == ADAPTER.uri
    assert options["--adapter-sha256"] == ADAPTER.sha256
    assert argv[-2:] == ("--", "--max-model-len=512")
