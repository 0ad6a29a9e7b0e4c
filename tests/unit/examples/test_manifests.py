from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from tests.unit.examples.loading import EXAMPLES, script

from tandem_api.v1alpha1.run import parse_run
from tandem_operator.cli.manifest import parse, parse_for_cluster, read_manifest
from tandem_trainer.program.loading import load_program

MAKE = script("make_manifests.py")
CELLS = [(task, model) for task in MAKE.TASKS for model in MAKE.MODELS]
LOCAL = sorted(EXAMPLES.glob("*/run.yaml"))
#: Those of pipelines/ are other tools' manifests.
CLUSTER = sorted(path for path in set(EXAMPLES.glob("*/*.yaml")) - set(LOCAL) if path.parent.name != "pipelines")


def name(path: Path) -> str:
    return f"{path.parent.name}/{path.stem}"


def test_the_papers_nine_cells_are_there() -> None:
    assert len(CELLS) == 9
    assert {EXAMPLES / task / f"{model}.yaml" for task, model in CELLS} <= set(CLUSTER)
    assert len({path.parent.name for path in LOCAL}) == 4


@pytest.mark.parametrize(("task", "model"), CELLS)
def test_the_script_makes_exactly_the_manifests_that_are_here(task: str, model: str) -> None:
    assert (EXAMPLES / task / f"{model}.yaml").read_text(encoding="utf-8") == MAKE.render(task, model)


@pytest.mark.parametrize("path", LOCAL, ids=name)
def test_a_local_manifest_is_valid_on_one_machine(path: Path) -> None:
    parse(read_manifest(path))


@pytest.mark.parametrize("path", CLUSTER, ids=name)
def test_a_cluster_manifest_is_valid_on_a_cluster(path: Path) -> None:
    parse_for_cluster(read_manifest(path))


@pytest.mark.parametrize("path", CLUSTER, ids=name)
def test_no_decimal_is_left_to_be_read_as_a_number(path: Path) -> None:
    """`1e-5` without quotes is a text to one reader of YAML and a number to the next."""
    text = path.read_text(encoding="utf-8")
    assert re.findall(r":\s+[\d.]+[eE.][-+\d]+\s*$", text, re.MULTILINE) == []


@pytest.mark.parametrize(("task", "model"), CELLS)
def test_a_cell_has_the_papers_settings(task: str, model: str) -> None:
    spec = parse_run(MAKE.manifest(task, model)).spec
    prompts, weights, sampling = spec.prompt_optimizer, spec.weight_optimizer, spec.model.sampling
    assert spec.strategy_text == "p -> w -> p"
    assert prompts.type == "bootstrap-random-search"
    assert (prompts.candidates, prompts.max_bootstrapped_demos, prompts.max_labeled_demos) == (6, 3, 3)
    assert prompts.exhaustive
    assert (prompts.train_size, prompts.validation_size) == ((15, 35) if task == "iris" else (100, 250))
    assert (weights.rank, weights.alpha, weights.dropout) == (32, 64, "0")
    assert weights.target_modules == ("q_proj", "k_proj")
    assert (weights.epochs, weights.learning_rate, weights.batch_size, weights.precision) == (5, "1e-5", 8, "bf16")
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == ("0.1", "0.97", 1024)
    assert spec.serving.resources is not None
    assert spec.serving.resources["limits"] == {"nvidia.com/gpu": 1}


@pytest.mark.usefixtures("cache")
@pytest.mark.parametrize("path", LOCAL, ids=name)
def test_the_program_of_a_local_manifest_loads(path: Path) -> None:
    run = parse_run(yaml.safe_load(path.read_text(encoding="utf-8")))
    assert load_program(run.spec, code_path=path.parent).predictors


@pytest.mark.parametrize("task", ["gsm8k", "iris"])
def test_the_program_of_a_cell_loads(task: str) -> None:
    program = load_program(parse_run(MAKE.manifest(task, "llama-3-8b")).spec)
    assert program.predictors == ("predict",)


def test_what_came_of_a_run_is_read_from_its_status(tmp_path: Path) -> None:
    run_all = script("run_all.py")
    status = {
        "baseline": {"score": "0.1000"},
        "best": {"score": "0.3000"},
        "test": {"score": "0.2500"},
        "usage": {"promptTokens": 1000, "completionTokens": 23},
    }
    (tmp_path / "status.yaml").write_text(yaml.safe_dump({"status": status}), encoding="utf-8")
    assert run_all.summary("iris", tmp_path).split() == ["iris", "0.1000", "0.3000", "0.2500", "1023"]
    assert run_all.summary("iris", tmp_path / "nothing").split() == ["iris", "-", "-", "-", "0"]
