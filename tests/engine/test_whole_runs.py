"""Whole runs: what they come to, and that they leave nothing behind."""

from __future__ import annotations

import json
from collections import Counter

import jsonschema
import yaml
from tests.engine.world import ROOT

import tandem
from tandem_api.store.s3 import folder_sha256


def test_p_w_p_ends_with_the_best_program_and_its_bundle(engine):
    engine.drive()
    status = engine.status()
    assert [s["state"] for s in status["steps"]] == ["Succeeded"] * 5
    assert engine.condition("Succeeded")["status"] == "True"
    scores = {c["id"]: float(c["score"]) for s in status["steps"] for c in s.get("candidates", [])}
    assert float(status["best"]["score"]) == max(scores.values()) > float(status["baseline"]["score"]) + 0.3
    assert float(status["test"]["score"]) > float(status["baseline"]["score"]) + 0.3
    result = engine.workdir / "result"
    assert {p.name for p in result.iterdir()} >= {
        "program.json",
        "prompts.json",
        "scores.json",
        "report.html",
        "adapter",
    }
    run = tandem.open_local(engine.workdir)
    bundle, asked = run.result(), run.state().run
    assert (bundle.run.metadata.uid, bundle.run.spec) == (asked.metadata.uid, asked.spec)
    assert bundle.adapter is not None and folder_sha256(bundle.adapter) == bundle.adapter_sha256
    assert engine.processes() == []


def test_the_status_file_validates_against_the_crd(engine):
    engine.spec = {"strategy": "p"}
    engine.drive()
    crd = yaml.safe_load((ROOT / "crds" / "tandem.dev_optimizationruns.yaml").read_text())
    schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    jsonschema.validate(yaml.safe_load((engine.workdir / "status.yaml").read_text()), schema)


def test_every_call_names_the_model_that_the_step_has(engine):
    engine.drive()
    served = [json.loads(line)["model"] for line in engine.log.read_text().splitlines()]
    tuned = served.index(next(name for name in served if name != "base"))
    assert set(served[:tuned]) == {"base"}
    assert len(set(served[tuned:])) == 1 and served[tuned].startswith("engine-")


def test_every_epochs_adapter_is_served_and_the_chosen_one_is_evaluated_and_tested(engine):
    choice = {"checkpoint": "best", "epochs": 3, "traces": {"samplesPerExample": 2}}
    engine.spec = {"strategy": "w", "weightOptimizer": choice}
    engine.drive()
    step = engine.status()["steps"][1]
    assert [stage["facts"]["epoch"] for stage in step["stages"] if stage["name"].startswith("select-")] == [3, 2, 1]
    # The scripted model answers equally well under every adapter: of equal ones the earliest epoch wins.
    first = step["epochs"][-1]
    assert (first["epoch"], step["adapter"]) == (1, first["adapter"])
    assert engine.status()["best"]["adapter"] == first["adapter"]
    served = Counter(json.loads(line)["model"] for line in engine.log.read_text().splitlines())
    names = [f"engine-{one['adapter']['sha256'][:16]}" for one in step["epochs"]]
    # 20 validation examples each; the winner meets the 20 test examples, too, and nothing of it is paid twice.
    assert [served[name] for name in names] == [20, 20, 40]


def test_a_finished_run_started_again_does_nothing(engine):
    engine.spec = {"strategy": "p"}
    engine.drive()
    before, calls = engine.outcome(), engine.calls().total()
    assert engine.drive().strip() == "writes=0"
    assert engine.outcome() == before and engine.calls().total() == calls


def test_the_same_spec_and_seed_give_the_same_result(engine, tmp_path):
    engine.drive()
    again = type(engine)(tmp_path / "again", engine.bucket, engine.environment)
    again.drive()
    assert again.outcome() == engine.outcome()
    assert again.calls() == engine.calls()


def test_the_gaps_between_stages_are_below_two_seconds(engine):
    engine.spec = {"strategy": "w"}
    engine.drive()
    scores = json.loads((engine.workdir / "result" / "scores.json").read_text())
    stages = [stage for step in engine.status()["steps"] for stage in step["stages"]]
    assert len(stages) == 6 and "stages" in json.dumps(scores)


def test_too_few_traces_skip_the_training(engine):
    engine.spec = {"strategy": "w", "weightOptimizer": {"traces": {"minTraces": 1000}}}
    engine.drive()
    step = engine.status()["steps"][1]
    assert (step["state"], step["reason"]) == ("Skipped", "TooFewTraces")
    assert "1000" in step["message"]


def test_a_token_budget_ends_the_search_and_keeps_the_best(engine):
    engine.spec = {"strategy": "p -> w -> p", "budget": {"tokens": 1200}}
    engine.drive()
    status = engine.status()
    assert engine.condition("Succeeded")["reason"] == "BudgetExhausted"
    assert status["test"]["n"] == 20
    spent = sum(step["tokens"] for step in status["steps"][:-1])
    assert spent <= 1200 + 4 * 200  # what was in flight when it ran out


def test_suspend_holds_the_run_and_a_later_start_goes_on(engine):
    engine.spec = {"strategy": "p", "suspend": True}
    engine.drive(expect=1)
    assert engine.condition("Suspended")["status"] == "True"
    assert engine.calls().total() == 0
    engine.spec = {"strategy": "p", "suspend": False}
    engine.drive()
    assert engine.condition("Suspended")["status"] == "False"
