"""`kubectl tandem` on a real cluster: a run is submitted, looked at from all sides, suspended and cancelled before
anything is served."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.cluster.harness import Namespace, reviews, until


class User:
    """Somebody with kubectl, its plugin, and the cluster's kubeconfig."""

    def __init__(self, namespace: Namespace, folder: Path) -> None:
        cluster = namespace.cluster
        plugin = folder / "kubectl-tandem"
        plugin.write_text(f"#!{sys.executable}\nfrom tandem_operator.cli.main import main\nmain()\n")
        plugin.chmod(0o755)
        self.folder = folder
        self.environment = {
            **os.environ,
            "KUBECONFIG": str(cluster.kubeconfig),
            "PATH": f"{folder}:{cluster.tools}:{os.environ['PATH']}",
            "COLUMNS": "80",
            "PYTHONUNBUFFERED": "1",
        }
        context = ("--context", cluster.context) if cluster.context is not None else ()
        self.where = ("-n", namespace.name, *context)

    def command(self, name: str, *arguments: str) -> tuple[str, ...]:
        """As it is typed."""
        return ("kubectl", "tandem", name, *arguments, *self.where)

    def run(self, name: str, *arguments: str, code: int = 0, **environment: str) -> str:
        """What a command prints. Fails unless it ends with that code."""
        done = subprocess.run(
            self.command(name, *arguments),
            capture_output=True,
            text=True,
            cwd=self.folder,
            env={**self.environment, **environment},
            timeout=180,
            check=False,
        )
        assert done.returncode == code, f"{name} {' '.join(arguments)}\n{done.stdout}{done.stderr}"
        return done.stdout

    def write(self, run: dict[str, object]) -> str:
        """A manifest, as a file."""
        path = self.folder / "run.yaml"
        path.write_text(yaml.safe_dump(run))
        return str(path)


@pytest.fixture(scope="module")
def user(namespace: Namespace, tmp_path_factory: pytest.TempPathFactory) -> User:
    return User(namespace, tmp_path_factory.mktemp("user"))


def test_a_run_is_looked_at_from_all_sides_and_cancelled(user: User, namespace: Namespace) -> None:
    name = "looked-at"
    manifest = user.write(reviews(namespace.name, name, strategy="vanilla"))
    findings = json.loads(user.run("doctor", "-f", manifest, "-o", "json"))
    assert {one["check"] for one in findings if one["level"] == "ok"} >= {"api", "rights", "crd", "operator", "leader"}
    assert {one["check"] for one in findings if one["level"] == "ok"} >= {"gpu", "storage", "data", "manifest"}

    assert user.run("submit", "-f", manifest, "-o", "name") == f"optimizationrun.tandem.dev/{name}\n"
    watching = subprocess.Popen(
        user.command("watch", name), stdout=subprocess.PIPE, text=True, env=user.environment, cwd=user.folder
    )
    try:
        # A check that finds nothing wrong says nothing.
        user.run("logs", name, "-f", "--step", "0", "--stage", "check")
        assert name in user.run("list")
        assert user.run("list", "-o", "name").split() == [f"optimizationrun.tandem.dev/{name}"]
        assert f"{name}: " in user.run("status", name)
        until(30, "its first event", lambda: "StepStarted" in user.run("events", name))
        user.run("report", name, code=1)
        user.run("suspend", name)
        until(60, "the suspension", lambda: namespace.condition(name, "Suspended").get("status") == "True")
        assert f"{name}: Suspended" in user.run("status", name)
    finally:
        watching.send_signal(signal.SIGINT)
        said, _ = watching.communicate(timeout=30)
    assert watching.returncode == 130
    # It may have come when the check was at work already.
    assert "check: started" in said or ", check" in said
    assert "the run goes on" in said and "kubectl tandem watch" in said
    user.run("cancel", name, "--yes")
    assert user.run("list", "-o", "name") == ""


def test_a_run_that_fails_says_why(user: User, namespace: Namespace) -> None:
    program = {"entrypoint": "nowhere:build", "adapter": "plain"}
    user.run("submit", "-f", user.write(reviews(namespace.name, "broken", program=program, strategy="vanilla")))
    assert "outcome     Failed: " in user.run("watch", "broken", code=1)
    assert "BadConfiguration" in user.run("logs", "broken", "--stage", "check")
    assert "RunFailed" in user.run("events", "broken")
    user.run("report", "broken", code=1)
    user.run("cancel", "broken", "--yes")
