"""A small but real run from a manifest to its result: vLLM, SeaweedFS, LoRA; killed once on the way and resumed.

The rest of the module looks at what that one run left: a run costs minutes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import dspy
import jsonschema
import psutil
import pytest
import yaml
from safetensors.numpy import load_file
from tests.scripted_lm.server import ScriptedServer

ROOT = Path(__file__).parent.parent.parent
TANDEM = [sys.executable, "-m", "tandem_operator.cli.main"]


def manifest(folder: Path) -> Path:
    """examples/reviews, with less of everything."""
    document = yaml.safe_load((ROOT / "examples" / "reviews" / "run.yaml").read_text())
    spec = document["spec"]
    for split, limit in (("train", 48), ("validation", 24), ("test", 24)):
        path = ROOT / "examples" / "reviews" / spec["data"][split]["uri"].removeprefix("file:")
        spec["data"][split] = {"uri": path.as_uri(), "limit": limit}
    spec["promptOptimizer"] |= {"candidates": 5, "validationSize": 16}
    spec["weightOptimizer"] |= {"epochs": 1, "rank": 8, "alpha": 16}
    spec["weightOptimizer"]["traces"] = {"samplesPerExample": 1, "minTraces": 4}
    document["metadata"]["name"] = "small"
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(document))
    return path


def alive(workdir: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get("TANDEM_WORKDIR") == str(workdir) and process.status() != "zombie":
                found.append(process)
        except psutil.Error:
            continue
    return found


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run whose engine was killed in the middle of the first p step."""
    folder = tmp_path_factory.mktemp("small")
    command = [*TANDEM, "run", "-f", str(manifest(folder)), "--local", "--workdir", str(folder / "work")]
    environment = os.environ | {"HF_HUB_OFFLINE": "1"}
    first = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    progress = folder / "work" / "tasks" / "small-1p-optimize-1" / "progress.json"
    deadline = time.monotonic() + 300
    while not (progress.exists() and json.loads(progress.read_text() or "{}").get("done", 0) >= 20):
        assert first.poll() is None, first.communicate()[0]
        assert time.monotonic() < deadline, "the p step did not begin within 300 s"
        time.sleep(0.2)
    first.send_signal(signal.SIGKILL)
    first.communicate()
    deadline = time.monotonic() + 60
    while alive((folder / "work").resolve()):
        assert time.monotonic() < deadline, f"left behind: {alive((folder / 'work').resolve())}"
        time.sleep(0.2)
    second = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=1500, check=False)
    assert second.returncode == 0, second.stdout + second.stderr
    print(second.stdout)
    assert alive((folder / "work").resolve()) == []
    return folder / "work"


@pytest.fixture(scope="module")
def resource(workdir: Path) -> dict:
    return yaml.safe_load((workdir / "status.yaml").read_text())


@pytest.mark.timeout(2000)
def test_a_real_run_that_was_killed_ends_with_a_result(resource):
    status = resource["status"]
    assert next(c for c in status["conditions"] if c["type"] == "Succeeded")["status"] == "True"
    assert [step["state"] for step in status["steps"]] == ["Succeeded"] * 5
    assert status["test"]["n"] == 24
    assert float(status["best"]["score"]) >= float(status["baseline"]["score"])


def test_its_status_validates_against_the_crd(resource):
    crd = yaml.safe_load((ROOT / "crds" / "tandem.dev_optimizationruns.yaml").read_text())
    jsonschema.validate(resource, crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"])


def test_the_tuned_adapter_is_what_the_later_steps_ran_on(resource, workdir):
    steps = resource["status"]["steps"]
    adapter = steps[2]["adapter"]["sha256"]
    assert {c["adapter"]["sha256"] for step in steps[2:4] for c in step["candidates"]} == {adapter}
    log = (workdir / "logs" / "serving.log").read_text()
    assert f"small-{adapter[:16]}" in log


def test_the_bundle_is_whole(workdir, resource):
    result = workdir / "result"
    scores = json.loads((result / "scores.json").read_text())
    assert {"baseline", "best", "test", "candidates", "stages"} <= scores.keys()
    assert (result / "report.html").read_text().startswith("<!")
    if resource["status"]["best"].get("adapter"):
        weights = load_file(result / "adapter" / "adapter_model.safetensors")
        assert weights and any(abs(w).max() > 0 for name, w in weights.items() if "lora_B" in name)


def test_the_program_loads_and_answers_with_plain_dspy(workdir):
    program = dspy.Predict("review -> sentiment: Literal['positive', 'negative']")
    program.load(str(workdir / "result" / "program.json"))
    answer = "[[ ## sentiment ## ]]\npositive\n\n[[ ## completed ## ]]"
    with ScriptedServer(lambda request: answer) as server:
        lm = dspy.LM("openai/base", api_base=f"{server.url}/v1", api_key="none", cache=False)
        with dspy.context(lm=lm):
            assert program(review="I liked it.").sentiment == "positive"
        sent = server.requests[-1]["text"]
    prompts = json.loads((workdir / "result" / "prompts.json").read_text())
    assert program.signature.instructions in json.dumps(prompts, ensure_ascii=False)
    for demo in program.demos:
        assert demo["review"] in sent
