"""A whole run that nobody disturbs: what everything else in this layer is compared with."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from tests.engine.world import ROOT, Engine
from tests.faults.world import SPLITS, World, rows


class SameData(Engine):
    """A run of the engine tests with this layer's examples."""

    def write(self) -> Path:
        path = super().write()
        for split, (first, count) in SPLITS.items():
            (self.folder / f"{split}.jsonl").write_text(rows(first, count))
        return path


def scores(status: dict[str, Any]) -> list[Any]:
    """All that were measured, in order."""
    candidates = [[one["score"] for one in step.get("candidates", [])] for step in status["steps"]]
    return [*candidates, status["baseline"]["score"], status["best"]["score"], status["test"]["score"]]


@pytest.mark.full
def test_an_undisturbed_run_ends_as_on_one_machine_and_leaves_what_the_documentation_says(
    world: World, tmp_path: Path
) -> None:
    world.operator.start()
    spec = world.apply_run()["spec"]
    status = world.wait_finished()
    assert [step["state"] for step in status["steps"]] == ["Succeeded"] * 5
    assert float(status["best"]["score"]) > float(status["baseline"]["score"])

    jobs = [f"Job/{job['metadata']['name']}" for job in world.jobs()]
    kept = ["ConfigMap/run-spec", "NetworkPolicy/run-serving", "NetworkPolicy/run-workers"]
    assert world.children() == sorted([*kept, *jobs])
    assert set(world.created_jobs.values()) == {1}

    ref = world.ground.storage.ref
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    environment |= {**world.ground.storage.credentials, "PYTHONPATH": str(ROOT)}
    sizes = {field: spec[field] for field in ("promptOptimizer", "weightOptimizer", "evaluation")}
    bucket = {"bucket": ref.bucket, "endpoint": str(ref.endpoint), "region": str(ref.region)}
    local = SameData(tmp_path / "local", bucket, environment, spec=sizes)
    local.drive()
    assert scores(status) == scores(local.status())
