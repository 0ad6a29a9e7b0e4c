"""docs/python.md: what it shows is checked by a type checker, as an editor would, and what it builds is built."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import tandem
from tandem_api.v1alpha1.run import parse_run
from tandem_operator.platforms.kubernetes.manifest import cluster_problems

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/python.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


def test_the_run_that_it_builds_is_one_for_a_cluster() -> None:
    found: dict[str, object] = {}
    exec(BLOCKS[0], found)
    run = parse_run(found["wanted"].to_json())  # type: ignore[attr-defined]
    assert run == found["wanted"] and cluster_problems(run) == []


def test_its_examples_pass_a_type_checker_and_a_wrong_name_does_not(tmp_path: Path) -> None:
    source = tmp_path / "page.py"
    wrong = "Sampling(max_token=8)\nrun.watch(seconds=3)\n"
    source.write_text("\n".join([*BLOCKS, wrong]))
    # A process of its own, for what it leaves in memory; with the cache of `make lint`.
    command = [sys.executable, "-m", "mypy", str(source), "--config-file=pyproject.toml", "--no-error-summary"]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500, check=False).stdout
    first = len(source.read_text().splitlines()) - 1
    wrong_lines = [int(line.split(":")[1]) for line in told.splitlines() if ": error:" in line]
    assert wrong_lines == [first, first + 1], told
    assert "max_token" in told and "seconds" in told


def test_every_error_and_call_of_the_client_is_on_the_page() -> None:
    names = {name for name in tandem.__all__ if name not in ("Row", "Run", "ClusterRun", "LocalRun", "Scores", "State")}
    names |= {name for name in vars(tandem.Run) if not name.startswith("_")}
    assert {name for name in names if not re.search(rf"\b{name}\b", PAGE)} == set()
