"""Statuses that the operator writes, at every moment of runs that end in every way."""

from __future__ import annotations

import copy
from functools import cache
from typing import Any, Literal

from tests.unit.operator.kubernetes.controllers import ordinary
from tests.unit.operator.kubernetes.world import World, manifest

Object = dict[str, Any]
#: What a pipeline is to make of a run.
Verdict = Literal["new", "going", "held", "succeeded", "failed"]


@cache
def moments() -> tuple[tuple[Verdict, Object], ...]:
    """Runs as they are stored, each with what it is; no two have the same status."""
    found: list[tuple[Verdict, Object]] = []

    def see(world: World, verdict: Verdict) -> None:
        run = copy.deepcopy(world.run)
        if all(run.get("status") != other.get("status") for _, other in found):
            found.append((verdict, run))

    whole = World(manifest(strategy="p -> w"))
    see(whole, "new")
    for _ in range(300):
        whole.turn()
        status = whole.run.get("status", {})
        see(whole, "succeeded" if status.get("finished") else "going" if status else "new")
        if status.get("finished"):
            break
    assert found[-1][0] == "succeeded"

    held = World()
    held.controllers.script = lambda request: None if request.stage == "optimize" else ordinary(request)
    held.until(lambda world: world.works("optimize"))
    held.edit(suspend=True)
    held.turns(5)
    see(held, "held")

    failed = World(manifest(budget={"deadlineSeconds": 60}))
    failed.controllers.script = lambda request: None
    see(failed.finish(), "failed")

    refused = World(manifest(strategy="p -> x"))
    refused.turns(3)
    see(refused, "failed")
    return tuple(found)
