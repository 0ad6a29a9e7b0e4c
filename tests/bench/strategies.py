"""Compares strategies on an example by real runs: `strategies.py examples/reviews/run.yaml --seeds 0 1 2 --out DIR`.

For every seed it runs the strategies through `tandem run --local`, one after another, and prints a Markdown table of
test scores: mean over the seeds, and each seed's. The unchanged program's test score comes from a run that ends on the
base model (`p`), where it costs no other server. A run that is finished already is not repeated, so the command can be
started again. `p -> w` is not run where the same seed's `p -> w -> p` returned a program of its first two steps: the
same spec and seed give the same steps, so the program, and its test score, are the same.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml

STRATEGIES = ("p -> w -> p", "w", "p", "p -> w", "p -> p", "w -> w", "w -> p")


def run(manifest: Path, strategy: str, seed: int, out: Path) -> dict[str, Any]:
    """The status of that run, made now or before."""
    name = f"{strategy.replace(' -> ', '')}-{seed}"
    document = yaml.safe_load(manifest.read_text())
    document["spec"] |= {"strategy": strategy, "seed": seed}
    document["metadata"]["name"] = f"bench-{name}"
    for split in ("train", "validation", "test"):
        path = (manifest.parent / document["spec"]["data"][split]["uri"].removeprefix("file:")).resolve()
        document["spec"]["data"][split]["uri"] = path.as_uri()
    path = out / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(document))
    command = [sys.executable, "-m", "tandem_operator.cli.main", "run", "-f", str(path), "--local"]
    subprocess.run([*command, "--workdir", str(out / name)], check=True, stdout=sys.stderr)
    status: dict[str, Any] = yaml.safe_load((out / name / "status.yaml").read_text())["status"]
    return status


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--strategies", nargs="+", choices=STRATEGIES, default=STRATEGIES)
    parser.add_argument("--out", type=Path, default=Path("runs/bench"))
    options = parser.parse_args()
    scores: dict[str, dict[int, float]] = {"vanilla": {}} | {strategy: {} for strategy in STRATEGIES}
    for seed in options.seeds:
        longest: dict[str, Any] = {}
        for strategy in options.strategies:
            if strategy == "p -> w" and longest and longest["best"]["step"] <= 2:
                scores[strategy][seed] = float(longest["test"]["score"])
                continue
            status = run(options.manifest, strategy, seed, options.out)
            if strategy == "p -> w -> p":
                longest = status
            scores[strategy][seed] = float(status["test"]["score"])
            if "baseline" in status["test"]:
                scores["vanilla"][seed] = float(status["test"]["baseline"])
            print(f"seed {seed}, {strategy}: test {status['test']['score']}", file=sys.stderr, flush=True)
    print("| strategy | test, mean | " + " | ".join(f"seed {seed}" for seed in options.seeds) + " |")
    print("|---|---|" + "---|" * len(options.seeds))
    for strategy in ("vanilla", "p", "w", "p -> p", "w -> w", "p -> w", "w -> p", "p -> w -> p"):
        row = [scores[strategy].get(seed) for seed in options.seeds]
        known = [value for value in row if value is not None]
        mean = f"{100 * statistics.mean(known):.1f}" if known else "not measured"
        cells = " | ".join("" if value is None else f"{100 * value:.1f}" for value in row)
        print(f"| {strategy} | {mean} | {cells} |")


if __name__ == "__main__":
    main()
