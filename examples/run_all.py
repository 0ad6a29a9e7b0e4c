"""Runs the local variants of the paper's three tasks, one after another, and prints what came of them.

    python examples/run_all.py [--out DIR] [TASK ...]

Each takes a few minutes on two cores without a GPU. A run that was stopped goes on where it was.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
TASKS = ("hotpotqa", "gsm8k", "iris")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="The local variants of the paper's three tasks.")
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"of {', '.join(TASKS)}; default: all")
    parser.add_argument("--out", type=Path, default=Path("runs/examples"), help="the folder of the runs")
    given = parser.parse_args(arguments)
    unknown = sorted(set(given.tasks) - set(TASKS))
    if unknown:
        parser.error(f"found {', '.join(unknown)}; allowed: {', '.join(TASKS)}")
    lines = []
    failed = False
    for task in given.tasks or TASKS:
        workdir, began = given.out / task, time.monotonic()
        command = ["run", "-f", str(FOLDER / task / "run.yaml"), "--local", "--workdir", str(workdir)]
        code = subprocess.run([sys.executable, "-m", "tandem_operator.cli.main", *command], check=False).returncode
        if code == 130:
            return code
        failed = failed or code != 0
        lines.append(summary(task, workdir) + f"  {time.monotonic() - began:5.0f} s")
    print("\n".join(["", "task       baseline  best      test  tokens   time", *lines]))
    return int(failed)


def summary(task: str, workdir: Path) -> str:
    """One line from the run's status: scores on validation, the best program on the test set, tokens."""
    path = workdir / "status.yaml"
    status: dict[str, Any] = {}
    if path.is_file():
        status = yaml.safe_load(path.read_text(encoding="utf-8")).get("status") or {}
    scores = [(status.get(name) or {}).get("score", "-") for name in ("baseline", "best", "test")]
    usage = status.get("usage") or {}
    tokens = int(usage.get("promptTokens", 0)) + int(usage.get("completionTokens", 0))
    return f"{task:10} {scores[0]:8}  {scores[1]:8}  {scores[2]:8}  {tokens:8}"


if __name__ == "__main__":
    raise SystemExit(main())
