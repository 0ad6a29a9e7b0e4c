"""Adapters of several predictors on a cluster: one folder, a name for each, and nobody calls before all are there."""

from __future__ import annotations

import pytest
from tests.unit.operator.kubernetes.controllers import ordinary
from tests.unit.operator.kubernetes.world import World, manifest

from tandem_api.adapters import DesiredAdapters
from tandem_api.contract import StageRequest, StageResult
from tandem_operator.platforms.kubernetes import names


def several(request: StageRequest) -> StageResult:
    """As ever, but what is trained are two adapters."""
    result = ordinary(request)
    if result.adapter is None:
        return result
    return result.model_copy(update={"adapter": result.adapter.model_copy(update={"adapters": 2})})


def world_of(mode: str | None) -> World:
    serving = {"handover": "keep"} | ({"adapters": mode} if mode else {})
    world = World(manifest(strategy="w", weightOptimizer={"adapters": "per-predictor"}, serving=serving))
    world.controllers.script = several
    return world


def name_of(world: World) -> str:
    return f"reviews-{world.status.steps[1].adapter.sha256[:16]}"


def test_each_adapter_is_loaded_from_its_subfolder_under_its_own_name():
    # Without a GPU, too, they are loaded into the running server: merged weights can hold one only.
    world = world_of(None)
    world.until(lambda w: w.stages()[-1:] == ["1w:evaluate"])
    desired = world.cluster.find("ConfigMap", names.adapters_name("reviews"))["data"]["adapters.json"]
    adapter, name = world.status.steps[1].adapter, name_of(world)
    assert [(a.name, a.number, a.uri, a.sha256) for a in DesiredAdapters.model_validate_json(desired).adapters] == [
        (f"{name}-0", 0, adapter.uri, adapter.sha256),
        (f"{name}-1", 1, adapter.uri, adapter.sha256),
    ]
    (pod,) = world.pods(names.SERVING)
    command = pod["spec"]["containers"][0]["command"]
    assert command[command.index("--adapters") + 1] == "8"
    assert world.finish().succeeded == ("True", "Completed")


@pytest.mark.parametrize("missing", [0, 1])
@pytest.mark.parametrize("mode", ["reload", "rollout"])
def test_no_stage_calls_a_server_that_lacks_one_of_the_adapters(mode: str, missing: int):
    world = world_of(mode)
    late = {"open": False}

    def served(pod):
        if world.status.steps[1].adapter is None:
            return ("base",)
        there = [f"{name_of(world)}-{number}" for number in (0, 1)]
        return ("base", *(there if late["open"] else [there[1 - missing]]))

    world.controllers.served = served
    world.until(lambda w: w.condition("ServingReady").reason == "LoadingAdapter" if w.status.conditions else False)
    world.turns(10)
    assert world.stages()[-1] == "1w:train"
    late["open"] = True
    assert world.finish().succeeded == ("True", "Completed")


def test_one_adapter_that_no_sidecar_can_load_ends_the_run():
    world = world_of("reload")
    world.controllers.refused_adapters = "rank 64 is above the server's 16"
    world.finish()
    assert world.succeeded == ("False", "ServingFailed")
    assert f"'{name_of(world)}-0' cannot be loaded: rank 64" in world.condition("Succeeded").message
