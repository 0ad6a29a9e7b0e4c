"""The process from the outside: settings, signals, exit codes, and a pause that outlasts its Lease."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from tests.unit.operator.app.api_server import ApiServer
from tests.unit.operator.app.helpers import until

from tandem_operator.app import main
from tandem_operator.platforms.local.machine import free_port

CHILD = Path(__file__).with_name("operator_child.py")


class Child:
    """An operator process against the API server."""

    def __init__(self, server: ApiServer, folder: Path, *more: str, duration: int = 3) -> None:
        config = folder / "settings.yaml"
        document = {
            "images": {"trainer": "t:1"},
            "lease": {"name": "operator", "durationSeconds": duration, "renewSeconds": 1},
            "metricsPort": free_port(),
            "healthPort": free_port(),
            "logFormat": "text",
        }
        config.write_text(yaml.safe_dump(document))
        self.calls, self.log = folder / "calls", folder / "log"
        environment = {
            **os.environ,
            "TANDEM_OPERATOR_CONFIG": str(config),
            "KUBECONFIG": str(server.kubeconfig(folder, "secret-token")),
            "POD_NAME": "one",
            "POD_NAMESPACE": "tandem",
        }
        with self.log.open("wb") as log:
            argv = [sys.executable, str(CHILD), str(self.calls), *more]
            self.process = subprocess.Popen(argv, env=environment, stderr=log)

    def has_worked(self) -> bool:
        return self.calls.exists()


@pytest.fixture
def server() -> Iterator[ApiServer]:
    found = ApiServer()
    found.put("optimizationruns", "reviews")
    yield found
    found.close()


@pytest.fixture
def children() -> Iterator[list[Child]]:
    found: list[Child] = []
    yield found
    for child in found:
        child.process.kill()
        child.process.wait()


def test_sigterm_ends_it_in_good_order(server: ApiServer, tmp_path: Path, children: list[Child]) -> None:
    child = Child(server, tmp_path, "1")
    children.append(child)
    until(child.has_worked)
    child.process.send_signal(signal.SIGTERM)
    assert child.process.wait(60) == 0
    log = child.log.read_text()
    assert server.leases["operator"]["spec"]["holderIdentity"] == ""
    assert "SIGTERM: ending" in log
    assert "ended in good order" in log
    assert "secret-token" not in log
    # The pass that ran was finished, and none was begun after it.
    assert child.calls.read_text() == "team/reviews\n"


def test_after_a_pause_longer_than_its_lease_it_dies_without_another_pass(
    server: ApiServer, tmp_path: Path, children: list[Child]
) -> None:
    child = Child(server, tmp_path, duration=2)
    children.append(child)
    until(child.has_worked)
    child.process.send_signal(signal.SIGSTOP)
    time.sleep(2.5)
    calls, writes = child.calls.read_text(), len(server.writes())
    child.process.send_signal(signal.SIGCONT)
    assert child.process.wait(60) == 1
    assert child.calls.read_text() == calls
    assert len(server.writes()) <= writes + 1  # one may have been on its way
    assert "has lost the leadership" in child.log.read_text()


def test_a_run_with_very_deep_json_does_not_keep_the_others_from_being_looked_after(
    server: ApiServer, tmp_path: Path, children: list[Child]
) -> None:
    """Python reads JSON of at most a thousand objects in each other, API servers of ten thousand: one such run of one
    user ended the list and the watch of all runs, and with them the operator, again and again."""
    deep = '{"a":' * 9_900 + "1" + "}" * 9_900
    server.put("optimizationruns", "deep", spec=f'{{"program": {deep}}}')
    child = Child(server, tmp_path)
    children.append(child)
    until(lambda: child.has_worked() and {"team/reviews", "team/deep"} <= {*child.calls.read_text().split()}, 60)
    server.put("optimizationruns", "deeper", spec=f'{{"program": {deep}}}')
    server.put("optimizationruns", "later")
    until(lambda: {"team/deeper", "team/later"} <= {*child.calls.read_text().split()}, 60)
    assert child.process.poll() is None
    assert "RecursionError" not in child.log.read_text()


def environment(tmp_path: Path, text: str | None) -> dict[str, str]:
    path = tmp_path / "settings.yaml"
    if text is not None:
        path.write_text(text)
    return {"TANDEM_OPERATOR_CONFIG": str(path), "POD_NAME": "one", "POD_NAMESPACE": "tandem"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, ["cannot be read"]),
        ("images: [", ["cannot be read"]),
        ("{}", ["images: Field required"]),
        ("images: {trainer: t}\nworkers: 0\nlogformat: json", ["workers", "logformat: Extra inputs"]),
        ("[]", ["is not valid"]),
    ],
)
def test_wrong_settings_are_said_and_end_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str | None, words: list[str]
) -> None:
    assert main.run(environment(tmp_path, text)) == main.EXIT_SETTINGS
    said = capsys.readouterr().err
    assert str(tmp_path / "settings.yaml") in said
    for word in words:
        assert word in said


@pytest.mark.parametrize("name", ["TANDEM_OPERATOR_CONFIG", "POD_NAME", "POD_NAMESPACE"])
def test_what_the_pod_must_set(tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    incomplete = environment(tmp_path, "images: {trainer: t}")
    del incomplete[name]
    assert main.run(incomplete) == main.EXIT_SETTINGS
    assert f"error: {name} is not set" in capsys.readouterr().err
