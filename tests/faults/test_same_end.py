"""One declared state, different ways to it: what a run finds does not depend on when it was held, or by whom."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.faults.world import World

from tandem_api.v1alpha1.run import KIND
from tandem_operator.platforms.kubernetes import names

#: What a run has found, of its status.
FOUND = ("baseline", "best", "test", "conditions", "phase", "strategy")
OF_A_STEP = ("kind", "state", "score", "promptSet", "adapter", "candidates")


def undisturbed(world: World) -> None:
    """Nothing happens to it."""


def held_in_a_stage(stage: str) -> Callable[[World], None]:
    """Suspended while a stage works, and resumed once nothing is held any more."""

    def way(world: World) -> None:
        world.wait(f"a worker of {stage}", lambda: any(works_on(pod, stage) for pod in world.pods()), 240)
        suspend(world, True)
        world.wait("the end of its pods", lambda: not any(map(is_held, world.pods())), 240)
        suspend(world, False)

    return way


def held_before_it_begins(world: World) -> None:
    """Suspended as soon as it is there."""
    suspend(world, True)
    world.wait("its word", lambda: world.condition("Suspended").get("status") == "True", 240)
    suspend(world, False)


def upgraded(world: World) -> None:
    """Another operator takes over in the middle, with other settings and another image, and then the first again."""
    for stage, image in (("optimize", "tandem-trainer:next"), ("traces", "tandem-trainer:test")):
        world.wait(f"a worker of {stage}", lambda stage=stage: any(works_on(pod, stage) for pod in world.pods()), 240)
        world.operator.stop()
        world.operator.settings |= {"images": {"trainer": image}, "pollSeconds": 2, "workers": 2}
        world.operator.start()


def works_on(pod: dict[str, Any], stage: str) -> bool:
    labels = pod["metadata"].get("labels") or {}
    return labels.get(names.STAGE) == stage and pod["status"].get("phase") == "Running"


def is_held(pod: dict[str, Any]) -> bool:
    return pod["status"].get("phase") in ("Pending", "Running")


def suspend(world: World, yes: bool) -> None:
    world.api.patch(KIND, world.namespace, "run", {"spec": {"suspend": yes}})


def found_by(world: World) -> dict[str, Any]:
    """Scores, best program, and the digests of what it is made of."""
    outcome = world.outcome()
    found = {name: outcome.get(name) for name in FOUND if name != "conditions"}
    steps = [{name: step.get(name) for name in OF_A_STEP} for step in outcome["steps"]]
    results = {key: digest for key, digest in world.objects().items() if "/result/" in key}
    return {**found, "steps": steps, "results": results}


WAYS = {
    "upgraded twice": upgraded,
    "held before it begins": held_before_it_begins,
    "held in a search": held_in_a_stage("optimize"),
    "held in a training": held_in_a_stage("train"),
}


# For every day there are test_views.py (suspended) and tests/cluster/test_upgrade.py.
@pytest.mark.full
@pytest.mark.timeout(1800)
def test_a_run_comes_to_the_same_end_by_different_ways(
    make_world: Callable[..., World], record_cases: Callable[[str, int, int], None]
) -> None:
    ends: dict[str, Any] = {}
    for way, go in {"undisturbed": undisturbed, **WAYS}.items():
        # A Lease that a loaded machine does not lose: this is not about leadership.
        world = make_world(lease={"durationSeconds": 60, "renewSeconds": 5})
        world.operator.start()
        world.apply_run(strategy="p -> w")
        go(world)
        world.wait_finished()
        ends[way] = found_by(world)
        world.operator.stop()
        print(way, flush=True)
    expected = ends.pop("undisturbed")
    assert expected["best"] is not None
    assert expected["results"]
    record_cases("the same end by different ways", len(ends), sum(end == expected for end in ends.values()))
    for way, end in ends.items():
        assert end == expected, way
