"""Deadlines, suspension, and the quiet of runs that do not move."""

from __future__ import annotations

import itertools

import pytest
from tests.unit.operator.kubernetes.cluster import START, Clock, is_going
from tests.unit.operator.kubernetes.controllers import ordinary
from tests.unit.operator.kubernetes.test_runs import P_W_P
from tests.unit.operator.kubernetes.world import World, guard, leftovers, manifest, outcome

STAGES = ("check", "evaluate", "optimize", "traces", "train")


def going_on(world: World, stage: str) -> World:
    """Workers of `stage` do not end."""
    world.controllers.script = lambda request: None if request.stage == stage else ordinary(request)
    return world


@pytest.mark.parametrize("stage", ["optimize", "traces", "train"])
def test_the_deadline_stops_a_running_task_in_good_order(stage):
    world = going_on(guard(World(manifest(strategy="p -> w", budget={"deadlineSeconds": 120}))), stage)
    world.until(lambda w: w.works(stage))
    name = world.cluster.names("Job")[-1]
    world.until(lambda w: f"delete Job {name}" in w.cluster.writes)
    job = world.cluster.find("Job", name)
    assert job is None or is_going(job)  # in the foreground: it is there until its pod is gone
    before = len(world.cluster.writes)
    world.finish()
    assert world.succeeded == ("True", "DeadlineReached")
    assert world.stages()[-1] == "3final:evaluate"
    assert world.created("Job").count(name) == 1
    assert world.cluster.writes.count(f"delete Job {name}") == 1
    assert len(world.cluster.writes) - before < 35
    assert leftovers(world) == []


def test_a_deadline_before_the_first_score_ends_the_run_without_a_result():
    world = going_on(World(manifest(budget={"deadlineSeconds": 60})), "evaluate").finish()
    assert world.succeeded == ("False", "DeadlineReached")
    assert world.stages() == ["0baseline:check", "0baseline:evaluate"]
    assert leftovers(world) == []


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_is_suspended_holds_nothing_and_goes_on_where_it_was(stage):
    undisturbed = outcome(World().finish())
    world = going_on(guard(World()), stage)
    world.until(lambda w: w.works(stage))
    world.edit(suspend=True)
    world.turns(5)
    assert world.cluster.all("Pod") == [p for p in world.cluster.all("Pod") if p["status"]["phase"] == "Succeeded"]
    assert world.condition("Suspended").status == "True"
    assert world.status.phase == "Suspended"
    assert world.quiet_writes() == []
    world.controllers.script = ordinary
    world.edit(suspend=None)
    world.finish()
    ended = outcome(world)
    for status in (ended, undisturbed):
        for condition in status["conditions"]:
            del condition["observedGeneration"]
        del status["observedGeneration"]
    assert ended == undisturbed
    assert list(dict.fromkeys(world.stages())) == P_W_P
    assert leftovers(world) == []


def test_a_run_that_is_suspended_while_its_server_loads_goes_on():
    world = World(manifest(strategy="p"))
    world.until(lambda w: w.cluster.find("Deployment", "reviews-serving"))
    world.edit(suspend=True)
    world.turns(5)
    assert world.cluster.find("Deployment", "reviews-serving")["spec"]["replicas"] == 0
    assert world.quiet_writes() == []
    world.edit(suspend=False)
    assert world.finish().succeeded == ("True", "Completed")


def test_a_run_that_is_made_suspended_begins_when_it_is_let_go():
    world = World(manifest(strategy="p", suspend=True))
    world.turns(3)
    assert world.status.phase == "Suspended"
    assert world.quiet_writes() == []
    assert world.created("Job") == []
    world.edit(suspend=False)
    assert world.finish().succeeded == ("True", "Completed")


def test_a_finished_run_rests():
    world = World().finish()
    assert world.quiet_writes(seconds=600) == []
    found = world.look()
    assert found.requeue_seconds is None


@pytest.mark.parametrize("stage", STAGES)
def test_a_run_that_goes_on_steadily_rests(stage):
    world = going_on(World(), stage)
    world.until(lambda w: w.works(stage))
    world.turns(4)
    assert world.quiet_writes() == []
    assert world.look().requeue_seconds == 10


def test_an_expected_end_that_trembles_is_not_told():
    world = going_on(World(manifest(strategy="p")), "optimize")
    jitter = itertools.cycle([4, -4, 3, -3, 0])
    end = START.timestamp() + 900

    def progress():
        left = end - Clock.current.timestamp() + next(jitter)
        return {"done": 3, "total": 10, "eta_seconds": left, "message": "trial 3"}

    world.controllers.progress = progress
    world.until(lambda w: w.status.step is not None and w.status.step.progress == 30)
    assert world.status.step.message == "trial 3"
    eta = world.status.step.eta
    assert world.quiet_writes(seconds=12) == []
    assert world.status.step.eta == eta
    world.controllers.progress = lambda: {"done": 5, "total": 10, "eta_seconds": 100.0, "message": "trial 5"}
    assert world.quiet_writes(seconds=12) == ["status OptimizationRun reviews"] * 20
    assert world.status.step.progress == 50


def test_passes_are_asked_for_soon_only_while_something_is_on_its_way():
    world = World(manifest(strategy="p"))
    seen = {}

    def look(world):
        found = world.look()
        if found is not None and found.run is not None:
            waits = world.status.serving.name is not None and world.status.serving.ready_since is None
            seen.setdefault(waits, set()).add(found.requeue_seconds)
        return world.status.finished is not None

    world.until(look)
    assert seen[True] == {2.0}
    assert 10.0 in seen[False]
