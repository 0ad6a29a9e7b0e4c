"""Faults of the server that has the adapter, through whole runs: the base model is never scored in the adapter's place.

Faults of any server are in test_faults.py.
"""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from typing import Any

import psutil
import pytest
import yaml
from tests.engine.world import CONCURRENCY, Engine

pytestmark = pytest.mark.case("serving")
#: What a server's faults may cost, beside times.
COSTS = {"attempt", "attempts", "failures", "restarts", "serving"}
FOR_EVER = 10**9
#: Longer than any call is waited for.
WEDGED = {"latency": 3600}


def without_costs(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_costs(item) for key, item in value.items() if key not in COSTS}
    return [without_costs(item) for item in value] if isinstance(value, list) else value


def named(engine: Engine, *, canaries: bool = False) -> list[str]:
    """The model that each call so far has named, or each canary."""
    if not engine.log.exists():
        return []
    found = []
    for line in engine.log.read_text().splitlines(keepends=True):
        if line.endswith("\n"):
            request = json.loads(line)
            if ("prompt_logprobs" in request) == canaries:
                found.append(request["model"])
    return found


def assert_same_scores(engine: Engine, calm: Engine) -> None:
    """The same result, and from the first call under the adapter's name on no other model was asked."""
    assert without_costs(engine.outcome()) == without_costs(calm.outcome())
    names = named(engine)
    tuned = next(number for number, name in enumerate(names) if name != "base")
    assert set(names[:tuned]) == {"base"} and len(set(names[tuned:])) == 1


def stage_of(engine: Engine, step: int, name: str) -> dict[str, Any]:
    if not (engine.workdir / "status.yaml").exists():
        return {}
    stages = [stage for one in engine.status()["steps"] if one["index"] == step for stage in one.get("stages", ())]
    return next((stage for stage in stages if stage["name"] == name), {})


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory, bucket: Any) -> Callable[..., Engine]:
    s3, environment = bucket

    def build(faults: dict[str, Any], **evaluation: Any) -> Engine:
        engine = Engine(tmp_path_factory.mktemp("serving") / "run", s3, environment)
        engine.spec = {"strategy": "w", "evaluation": {"concurrency": CONCURRENCY, **evaluation}}
        engine.faults = {"canary": 0, **faults}
        return engine

    return build


@pytest.fixture(scope="module")
def calm(make: Callable[..., Engine]) -> Engine:
    engine = make({})
    engine.drive()
    return engine


def test_every_stage_with_an_adapter_asks_for_its_canary_first(calm):
    names, canaries = named(calm), named(calm, canaries=True)
    assert len(canaries) == 2, "the evaluation and the final test"
    assert set(canaries) == set(names) - {"base"}
    assert calm.status()["usage"]["calls"] == len(names), "canaries are not counted"


def test_the_base_model_behind_the_adapters_name_costs_an_attempt_and_no_score(make, calm):
    engine = make({"canary": 1})
    engine.drive()
    assert_same_scores(engine, calm)
    assert stage_of(engine, 1, "evaluate")["attempt"] == 2
    events = (engine.workdir / "events.jsonl").read_text()
    assert "WrongAdapter" in events and "with the base model" in events


def test_the_base_model_behind_the_adapters_name_for_good_fails_the_run_with_the_cause(make, store):
    engine = make({"canary": FOR_EVER})
    engine.spec["attempts"] = 2
    engine.drive(expect=1)
    succeeded = engine.condition("Succeeded")
    assert succeeded["reason"] == "WrongAdapter"
    assert "with the base model (canary" in succeeded["message"]
    status = engine.status()
    assert status["steps"][1]["candidates"] == [] and status["best"] == status["baseline"]
    assert set(named(engine)) == {"base"}, "nothing but canaries was asked under the adapter's name"
    uid = yaml.safe_load((engine.workdir / "status.yaml").read_text())["metadata"]["uid"]
    ledgers = [key for key in store.list("") if uid in key and "/evaluate/ledger/" in key]
    assert ledgers and all("/0-baseline/" in key for key in ledgers)


@pytest.mark.parametrize("fault", [WEDGED, {"status": 500}, {"drop": True}], ids=["wedged", "500s", "no answers"])
def test_a_server_that_is_ill_for_longer_than_it_is_waited_for_costs_an_attempt_and_no_score(
    make, calm, tmp_path, fault
):
    well = tmp_path / "well"
    engine = make({"tuned": fault, "until": str(well)}, requestTimeoutSeconds=1, unavailableTimeoutSeconds=3)
    process = engine.start()
    engine.wait_for("a failed attempt", lambda: stage_of(engine, 1, "evaluate").get("failures"), 120)
    well.touch()
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, f"{output}\n{engine.logs()}"
    assert_same_scores(engine, calm)
    assert "ServingUnavailable" in (engine.workdir / "events.jsonl").read_text()


def test_a_server_that_stays_wedged_fails_the_run_with_the_cause(make):
    engine = make({"tuned": WEDGED}, requestTimeoutSeconds=1, unavailableTimeoutSeconds=2)
    engine.spec["attempts"] = 2
    engine.drive(expect=1)
    succeeded = engine.condition("Succeeded")
    assert succeeded["reason"] == "ServingUnavailable" and "gave no answer for 2 s" in succeeded["message"]
    assert stage_of(engine, 1, "evaluate")["failures"] == 2
    assert engine.status()["steps"][1]["candidates"] == []


def test_a_slow_server_is_waited_for(make, calm):
    engine = make({})
    engine.drive("--latency", "0.5")
    assert_same_scores(engine, calm)
    assert stage_of(engine, 1, "evaluate")["attempt"] == 1


def test_a_server_killed_while_its_adapter_is_scored_comes_back_with_the_adapter(make, calm):
    engine = make({}, unavailableTimeoutSeconds=60)
    process = engine.start("--latency", "0.2")
    engine.wait_for("calls under the adapter's name", lambda: len(set(named(engine))) > 1, 180)
    (server,) = [one for one in engine.processes() if any("scripted_lm" in word for word in cmdline(one))]
    server.send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, f"{output}\n{engine.logs()}"
    assert_same_scores(engine, calm)
    assert "ServingFailed" in (engine.workdir / "events.jsonl").read_text()


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
