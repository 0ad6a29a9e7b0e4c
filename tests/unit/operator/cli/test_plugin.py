"""The name by which it is called, colours, and what a start imports: of the program itself, as a child process."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.unit.operator.cli.cluster_case import at_stage, manifest, with_status
from tests.unit.operator.cli.fake_cluster import FakeCluster

START = "from tandem_operator.cli.main import main; main()"
#: A machine with much else to do takes longer than somebody waits with a finger on the key.
PATIENT = "from tandem_operator.cli import completion as c; c._SECONDS, c._TIMEOUT = 60.0, (30.0, 30.0)"
#: What takes long to import, and what a start has no use for.
HEAVY = (
    *("kubernetes", "urllib3", "requests", "yaml", "boto3", "botocore", "kopf", "aiohttp", "prometheus_client"),
    *("rich.console", "tandem_api.v1alpha1", "tandem_api.store", "tandem_operator.platforms", "multiprocessing"),
    *("torch", "dspy", "transformers", "numpy"),
)


def called_as(folder: Path, name: str) -> list[str]:
    """A program of that name, as pip makes one."""
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{PATIENT}\n{START}\n")
    path.chmod(0o755)
    return [str(path)]


def run(command: list[str], *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "COLUMNS": "80", **environment}
    return subprocess.run([*command, *arguments], capture_output=True, text=True, env=variables, check=False)


def on_a_terminal(command: list[str], **environment: str) -> str:
    """What is written to a terminal."""
    leader, follower = pty.openpty()
    variables = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    variables |= {"TERM": "xterm-256color", **environment}
    with subprocess.Popen(command, stdout=follower, stderr=follower, env=variables) as process:
        os.close(follower)
        said = b""
        while True:
            try:
                part = os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
            if not part:
                break
            said += part
        process.wait()
    os.close(leader)
    return said.decode()


def test_kubectls_plugin_calls_itself_so(cluster: FakeCluster, tmp_path: Path) -> None:
    plugin = called_as(tmp_path, "kubectl-tandem")
    assert "Usage: kubectl tandem watch [OPTIONS]" in run(plugin, "watch", "--help").stdout
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(manifest()))
    assert "to watch it: kubectl tandem watch small -n default" in run(plugin, "submit", "-f", "run.yaml").stdout
    assert "--install-completion" not in run(plugin, "--help").stdout
    tandem = called_as(tmp_path, "tandem")
    assert "Usage: tandem watch [OPTIONS]" in run(tandem, "watch", "--help").stdout
    assert "to watch it: tandem watch small" in run(tandem, "submit", "-f", "run.yaml").stdout


def test_both_programs_are_installed() -> None:
    document = (Path(__file__).parents[4] / "pyproject.toml").read_text()
    assert 'kubectl-tandem = "tandem_operator.cli.main:main"' in document
    assert 'kubectl_complete-tandem = "tandem_operator.cli.completion:kubectl_complete"' in document


def test_names_of_runs_are_completed_from_the_cluster(cluster: FakeCluster, tmp_path: Path) -> None:
    for name in ("reviews", "reviews-2", "iris"):
        cluster.put(manifest(name))
    cluster.put(manifest("elsewhere"), "team")
    tandem = called_as(tmp_path, "tandem")
    asked = {"_TANDEM_COMPLETE": "complete_bash", "COMP_WORDS": "tandem watch rev", "COMP_CWORD": "2"}
    assert run(tandem, **asked).stdout.split() == ["reviews", "reviews-2"]
    asked |= {"COMP_WORDS": "tandem watch -n team ", "COMP_CWORD": "4"}
    assert run(tandem, **asked).stdout.split() == ["elsewhere"]
    asked |= {"COMP_WORDS": "tandem list --context ", "COMP_CWORD": "3"}
    assert run(tandem, **asked).stdout.split() == ["test"]


def test_without_a_cluster_nothing_is_completed_and_nothing_is_said(tmp_path: Path) -> None:
    tandem = called_as(tmp_path, "tandem")
    done = run(tandem, _TANDEM_COMPLETE="complete_bash", COMP_WORDS="tandem watch ", COMP_CWORD="2")
    assert (done.stdout.strip(), done.stderr) == ("", "")


def test_kubectl_completes_its_plugin(cluster: FakeCluster, tmp_path: Path) -> None:
    cluster.put(manifest("reviews"))
    command = [sys.executable, "-c", f"{PATIENT}; c.kubectl_complete()"]
    assert run(command, "watch", "re").stdout.split() == ["reviews", ":4"]
    assert run(command, "sus").stdout.split() == ["suspend", ":4"]
    assert run(command, "watch", "").stdout.split() == ["reviews", ":4"]


@pytest.mark.parametrize("command", [("list",), ("status", "small")])
def test_colours_are_for_terminals_and_for_those_who_want_them(
    cluster: FakeCluster, tmp_path: Path, command: tuple[str, ...]
) -> None:
    cluster.put(with_status(manifest(), at_stage("optimize")))
    tandem = [*called_as(tmp_path, "tandem"), *command]
    assert "\x1b[" in on_a_terminal(tandem)
    assert "\x1b" not in run(tandem).stdout
    said = on_a_terminal(tandem, NO_COLOR="1")
    # Bold is no colour.
    assert not any(f"\x1b[{code}m" in said for code in (*range(30, 38), *range(90, 98)))
    assert "38;5" not in said


@pytest.mark.parametrize("arguments", [("--help",), ("version",), ("list", "--help")])
def test_a_start_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    allowed = {"rich.console"} if "--help" in arguments else set()
    code = (
        f"import sys; sys.argv[1:] = {list(arguments)!r}\n"
        "try:\n"
        "    from tandem_operator.cli.main import main; main()\n"
        "except SystemExit: pass\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)"
    )
    done = run([sys.executable, "-c", code])
    assert done.stdout
    assert set(eval(done.stderr.splitlines()[-1])) <= allowed


def test_a_look_at_a_run_imports_no_classes_of_kubernetes_objects(cluster: FakeCluster) -> None:
    """They take a second."""
    cluster.put(with_status(manifest(), at_stage("optimize")))
    code = (
        "import sys; sys.argv[1:] = ['status', 'small', '-n', 'default']\n"
        "try:\n"
        "    from tandem_operator.cli.main import main; main()\n"
        "except SystemExit: pass\n"
        "loaded = [m for m in sys.modules if m.startswith(('kubernetes.client.models.', 'kubernetes.client.api.'))]\n"
        "print(loaded + [m for m in ('boto3', 'kopf', 'torch', 'dspy') if m in sys.modules], file=sys.stderr)"
    )
    done = run([sys.executable, "-c", code])
    assert "small: Working" in done.stdout
    assert done.stderr.splitlines()[-1] == "[]"
