"""Prompt search beside DSPy's, on a real model: SmolLM2-135M on vLLM without a GPU, the data of examples/reviews.

    python tests/bench/real_search.py --out runs/real-search [--seeds 0 1 2] [--quick] [--url http://127.0.0.1:8000]

Every cell, an optimizer with a seed, is a JSON file under --out; a cell that is there is not run again, so the command
can be stopped and started at will. It prints a Markdown table of the cells that there are.

Both sides search for the same program in the same format (`completions.py`), with 32 calls at once, on one server, for
demos (at most 4) and instructions (at most 256 tokens), greedily; the training examples are shuffled by the seed, the
same for both. Calls and tokens are vLLM's own counts, wall time is that of the search in its process. vLLM's prefix
cache and DSPy's cache are empty before each search. Validation is the score that the optimizer found for its choice;
the choice is then scored on the test set by Tandem's `evaluate` stage, whichever side it comes from.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import dspy
import yaml

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.bench.common import MODEL, ROOT, in_process, optimize, stage_context, table
from tests.bench.completions import PlainForDspy, plain_lm
from tests.bench.dspy_side import Compared, compile_with, fresh_cache, prompts_of, validation_score
from tests.memory_store import MemoryStore

from tandem_api.canonical import canonical_json
from tandem_api.contract import Prompts
from tandem_api.records import PredictorPrompt, PromptSet
from tandem_operator.platforms.local.machine import free_port
from tandem_trainer.evaluate.metrics import exact_match
from tandem_trainer.stages import evaluate

EXAMPLE = ROOT / "examples" / "reviews"
SLOTS, DEMOS, CANDIDATES, PROPOSAL_TOKENS = 32, 4, 6, 256

#: The settings of our `p` step, or the name of DSPy's optimizer; None: the program as it is.
ROWS: dict[str, dict[str, Any] | str | None] = {
    "no search": None,
    "Tandem BFRS, 9 candidates": {"candidates": CANDIDATES + 3},
    "DSPy BFRS, 6 + 3 candidates": "bfrs",
    "Tandem mipro light": {"type": "mipro", "auto": "light", "proposer": {"maxTokens": PROPOSAL_TOKENS}},
    "DSPy MIPROv2 light": "mipro",
}
#: Examples of training, validation and test: all, or what --quick takes.
ALL, QUICK = (200, 100, 200), (24, 12, 12)
START_SECONDS = 600


@contextmanager
def model_server(log: Path) -> Iterator[str]:
    """The URL of vLLM with the example's model, on this machine."""
    port = free_port()
    command = [sys.executable, "-m", "tandem_trainer.serving", "--model", _manifest()["model"]["uri"]]
    # 4096 tokens: DSPy shows its proposer ten examples and the source of the program at once.
    command += ["--port", str(port), "--served-name", MODEL, "--", "--max-model-len=4096"]
    with log.open("w") as file, _ended(subprocess.Popen(command, stdout=file, stderr=file, env=_with_reset())) as vllm:
        url = f"http://127.0.0.1:{port}"
        deadline = time.monotonic() + START_SECONDS
        while not _is_ready(url):
            if vllm.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"vLLM did not start; the end of {log}:\n{log.read_text()[-2000:]}")
            time.sleep(0.5)
        yield url


@contextmanager
def _ended(process: subprocess.Popen[bytes]) -> Iterator[subprocess.Popen[bytes]]:
    try:
        yield process
    finally:
        process.terminate()
        process.wait(60)


def _with_reset() -> dict[str, str]:
    """The environment in which vLLM lets its prefix cache be emptied."""
    return os.environ | {"VLLM_SERVER_DEV_MODE": "1"}


def _is_ready(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5):
            return True
    except OSError:
        return False


def _manifest() -> dict[str, Any]:
    spec: dict[str, Any] = yaml.safe_load((EXAMPLE / "run.yaml").read_text())["spec"]
    return spec


def counts(url: str) -> dict[str, int]:
    """What vLLM has done since it started: calls, tokens of prompts and completions."""
    with urllib.request.urlopen(f"{url}/metrics", timeout=30) as response:
        text = response.read().decode()
    names = {"calls": "request_success", "prompt_tokens": "prompt_tokens", "completion_tokens": "generation_tokens"}
    found = {}
    for ours, theirs in names.items():
        values = re.findall(rf"^vllm:{theirs}_total\{{[^}}]*\}} (\S+)$", text, re.MULTILINE)
        found[ours] = round(sum(map(float, values)))
    return found


def write_data(seed: int, sizes: tuple[int, int, int], folder: Path) -> dict[str, Any]:
    """The `data` of a spec; the training examples in an order of the seed."""
    data: dict[str, Any] = {"inputs": ["review"]}
    for split, size in zip(("train", "validation", "test"), sizes, strict=True):
        lines = (EXAMPLE / "data" / f"{split}.jsonl").read_text().splitlines(keepends=True)
        if split == "train":
            random.Random(seed).shuffle(lines)
        path = folder / f"{split}.jsonl"
        path.write_text("".join(lines[:size]))
        data[split] = {"uri": path.as_uri()}
    return data


def spec_of(data: dict[str, Any], settings: dict[str, Any], seed: int) -> dict[str, Any]:
    found = _manifest()
    demos = {"maxBootstrappedDemos": DEMOS, "maxLabeledDemos": DEMOS}
    return {
        **{name: found[name] for name in ("program", "metric", "model")},
        "data": data,
        "strategy": "p",
        "promptOptimizer": {**demos, **settings},
        "evaluation": {"concurrency": SLOTS, "maxErrorRate": "1"},
        "seed": seed,
    }


def search(row: str, seed: int, data: dict[str, Any], url: str, folder: Path) -> tuple[float, float, PredictorPrompt]:
    """Seconds, the validation score of the choice, and the choice."""
    what = ROWS[row]
    began = time.perf_counter()
    if isinstance(what, str):
        program = _search_dspy(what, seed, data, url, folder)
        return time.perf_counter() - began, validation_score(program), prompts_of(program)
    assert what is not None
    result, store = optimize(spec_of(data, what, seed), url, folder)
    seconds = time.perf_counter() - began
    prompt = PredictorPrompt(instruction=_manifest()["program"]["inline"]["instructions"])
    if result.prompt_set is not None:
        (prompt,) = PromptSet.model_validate_json(store.fetch(result.prompt_set)).predictors.values()
    return seconds, result.scores[0].score, prompt


def _search_dspy(optimizer: str, seed: int, data: dict[str, Any], url: str, folder: Path) -> Any:
    inline = _manifest()["program"]["inline"]
    fresh_cache(folder)
    task_model = plain_lm(url, MODEL, max_tokens=_manifest()["model"]["sampling"]["maxTokens"], temperature=0.0)
    prompt_model = plain_lm(url, MODEL, max_tokens=PROPOSAL_TOKENS, temperature=0.7)
    dspy.configure(lm=task_model, adapter=PlainForDspy())
    train, validation = (
        [dspy.Example(**json.loads(line)).with_inputs("review") for line in _lines(data[split]["uri"])]
        for split in ("train", "validation")
    )
    return compile_with(
        optimizer,
        dspy.Predict(dspy.Signature(inline["signature"], inline["instructions"])),
        lambda gold, found, trace=None: exact_match(gold.sentiment, found.sentiment) == 1,
        train,
        validation,
        Compared(SLOTS, seed, CANDIDATES, DEMOS),
        prompt_model,
    )


def _lines(uri: str) -> list[str]:
    return Path(uri.removeprefix("file://")).read_text().splitlines()


def score(prompt: PredictorPrompt, split: str, data: dict[str, Any], url: str, folder: Path) -> float:
    """The score of a prompt on a split, by the `evaluate` stage."""
    store = MemoryStore()
    prompts = PromptSet(predictors={"self": prompt})
    artifact = store.put("prompts.json", canonical_json(prompts.model_dump(mode="json")).encode())
    context = stage_context(
        spec_of(data, {}, 0), url, folder, store, index=0, kind="baseline", stage="evaluate", split=split,
        prompts=(Prompts(label="current", artifact=artifact),),
    )  # fmt: skip
    return evaluate.run(context).scores[0].score


def measure(row: str, seed: int, sizes: tuple[int, int, int], url: str, folder: Path) -> dict[str, Any]:
    """One cell, as JSON."""
    folder.mkdir(parents=True, exist_ok=True)
    data, log = write_data(seed, sizes, folder), folder / "log"
    cell: dict[str, Any] = {"row": row, "seed": seed, "sizes": sizes}
    if ROWS[row] is None:
        prompt = PredictorPrompt(instruction=_manifest()["program"]["inline"]["instructions"])
        cell["validation"] = in_process(score, prompt, "validation", data, url, folder, log=log)
    else:
        _forget_prefixes(url)
        before = counts(url)
        seconds, cell["validation"], prompt = in_process(search, row, seed, data, url, folder, log=log)
        cell |= {"seconds": seconds, **{name: count - before[name] for name, count in counts(url).items()}}
    cell["test"] = in_process(score, prompt, "test", data, url, folder, log=folder / "test.log")
    return cell | {"instruction": prompt.instruction, "demos": len(prompt.demos), "dspy": dspy.__version__}


def _forget_prefixes(url: str) -> None:
    with urllib.request.urlopen(urllib.request.Request(f"{url}/reset_prefix_cache", method="POST"), timeout=60):
        pass


def report(cells: list[dict[str, Any]]) -> str:
    """The table: means over the seeds, the test score of each."""
    rows = []
    for row in ROWS:
        found = [cell for cell in cells if cell["row"] == row]
        if not found:
            continue
        cost = [""] * 3
        if "calls" in found[0]:
            tokens = [cell["prompt_tokens"] + cell["completion_tokens"] for cell in found]
            wall, calls = (statistics.mean(cell[name] for cell in found) for name in ("seconds", "calls"))
            cost = [f"{wall:.0f}", f"{calls:.0f}", f"{statistics.mean(tokens):,.0f}"]
        validation, test = (statistics.mean(cell[name] for cell in found) for name in ("validation", "test"))
        each = " ".join(f"{100 * cell['test']:.1f}" for cell in found)
        rows.append((row, *cost, f"{100 * validation:.1f}", f"{100 * test:.1f}", each))
    head = ("optimizer", "wall, s", "calls", "tokens", "validation, %", "test, %", "test by seed")
    return table(head, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else "")
    parser.add_argument("--out", type=Path, required=True, help="folder of the cells")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--only", nargs="+", choices=ROWS, default=list(ROWS))
    parser.add_argument("--quick", action="store_true", help="a tenth of the data: whether it works, no measurement")
    parser.add_argument("--url", help="a vLLM that serves the model as `base` already, with VLLM_SERVER_DEV_MODE=1")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the server is stopped, too
    out = options.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    paths = {
        (row, seed): out / f"{re.sub('[^a-z0-9]+', '-', row.lower())}-{seed}{'-quick' * options.quick}.json"
        for row in options.only
        for seed in options.seeds
    }
    missing = [key for key, path in paths.items() if not path.exists()]
    with nullcontext(options.url) if options.url or not missing else model_server(out / "vllm.log") as url:
        for row, seed in missing:
            path = paths[row, seed]
            cell = measure(row, seed, QUICK if options.quick else ALL, url, out / path.stem)
            path.write_text(json.dumps(cell, indent=1))
            print(f"{row}, seed {seed}: {cell}", file=sys.stderr, flush=True)
    print(report([json.loads(path.read_text()) for path in paths.values()]))


if __name__ == "__main__":
    main()
