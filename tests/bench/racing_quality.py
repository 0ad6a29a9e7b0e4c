"""What racing costs in quality, and what it saves: the race against a full evaluation of every candidate.

    python tests/bench/racing_quality.py [--problems 200]

No model and no server: `prompt/race.py` is given candidates of known true accuracy, whose runs are drawn as those of
the scripted benchmarks are (`world.py`). For each spread of the true accuracies one line: how much better or worse the
race's choice is than the choice of the full evaluation (mean of the differences of their true accuracies, in points,
with its standard error), the runs made as a part of the full evaluation's, and how often the choice of the full
evaluation was dropped. Ends with 1 when a mean is worse than the goal by more than its standard error.
"""

from __future__ import annotations

import argparse
import asyncio
import random
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.bench import world
from tests.bench.common import table

from tandem_api.records import PredictorPrompt, PromptSet, ScoredExample
from tandem_api.v1alpha1.prompt_optimizers import Racing
from tandem_trainer.evaluate.evaluator import Evaluator, Job, ProgressCallback
from tandem_trainer.evaluate.examples import Example
from tandem_trainer.prompt.candidates import Candidate
from tandem_trainer.prompt.race import race
from tandem_trainer.prompt.racing import Rules

#: The choice may be worse by so many points on average.
GOAL = -0.5

#: True accuracies of so many candidates, drawn for one problem.
Spread = Callable[[random.Random, int], list[float]]

SPREADS: dict[str, Spread] = {
    "35 to 85%": lambda draw, count: [draw.uniform(0.35, 0.85) for _ in range(count)],
    "60 to 80%": lambda draw, count: [draw.uniform(0.60, 0.80) for _ in range(count)],
    "70 to 75%": lambda draw, count: [draw.uniform(0.70, 0.75) for _ in range(count)],
    "all 70%": lambda draw, count: [0.70] * count,
    "one 70%, others 60%": lambda draw, count: draw.sample([0.70, *[0.60] * (count - 1)], count),
    "85 to 98%": lambda draw, count: [draw.uniform(0.85, 0.98) for _ in range(count)],
}
SIZES = ((6, 100), (12, 100), (12, 300))


class KnownRuns:
    """In an Evaluator's place: the runs of candidates whose true accuracy is known by their instruction."""

    def __init__(self, accuracies: Sequence[float], problem: str) -> None:
        self._accuracies = accuracies
        self._problem = problem
        self._done: dict[tuple[str, str], ScoredExample] = {}

    async def run(
        self, jobs: Sequence[Job], *, keep_calls: bool = False, progress: ProgressCallback | None = None
    ) -> list[ScoredExample]:
        for job in jobs:
            if _name(job) not in self._done:
                number, example = _name(job)
                right = self.is_right(int(number), example)
                self._done[_name(job)] = ScoredExample(
                    key=f"{number}/{example}", candidate=number, example=example, status="ok", score=float(right)
                )
        return [self._done[_name(job)] for job in jobs]

    def scored(self, jobs: Sequence[Job], *, keep_calls: bool = False) -> list[ScoredExample | None]:
        return [self._done.get(_name(job)) for job in jobs]

    def is_right(self, number: int, example: str) -> bool:
        return world.is_right(self._accuracies[number], f"{self._problem}/{number}", f"{self._problem}/{example}")


def _name(job: Job) -> tuple[str, str]:
    return job.prompts.predictors["self"].instruction, job.example.id


@dataclass(frozen=True)
class Outcome:
    """One problem."""

    points: float
    """The true accuracy of the race's choice minus that of the full evaluation's."""
    share: float
    """Of the runs of a full evaluation."""
    has_dropped_best: bool


async def solve(accuracies: Sequence[float], examples: int, problem: str, rules: Rules) -> Outcome:
    runs = KnownRuns(accuracies, problem)
    totals = [sum(runs.is_right(number, str(n)) for n in range(examples)) for number in range(len(accuracies))]
    full = totals.index(max(totals))
    candidates = [
        Candidate("known", PromptSet(predictors={"self": PredictorPrompt(instruction=str(number))}))
        for number in range(len(accuracies))
    ]
    data = [Example(id=str(n), fields={}) for n in range(examples)]
    found = await race(cast(Evaluator, runs), candidates, data, rules)
    assert found.winner is not None
    return Outcome(
        points=100 * (accuracies[found.winner] - accuracies[full]),
        share=found.runs / (examples * len(candidates)),
        has_dropped_best=found.scored[full].dropped,
    )


async def measure(name: str, candidates: int, examples: int, problems: int, rules: Rules) -> list[Outcome]:
    outcomes = []
    for problem in range(problems):
        key = f"{name}/{candidates}/{examples}/{problem}"
        accuracies = SPREADS[name](random.Random(key), candidates)
        outcomes.append(await solve(accuracies, examples, key, rules))
    return outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--problems", type=int, default=200, help="simulated problems of each line")
    parser.add_argument("--error-rate", default=Racing().error_rate, help="the race's stated error rate")
    options = parser.parse_args()
    rules = Rules.of(Racing(error_rate=options.error_rate), exhaustive=False)
    rows, is_met = [], True
    for name in SPREADS:
        for sizes in SIZES:
            outcomes = asyncio.run(measure(name, *sizes, options.problems, rules))
            points = [outcome.points for outcome in outcomes]
            mean, error = statistics.mean(points), statistics.stdev(points) / len(points) ** 0.5
            is_met &= mean + error >= GOAL
            dropped = statistics.mean(outcome.has_dropped_best for outcome in outcomes)
            share = statistics.mean(outcome.share for outcome in outcomes)
            cells = (f"{mean:+.2f} ± {error:.2f}", f"{100 * share:.0f}%", f"{100 * dropped:.1f}%")
            rows.append((name, *map(str, sizes), *cells))
    print(f"{options.problems} problems a line; stated error rate {100 * rules.error_rate:g}%; goal {GOAL} points\n")
    head = ("true accuracy", "candidates", "examples", "chosen, points", "runs", "best dropped")
    print(table(head, rows))
    return 0 if is_met else 1


if __name__ == "__main__":
    raise SystemExit(main())
