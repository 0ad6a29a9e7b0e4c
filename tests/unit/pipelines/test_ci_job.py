"""examples/pipelines/ci.sh with a kubectl that answers as a script says: what a real API server seldom does."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CI_JOB = ROOT / "examples/pipelines/ci.sh"
#: How often what happens still: `apply-fails`, `server-fails`, `uri-fails`; `old-looks` find what was refused before.
KUBECTL = """#!/usr/bin/env bash
cd "$HOME" || exit 9
takes() {
    local left
    left=$(cat "$1" 2>/dev/null) || return 1
    [ "$left" -gt 0 ] && echo $((left - 1)) >"$1"
}
case "$*" in
    apply*) takes apply-fails && exit 1; printf 'team run' ;;
    "get --raw"*) ! takes server-fails || exit 1 ;;
    *metadata.uid*) printf u1 ;;
    *metadata.generation*) printf 2 ;;
    *result.uri*) takes uri-fails && exit 1; printf 's3://bucket/result/' ;;
    *result.sha256*) printf abc ;;
    *'].status}'*) if takes old-looks; then printf False; else printf True; fi ;;
    *'].reason}'*) printf InvalidSpec ;;
    *'].observedGeneration}'*) printf 1 ;;
    wait*) sleep 0.1 ;;
    *) echo "not expected: $*" >&2; exit 9 ;;
esac
"""
Job = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """Runs the script; the arguments are how often what happens."""
    tool = tmp_path / "bin/kubectl"
    tool.parent.mkdir()
    tool.write_text(KUBECTL)
    tool.chmod(0o755)

    def run(**times: int) -> subprocess.CompletedProcess[str]:
        for name, count in times.items():
            (tmp_path / name.replace("_", "-")).write_text(f"{count}\n")
        environment = {"HOME": str(tmp_path), "PATH": f"{tool.parent}:{os.environ['PATH']}"}
        return subprocess.run([CI_JOB, "run.yaml", "60"], env=environment, capture_output=True, text=True, timeout=120)

    return run


def test_where_the_result_is_is_asked_for_again_when_nobody_answers(job: Job) -> None:
    done = job(uri_fails=1)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["uri=s3://bucket/result/", "sha256=abc"]


def test_what_an_earlier_manifest_was_refused_for_is_not_this_ones_end(job: Job) -> None:
    done = job(old_looks=2)
    assert done.returncode == 0, done.stderr


def test_a_refused_manifest_and_a_cluster_out_of_reach_are_told_apart(job: Job) -> None:
    assert job(apply_fails=1).returncode == 2
    assert job(apply_fails=1, server_fails=1).returncode == 1
