"""Whole runs in which each predictor has an adapter of its own: every call goes to the right one."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.engine.world import Engine

OWN = {"adapters": "per-predictor", "traces": {"samplesPerExample": 2, "minPerPredictor": 8}}


@pytest.fixture
def noted(engine: Engine) -> Engine:
    program = {"entrypoint": "tests.engine.predictors:build", "adapter": "plain"}
    engine.spec = {"program": program, "strategy": "w -> p", "weightOptimizer": OWN}
    return engine


def calls(engine: Engine) -> list[tuple[str, str]]:
    """The predictor, told by the field it was asked for, and the model of each call, in their order."""
    fields = {"Note:": "note", "Sentiment:": "label", "Opinion:": "check"}
    requests = [json.loads(line) for line in engine.log.read_text().splitlines()]
    return [(fields.get(request["text"].splitlines()[-1], "other"), request["model"]) for request in requests]


def adapter_of(engine: Engine, index: int = 1) -> dict[str, Any]:
    return engine.status()["steps"][index]["adapter"]


def test_after_the_step_each_predictor_is_called_under_its_own_adapter(noted: Engine) -> None:
    noted.drive()
    adapter = adapter_of(noted)
    assert adapter["adapters"] == 2
    name = f"engine-{adapter['sha256'][:16]}"
    told = calls(noted)
    tuned = next(at for at, (_, model) in enumerate(told) if model != "base")
    assert {model for _, model in told[:tuned]} == {"base"}
    # `check` is in too few traces: it keeps the base model.
    assert set(told[tuned:]) == {("label", f"{name}-0"), ("note", f"{name}-1"), ("check", "base")}
    stages = {stage["name"]: stage for stage in noted.status()["steps"][1]["stages"]}
    assert "check (" in stages["traces"]["message"]
    # The result holds all adapters and says whose they are.
    result = noted.workdir / "result"
    index = json.loads((result / "adapter" / "predictors.json").read_text())
    assert index["predictors"] == ["label", "steps[0]"]
    weights = {(result / "adapter" / number / "adapter_model.safetensors").read_text() for number in ("0", "1")}
    assert len(weights) == 2
    report = (result / "report.html").read_text()
    assert "engine-adapter-0=./adapter/0" in report and "engine-adapter-1=./adapter/1" in report


def test_a_second_step_goes_on_from_each_predictors_adapter(noted: Engine) -> None:
    noted.spec["strategy"] = "w -> w"
    noted.drive()
    first, second = adapter_of(noted, 1), adapter_of(noted, 2)
    assert first["adapters"] == second["adapters"] == 2 and first["sha256"] != second["sha256"]
    told = calls(noted)
    before = {predictor for predictor, model in told if model.startswith(f"engine-{first['sha256'][:16]}-")}
    after = {predictor for predictor, model in told if model.startswith(f"engine-{second['sha256'][:16]}-")}
    assert before == after == {"label", "note"}
