"""What a user sees of the commands, above all when something is wrong."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from tests.unit.operator.local.children import COMMANDS, manifest, write_manifest
from typer.testing import CliRunner, Result

from tandem_api.v1alpha1.run import parse_run
from tandem_operator.cli.main import app
from tandem_operator.cli.run import run_local
from tandem_operator.platforms.local import workdir as workdir_module
from tandem_operator.platforms.local.workdir import Workdir


@pytest.fixture(autouse=True)
def surroundings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


def tandem(*arguments: object) -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def change(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_a_valid_manifest_is_said_to_be_so(tmp_path: Path) -> None:
    result = tandem("validate", "-f", write_manifest(tmp_path, strategy="(p -> w){2}"))
    assert result.exit_code == 0
    assert "run.yaml is valid: small, p -> w -> p -> w" in result.stdout


def test_a_key_that_is_not_set_is_refused_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TANDEM_PROPOSER_API_KEY", raising=False)
    proposer = {"url": "https://api.example.com/v1", "model": "large", "keySecret": "writer"}
    path = write_manifest(tmp_path, promptOptimizer={"type": "gepa", "proposer": proposer})
    result = tandem("run", "-f", path, "--local", "--workdir", tmp_path / "work")
    assert result.exit_code == 2
    assert "spec.promptOptimizer.proposer.keySecret: found 'writer', but TANDEM_PROPOSER_API_KEY is" in result.stderr
    assert not (tmp_path / "work").exists()


def test_everything_wrong_is_shown_at_once_with_line_and_field(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(
        """\
apiVersion: tandem.dev/v1alpha1
kind: OptimizationRun
metadata: {name: small}
spec:
  program:
    inline: {signature: "question -> answer"}
  metric: {builtin: exact-match, field: answer}
  data:
    train: {uri: file:train.jsonl}
    inputs: [question]
  model: {}
  strategy: p => w
  seeed: 1
  seed: 1
  seed: 2
"""
    )
    result = tandem("validate", "-f", path)
    assert result.exit_code == 2
    lines = result.stderr.splitlines()
    assert lines[0] == f"error: {path} is not valid:"
    assert [line.split(": ")[:2] for line in lines[1:]] == [
        ["  run.yaml:11", "spec.model.uri"],
        ["  run.yaml:12", "spec.strategy"],
        ["  run.yaml:13", "spec.seeed"],
        ["  run.yaml:14", "spec.seed"],
    ]
    assert "did you mean seed?" in result.stderr
    assert "given twice, in lines 14 and 15" in result.stderr


def test_a_decimal_that_yaml_libraries_write_without_quotes_is_read(tmp_path: Path) -> None:
    path = write_manifest(tmp_path, weightOptimizer={"learningRate": "RATE"})
    change(path, "RATE", "5e-4")
    assert tandem("validate", "-f", path).exit_code == 0


def test_a_missing_data_file_is_found_unless_only_the_schema_is_wanted(tmp_path: Path) -> None:
    path = write_manifest(tmp_path)
    (tmp_path / "train.jsonl").unlink()
    result = tandem("validate", "-f", path)
    assert result.exit_code == 2
    line = path.read_text().splitlines().index("      uri: file:train.jsonl") + 1
    assert f"run.yaml:{line}: spec.data.train.uri: {tmp_path / 'train.jsonl'} does not exist" in result.stderr
    assert tandem("validate", "-f", path, "--schema-only").exit_code == 0


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("spec: {", "run.yaml:1:8: not valid YAML"),
        ("a: b: c", "run.yaml:1:5: not valid YAML: mapping values are not allowed"),
        ("- 1\n---\n- 2\n", "run.yaml:2:1: not valid YAML: but found another document"),
        ("\x00", "run.yaml: not valid YAML"),
        ("", "(manifest): found nothing; an OptimizationRun is a mapping"),
        ("just text", "(manifest): found 'just text'"),
        ("&a [*a]", "(manifest): found a list"),
    ],
)
def test_what_is_no_manifest_is_named_with_its_place(tmp_path: Path, text: str, want: str) -> None:
    (tmp_path / "run.yaml").write_text(text)
    result = tandem("validate", "-f", "run.yaml")
    assert result.exit_code == 2
    assert want in result.stderr


@pytest.mark.parametrize("command", [("validate",), ("run", "--local")])
def test_a_missing_manifest_is_named(command: tuple[str, ...]) -> None:
    result = tandem(*command, "-f", "nothing.yaml")
    assert result.exit_code == 2
    assert "nothing.yaml does not exist" in result.stderr


def test_what_only_a_cluster_has_is_refused_with_its_line(tmp_path: Path) -> None:
    result = tandem("run", "--local", "-f", write_manifest(tmp_path, model={"uri": "pvc://claim/model"}))
    assert result.exit_code == 2
    assert "spec.model.uri: found 'pvc://claim/model', which only a cluster has" in result.stderr


def test_a_folder_in_use_is_told_with_the_process(tmp_path: Path) -> None:
    path = write_manifest(tmp_path)
    holder = Workdir(tmp_path / "runs" / "small")
    holder.lock()
    result = tandem("run", "--local", "-f", path)
    holder.unlock()
    assert result.exit_code == 2
    assert f"in use by another `tandem run` (process {os.getpid()})" in result.stderr


def test_missing_credentials_are_told_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    result = tandem("run", "--local", "-f", write_manifest(tmp_path))
    assert result.exit_code == 2
    assert "AWS_SECRET_ACCESS_KEY are not set" in result.stderr


def test_a_full_disk_is_told_without_a_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(workdir_module.os, "fsync", full)
    result = tandem("run", "--local", "-f", write_manifest(tmp_path))
    assert result.exit_code == 1
    assert "no space left on the disk" in result.stderr


def test_a_run_prints_its_transitions_and_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_manifest(tmp_path)
    assert run_local(path, None, None, COMMANDS) == 0
    out = capsys.readouterr().out
    for text in (
        "step 0 (baseline), check: started",
        "model server: loading base",
        "step 0 (baseline): candidate vanilla@base: 0.500 (95%: 0.400 to 0.600), n=20",
        "step 1 (p): succeeded, score 0.750",
        "1 p         aaaaaaaaaaaa@base  0.750  0.650 - 0.850  20       0  best",
        "test        0.500 (95%: 0.400 to 0.600), n=20",
        "tokens      3,300 in 60 calls (3,000 prompt, 300 completion)",
    ):
        assert text in out
    assert max(map(len, out.split("Candidates")[1].splitlines())) <= 80


def test_a_run_that_has_ended_only_shows_its_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_manifest(tmp_path)
    run_local(path, None, None, COMMANDS)
    capsys.readouterr()
    result = tandem("run", "--local", "-f", path)
    assert result.exit_code == 0
    assert "running in" not in result.stdout
    assert "going on in" not in result.stdout
    assert "aaaaaaaaaaaa@base" in result.stdout


def test_a_failed_run_says_why_and_where_the_logs_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands = type(COMMANDS)(worker=(sys.executable, "-c", "raise SystemExit(42)"), server=COMMANDS.server)
    path = write_manifest(tmp_path)
    assert run_local(path, None, None, commands) == 1
    out = capsys.readouterr().out
    assert "step 0 (baseline), check: failed" in out
    assert "BadConfiguration" in out
    assert str(tmp_path / "runs" / "small" / "logs") in out.replace("\n", "")
    assert tandem("run", "--local", "-f", path).exit_code == 1


def test_status_shows_a_run_by_folder_by_name_and_by_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_local(write_manifest(tmp_path), None, None, COMMANDS)
    capsys.readouterr()
    for name in ("small", "runs/small", tmp_path / "runs" / "small" / "status.yaml"):
        result = tandem("status", name)
        assert result.exit_code == 0
        assert result.stdout.startswith("small: Succeeded")
        assert "aaaaaaaaaaaa@base" in result.stdout


def test_status_prints_the_resource_for_other_programs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_local(write_manifest(tmp_path), None, None, COMMANDS)
    capsys.readouterr()
    stored = Workdir(tmp_path / "runs" / "small").read_run()
    assert parse_run(json.loads(tandem("status", "small", "-o", "json").stdout)) == stored
    assert parse_run(yaml.safe_load(tandem("status", "small", "-o", "yaml").stdout)) == stored


@pytest.mark.parametrize("command", ["status", "report"])
def test_an_unknown_run_is_told_with_the_places_that_were_looked_at(tmp_path: Path, command: str) -> None:
    result = tandem(command, "nothing")
    assert result.exit_code == 2
    assert f"neither {tmp_path}/nothing/status.yaml nor {tmp_path}/runs/nothing/status.yaml exists" in result.stderr


def test_the_report_is_found_once_it_is_there(tmp_path: Path) -> None:
    workdir = Workdir(tmp_path / "runs" / "small")
    workdir.path.mkdir(parents=True)
    workdir.write_run(parse_run(manifest(tmp_path)))
    result = tandem("report", "small")
    assert result.exit_code == 1
    assert "the run is at Pending" in result.stderr
    workdir.result.mkdir()
    (workdir.result / "report.html").write_text("<p>")
    result = tandem("report", "small")
    assert result.exit_code == 0
    assert result.stdout == f"{workdir.result / 'report.html'}\n"


def test_version_and_help_are_there_at_once() -> None:
    assert tandem("version").stdout.startswith("tandem ")
    assert "validate" in tandem("--help").stdout
    assert "submit" in tandem("--help").stdout
    # What costs time to import is imported by the command that needs it.
    script = (
        "import sys, tandem_operator.cli.main; "
        "heavy = {'pydantic', 'boto3', 'psutil', 'yaml', 'rich.live', 'kubernetes', 'urllib3', 'kopf'}; "
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"
