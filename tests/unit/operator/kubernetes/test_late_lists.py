"""Lists out of the API server's cache may show what was: what a pass decides, it decides on what is."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable

import pytest
from tests.unit.operator.kubernetes.controllers import Ending, ordinary
from tests.unit.operator.kubernetes.test_runs import P_W_P, world_of
from tests.unit.operator.kubernetes.world import World, guard, leftovers, manifest, outcome

from tandem_operator.platforms.kubernetes import names


def drive(world: World, turns: int, each: Callable[[World], None] = lambda world: None) -> World:
    """To its end, with lists that are so many turns late."""
    past = deque([world.cluster.seen()], maxlen=turns)
    rest = 20
    for _ in range(600):
        world.cluster.past = past[0]
        world.turn()
        past.append(world.cluster.seen())
        each(world)
        rest -= "finished" in world.run.get("status", {})
        if not rest:
            return world
    raise AssertionError(f"it has not ended: {world.status.to_json()}")


@pytest.mark.parametrize("turns", [1, 2, 5, 12])
@pytest.mark.parametrize("kind", ["merged", "reload"])
def test_a_run_comes_to_the_same_end_by_lists_that_are_late(kind: str, turns: int) -> None:
    calm = guard(world_of(kind)).finish()
    world = drive(guard(world_of(kind)), turns)
    assert outcome(world) == outcome(calm)
    assert world.stages() == P_W_P
    assert set(Counter(world.created("Job")).values()) == {1}
    assert leftovers(world) == []


@pytest.mark.parametrize("turns", [1, 5])
def test_a_failed_attempts_last_word_is_heard_and_each_attempt_is_made_once(turns: int) -> None:
    left = [Ending(1, "{}"), Ending(137, reason="OOMKilled")]
    world = guard(World(manifest(strategy="p")))
    world.controllers.script = lambda r: left.pop(0) if r.stage == "optimize" and left else ordinary(r)
    drive(world, turns)
    assert world.succeeded[0] == "True"
    assert world.stage(1, "optimize").attempt == 3
    assert set(Counter(world.created("Job")).values()) == {1}
    reasons = [reason for _, reason, _ in world.events()]
    assert reasons.count("AttemptFailed") == 2


@pytest.mark.parametrize("turns", [1, 5])
def test_a_job_that_is_deleted_by_hand_is_made_again_only_when_its_pod_has_ended(turns: int) -> None:
    """`guard` sees to it that there are never two pods of one task."""
    deleted: list[str] = []

    def delete(world: World) -> None:
        if world.works("optimize") and not deleted:
            job = next(job for job in world.cluster.all("Job") if "optimize" in job["metadata"]["name"])
            deleted.append(job["metadata"]["name"])
            world.cluster.remove(job)

    world = guard(World(manifest(strategy="p")))
    drive(world, turns, delete)
    assert deleted
    assert world.succeeded[0] == "True"
    assert Counter(world.created("Job"))[deleted[0]] <= 2
    assert all(names.TASK in pod["metadata"]["labels"] for pod in world.pods(names.WORKER))


def test_an_earlier_runs_spec_that_is_still_seen_does_not_hide_the_one_that_was_accepted() -> None:
    world = World(manifest(strategy="p"))
    world.until(lambda w: w.works("optimize"))
    world.cluster.past = world.cluster.seen()
    world.cluster.remove(world.run)
    for kind in ("Deployment", "Service", "ConfigMap", "Job", "Pod"):  # the garbage collector
        for thing in world.cluster.all(kind):
            world.cluster.gone(thing)
    world.cluster.add(manifest(strategy="w"))
    world.turns(3)
    world.edit(strategy="p -> w")
    world.turns(3)
    assert "the run goes on with the spec that it began with" in str(world.run["status"]["conditions"])
