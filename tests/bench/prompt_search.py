"""Prompt search beside DSPy's, on a model of known accuracy: calls, tokens, wall time, and how good the choice is.

    python tests/bench/prompt_search.py [--seeds 0 1 2] [--only "BFRS" "DSPy BFRS"]

Both sides search for the same program (one chain of thought, DSPy's chat format), on the same scripted server
(`world.py`; 0.3 s a call, a process of its own), with 32 calls at once, 60 training and 100 validation examples, at
most 3 demos. A seed is a problem of its own, with other items, demos and accuracies. Calls, tokens and wall time (from
the first call to the last answer) are the server's. DSPy has its cache, empty at the start. The true accuracy is that
of the prompt that was returned, over items without end.

DSPy's BFRS with 6 candidates scores 9 programs: it has three fixed ones beside. So ours is measured with 6 candidates
in all, and with 9.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.bench import world
from tests.bench.common import MODEL, in_process, optimize, scripted_server, stats, table
from tests.bench.dspy_side import Compared, compile_with, fresh_cache, prompts_of, validation_score

from tandem_api.records import PredictorPrompt, PromptSet

LATENCY_SECONDS = 0.3
SLOTS, TRAIN, VALIDATION, DEMOS, CANDIDATES = 32, 60, 100, 3, 6

#: Our rows: the settings of the `p` step.
OURS: dict[str, dict[str, Any]] = {
    "BFRS, 6 candidates": {"candidates": CANDIDATES},
    "BFRS, 9 candidates": {"candidates": CANDIDATES + 3},
    "BFRS, 9 candidates, exhaustive": {"candidates": CANDIDATES + 3, "exhaustive": True},
    "mipro light": {"type": "mipro", "auto": "light"},
}
DSPY = {"DSPy BFRS, 6 + 3 candidates": "bfrs", "DSPy MIPROv2 light": "mipro"}
#: Ours, DSPy's, and the most calls and wall time that ours may take, as parts of DSPy's.
GOALS = (
    ("BFRS, 6 candidates", "DSPy BFRS, 6 + 3 candidates", 1 / 3, 1 / 5),
    ("BFRS, 9 candidates", "DSPy BFRS, 6 + 3 candidates", 1 / 3, 1 / 5),
    ("BFRS, 9 candidates, exhaustive", "DSPy BFRS, 6 + 3 candidates", None, None),
    ("mipro light", "DSPy MIPROv2 light", 1 / 2, 1 / 3),
)


@dataclass(frozen=True)
class Cell:
    """One search of one problem."""

    calls: int
    tokens: int
    seconds: float
    validation: float
    """The score that the optimizer found for its choice."""
    true: float


def examples(seed: int, first: int, count: int) -> list[dict[str, str]]:
    asked = [world.question(seed, item) for item in range(first, first + count)]
    return [{"question": each, "answer": world.right_answer(each)} for each in asked]


def search_ours(settings: dict[str, Any], seed: int, url: str, folder: Path) -> tuple[float, float]:
    """The winner's validation score and true accuracy."""
    data: dict[str, Any] = {"inputs": ["question"]}
    for name, rows in (("train", examples(seed, 0, TRAIN)), ("validation", examples(seed, 1000, VALIDATION))):
        path = folder / f"{name}.jsonl"
        path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        data[name] = {"uri": path.as_uri()}
    inline = {"module": "chain-of-thought", "signature": world.SIGNATURE, "instructions": world.INSTRUCTION}
    spec = {
        "program": {"inline": {**inline, "adapter": "chat"}},
        "metric": {"builtin": "exact-match", "field": "answer"},
        "data": data,
        "model": {"uri": "file:model"},
        "strategy": "p",
        "promptOptimizer": {"maxBootstrappedDemos": DEMOS, "maxLabeledDemos": DEMOS, **settings},
        "evaluation": {"concurrency": SLOTS},
        "seed": seed,
    }
    result, store = optimize(spec, url, folder)
    prompt = PredictorPrompt(instruction=world.INSTRUCTION)
    if result.prompt_set is not None:
        (prompt,) = PromptSet.model_validate_json(store.fetch(result.prompt_set)).predictors.values()
    return result.scores[0].score, true_accuracy(prompt)


def search_dspy(optimizer: str, seed: int, url: str, folder: Path) -> tuple[float, float]:
    """The winner's validation score and true accuracy."""
    fresh_cache(folder)
    dspy.configure(lm=dspy.LM(f"openai/{MODEL}", api_base=f"{url}/v1", api_key="none", max_tokens=512, temperature=0.0))
    train, validation = (
        [dspy.Example(**row).with_inputs("question") for row in rows]
        for rows in (examples(seed, 0, TRAIN), examples(seed, 1000, VALIDATION))
    )
    student = dspy.ChainOfThought(dspy.Signature(world.SIGNATURE, world.INSTRUCTION))
    how = Compared(SLOTS, seed, CANDIDATES, DEMOS)
    program = compile_with(
        optimizer, student, lambda gold, found, trace=None: gold.answer == found.answer, train, validation, how
    )
    return validation_score(program), true_accuracy(prompts_of(program))


def true_accuracy(prompt: PredictorPrompt) -> float:
    signature = dspy.ChainOfThought(dspy.Signature(world.SIGNATURE, prompt.instruction)).predict.signature
    messages = dspy.ChatAdapter().format(signature, list(prompt.demos), {"question": world.question(0, 0)})
    return world.accuracy(messages)


def measure(row: str, seed: int, latency: float) -> Cell:
    with tempfile.TemporaryDirectory() as name, scripted_server(Path(world.__file__), latency=latency) as url:
        folder = Path(name)
        search, what = (search_ours, OURS[row]) if row in OURS else (search_dspy, DSPY[row])
        try:
            validation, true = in_process(search, what, seed, url, folder, log=folder / "log")
        except Exception:
            print((folder / "log").read_text()[-4000:], file=sys.stderr)
            raise
        counted = stats(url)
    if set(counted["statuses"]) != {"200"}:
        raise RuntimeError(f"{row}: the server answered {counted['statuses']}; only 200 is sound")
    return Cell(sum(counted["calls"].values()), counted["tokens"], counted["seconds"], validation, true)


def mean(cells: list[Cell], name: str) -> float:
    return statistics.mean(getattr(cell, name) for cell in cells)


def report(cells: dict[str, list[Cell]]) -> bool:
    """Print the tables; whether all goals that could be compared were met."""
    head = ("optimizer", "calls", "tokens", "wall, s", "validation, %", "true accuracy, %")
    rows = []
    for row, found in cells.items():
        numbers = [f"{mean(found, 'calls'):.0f}", f"{mean(found, 'tokens'):.0f}", f"{mean(found, 'seconds'):.1f}"]
        rows.append((row, *numbers, f"{100 * mean(found, 'validation'):.1f}", f"{100 * mean(found, 'true'):.1f}"))
    print(f"{table(head, rows)}\n")
    is_met = True
    rows = []
    for ours, theirs, most_calls, most_wall in GOALS:
        if ours not in cells or theirs not in cells:
            continue
        calls = mean(cells[ours], "calls") / mean(cells[theirs], "calls")
        wall = mean(cells[ours], "seconds") / mean(cells[theirs], "seconds")
        points = [100 * (a.true - b.true) for a, b in zip(cells[ours], cells[theirs], strict=True)]
        goals = [f"{goal:.2f}" if goal else "" for goal in (most_calls, most_wall)]
        rows.append((f"{ours} / {theirs}", f"{calls:.2f}", goals[0], f"{wall:.2f}", goals[1], spread(points)))
        is_met &= calls <= (most_calls or calls) and wall <= (most_wall or wall)
    if rows:
        print(table(("ratio", "calls", "goal", "wall", "goal", "true accuracy, points"), rows))
    return is_met


def spread(points: list[float]) -> str:
    """The mean difference and its standard error."""
    text = f"{statistics.mean(points):+.1f}"
    return f"{text} ± {statistics.stdev(points) / len(points) ** 0.5:.1f}" if len(points) > 1 else text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=[*OURS, *DSPY], default=[*OURS, *DSPY])
    parser.add_argument("--latency", type=float, default=LATENCY_SECONDS, help="less: to see the choices of many seeds")
    options = parser.parse_args()
    cells: dict[str, list[Cell]] = {}
    for row in options.only:
        for seed in options.seeds:
            cell = measure(row, seed, options.latency)
            cells.setdefault(row, []).append(cell)
            print(f"{row}, seed {seed}: {cell}", file=sys.stderr, flush=True)
    print(f"seeds {' '.join(map(str, options.seeds))}; {options.latency:g} s a call; DSPy {dspy.__version__}\n")
    return 0 if report(cells) else 1


if __name__ == "__main__":
    raise SystemExit(main())
