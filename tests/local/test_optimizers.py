"""A step of mipro, one of gepa and one of DSPy's own on a real model, in one run from a manifest; a worker is killed.

The rest of the module looks at what that one run left: a run costs minutes.
"""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dspy
import psutil
import pytest
import yaml
from tests.local.test_small_run import ROOT, TANDEM, alive

from tandem_api.layout import RunLayout, StageLayout
from tandem_api.records import PromptSet, ScoredExample, WrittenText
from tandem_api.store import S3Store
from tandem_operator.platforms.local.storage import EmbeddedStorage
from tandem_operator.platforms.local.workdir import Workdir

#: Small models write short; the model's context is 1024 tokens, and the prompt needs some of them, too.
PROPOSER = {"maxTokens": 80}
STEPS: list[dict[str, Any]] = [
    {
        "type": "mipro",
        "instructions": 3,
        "demoSets": 3,
        "trials": 4,
        "minibatchSize": 8,
        "maxBootstrappedDemos": 2,
        "maxLabeledDemos": 2,
        "proposer": PROPOSER,
    },
    {"type": "gepa", "maxMetricCalls": 50, "proposer": PROPOSER},
    {
        "type": "dspy",
        "class": "BootstrapFewShotWithRandomSearch",
        "args": {"max_bootstrapped_demos": 2, "max_labeled_demos": 2, "num_candidate_programs": 2},
    },
]
MIPRO, GEPA, DSPY = 1, 2, 3
EXAMPLES = 20


def manifest(folder: Path) -> Path:
    """examples/reviews with these steps and little data."""
    document = yaml.safe_load((ROOT / "examples" / "reviews" / "run.yaml").read_text())
    spec = document["spec"]
    for split in ("train", "validation", "test"):
        path = ROOT / "examples" / "reviews" / spec["data"][split]["uri"].removeprefix("file:")
        spec["data"][split] = {"uri": path.as_uri(), "limit": EXAMPLES}
    spec["strategy"] = [{"kind": "p", "promptOptimizer": settings} for settings in STEPS]
    del spec["promptOptimizer"], spec["weightOptimizer"]
    document["metadata"]["name"] = "optimizers"
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def kill_the_worker(workdir: Path, command: subprocess.Popen[str]) -> None:
    """In the middle of the mipro step."""
    task = workdir / "tasks" / "optimizers-1p-optimize-1"
    deadline = time.monotonic() + 300
    while not ((task / "progress.json").exists() and json.loads((task / "progress.json").read_text())["done"] >= 24):
        assert command.poll() is None, command.communicate()[0]
        assert time.monotonic() < deadline, "the mipro step did not come to its middle within 300 s"
        time.sleep(0.1)
    request = str(task / "request.json")
    (worker,) = [p for p in alive(workdir) if _environment(p).get("TANDEM_REQUEST_FILE") == request]
    worker.kill()


def _environment(process: psutil.Process) -> dict[str, str]:
    try:
        return process.environ()
    except psutil.Error:
        return {}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the finished run."""
    folder = tmp_path_factory.mktemp("optimizers")
    found = (folder / "work").resolve()
    command = subprocess.Popen(
        [*TANDEM, "run", "-f", str(manifest(folder)), "--local", "--workdir", str(found)],
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        kill_the_worker(found, command)
        output, _ = command.communicate(timeout=900)
        assert command.returncode == 0, output
    finally:
        command.kill()
    print(output)
    assert alive(found) == []
    return found


@pytest.fixture(scope="module")
def status(workdir: Path) -> dict[str, Any]:
    document: dict[str, Any] = yaml.safe_load((workdir / "status.yaml").read_text())
    return document


@pytest.fixture(scope="module")
def store(workdir: Path, status: dict[str, Any]) -> Iterator[S3Store]:
    """What the run has stored."""
    storage = EmbeddedStorage(Workdir(workdir), dict(os.environ), print)
    storage.start()
    try:
        storage.wait_until_ready()
        with pytest.MonkeyPatch.context() as patch:
            for name, value in storage.credentials.items():
                patch.setenv(name, value)
            yield S3Store(storage.ref.bucket, str(storage.ref.endpoint), str(storage.ref.region))
    finally:
        storage.stop()


@pytest.fixture(scope="module")
def layouts(status: dict[str, Any]) -> dict[int, StageLayout]:
    """Where the optimize stages' objects lie, by step."""
    metadata = status["metadata"]
    run = RunLayout("", "default", metadata["name"], metadata["uid"])
    return {index: run.stage(index, "p", "optimize") for index in (MIPRO, GEPA, DSPY)}


def lines(store: S3Store, prefix: str) -> list[str]:
    """Of all objects under the prefix."""
    return [line for key in store.list(prefix) for line in (store.get(key) or b"").decode().splitlines()]


@pytest.mark.timeout(1000)
def test_the_run_ends_with_a_result_though_a_worker_was_killed(status: dict[str, Any]) -> None:
    found = status["status"]
    assert next(c for c in found["conditions"] if c["type"] == "Succeeded")["status"] == "True"
    assert [step["state"] for step in found["steps"]] == ["Succeeded"] * 5
    assert [step["stages"][-1]["failures"] for step in found["steps"]] == [0, 1, 0, 0, 0]
    assert found["test"]["n"] == EXAMPLES
    assert float(found["best"]["score"]) >= float(found["baseline"]["score"])


@pytest.mark.parametrize("index", [MIPRO, GEPA, DSPY])
def test_every_step_scores_its_candidates_with_calls_of_the_served_model(
    index: int, status: dict[str, Any], store: S3Store, layouts: dict[int, StageLayout]
) -> None:
    step = status["status"]["steps"][index]
    trials = [json.loads(line) for line in lines(store, layouts[index].trials)]
    assert trials[0]["kind"] == "starting"
    full = [trial["full"]["score"] for trial in trials if trial["full"]]
    assert float(step["score"]) == pytest.approx(max(full), abs=1e-4)
    assert max(full) >= float(status["status"]["baseline"]["score"]), "the start is among them"
    assert all(trial["full"]["n"] == EXAMPLES for trial in trials if trial["full"])
    runs = [ScoredExample.model_validate_json(line) for line in lines(store, layouts[index].ledger)]
    assert len({run.candidate for run in runs}) > 1
    written = [WrittenText.model_validate_json(line) for line in lines(store, layouts[index].calls)]
    assert written and all(text.usage.completion_tokens > 0 for text in written)
    assert len({record.key for record in [*runs, *written]}) == len(runs) + len(written), "nothing was paid twice"
    calls = sum(record.usage.calls for record in [*runs, *written])
    assert step["stages"][0]["usage"]["calls"] == calls > EXAMPLES


def test_gepa_has_the_model_reflect(status: dict[str, Any]) -> None:
    # So small a model finds no better instruction by it: what is kept, and whether, is not for this test.
    facts = status["status"]["steps"][GEPA]["stages"][0]["facts"]
    assert facts["reflections"] > 0 and facts["metric_calls"] <= 50


def test_mipro_tries_instructions_that_the_model_wrote(
    status: dict[str, Any], store: S3Store, layouts: dict[int, StageLayout]
) -> None:
    facts = status["status"]["steps"][MIPRO]["stages"][0]["facts"]
    assert facts["trials"] == 4 and facts["proposals"] == 2 and facts["proposals_failed"] == 0, facts
    instructions = set()
    for trial in (json.loads(line) for line in lines(store, layouts[MIPRO].trials)):
        key = layouts[MIPRO].prompt_set(trial["prompts"]["sha256"])
        prompts = PromptSet.model_validate_json(store.get(key) or b"")
        instructions |= {prompt.instruction for prompt in prompts.predictors.values()}
    assert len(instructions) > 1


def test_the_best_program_loads_with_plain_dspy(workdir: Path, status: dict[str, Any]) -> None:
    program = dspy.Predict("review -> sentiment: Literal['positive', 'negative']")
    program.load(str(workdir / "result" / "program.json"))
    prompts = json.loads((workdir / "result" / "prompts.json").read_text())["predictors"]
    (prompt,) = prompts.values()
    assert program.signature.instructions == prompt["instruction"]
    assert [dict(demo) for demo in program.demos] == prompt["demos"]
    best = status["status"]["best"]
    is_changed = prompt["demos"] or prompt["instruction"] != "Decide whether the review is positive or negative."
    assert bool(is_changed) == ("promptSet" in best)
