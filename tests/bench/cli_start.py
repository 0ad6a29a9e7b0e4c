"""How long the command line takes: its start, and a look at a run on a cluster that answers at once.

    .venv/bin/python tests/bench/cli_start.py [--rounds 7]

Each figure is the median of that many processes, beside the goal and beside a Python that does nothing. What a cluster
and the way to it take is not in them: it is an HTTP server of this process. `CPU` is what a machine takes that has
nothing else to do; ends with 1 when that is beyond a goal.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.unit.operator.cli.cluster_case import at_stage, manifest, with_status
from tests.unit.operator.cli.fake_cluster import FakeCluster, serving, write_kubeconfig

START = "from tandem_operator.cli.main import main; main()"
#: (title, arguments, goal in seconds)
COMMANDS = (
    ("tandem version", ("version",), 0.3),
    ("tandem --help", ("--help",), 0.3),
    ("tandem list --help", ("list", "--help"), 0.3),
    ("tandem list", ("list",), 1.0),
    ("tandem status NAME", ("status", "small", "-n", "default"), 1.0),
)


def measure(command: list[str], environment: dict[str, str], rounds: int) -> tuple[float, float]:
    """Median seconds by the clock, and of CPU, after one round that fills the caches."""
    clock, cpu = [], []
    for nth in range(rounds + 1):
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run(command, env=environment, stdout=subprocess.DEVNULL, check=True)
        took, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        if nth:
            clock.append(took)
            cpu.append(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime)
    return statistics.median(clock), statistics.median(cpu)


def main() -> int:
    """Print the table; 1 when a goal is missed."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    rounds = parser.parse_args().rounds
    cluster = FakeCluster()
    cluster.put(with_status(manifest(), at_stage("optimize")))
    missed = False
    with tempfile.TemporaryDirectory() as folder, serving(cluster) as server:
        kubeconfig = write_kubeconfig(Path(folder) / "kubeconfig", server)
        environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}
        bare, bare_cpu = measure([sys.executable, "-c", "pass"], environment, rounds)
        print(f"{'':22}{'seconds':>9}{'CPU':>8}{'goal':>7}{'goal / CPU':>12}{'CPU / bare':>12}")
        print(f"{'python -c pass':22}{bare:9.3f}{bare_cpu:8.3f}")
        for title, arguments, goal in COMMANDS:
            took, cpu = measure([sys.executable, "-c", START, *arguments], environment, rounds)
            missed = missed or cpu > goal
            print(f"{title:22}{took:9.3f}{cpu:8.3f}{goal:7.1f}{goal / cpu:12.2f}{cpu / bare_cpu:12.1f}")
    if missed:
        print("a goal is missed")
    return int(missed)


if __name__ == "__main__":
    sys.exit(main())
