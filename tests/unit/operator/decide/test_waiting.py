"""What people are told while a stage has no task yet: what it waits for."""

from __future__ import annotations

from dataclasses import replace

from tests.unit.operator.decide.test_faults import failing
from tests.unit.operator.decide.world import World, condition, failed, manifest

from tandem_operator.reconcile import reconcile
from tandem_operator.snapshot import ServingObservation


class Slow(World):
    """Its servers take their time."""

    def observe(self, run):
        seen = super().observe(run)
        self.serving = seen.serving
        return seen


def test_a_stage_that_waits_for_its_server_says_why_the_server_waits():
    world = Slow(manifest(strategy="p"))
    while world.serving is None:
        reconcile(world)
    world.serving = replace(world.serving, reason="PullingImage", message="pulling vllm:1")
    reconcile(world)
    found = condition(world, "Progressing")
    assert (found.status, found.reason) == ("True", "WaitingForServer")
    assert "PullingImage" in found.message and "pulling vllm:1" in found.message
    assert world.run.status.phase == "WaitingForServer"


def test_training_waits_for_the_server_to_go_and_names_its_pods():
    world = World(manifest(strategy="w"))
    while not any(r.stage == "traces" for r in world.requests):
        reconcile(world)
    leaving = ServingObservation("", "starting", message="waiting for reviews-serving-1 to end", reason="Stopping")
    while world.run.status.step.stage != "train":
        reconcile(world)
    world.serving = leaving
    reconcile(world)
    found = condition(world, "Progressing")
    assert found.reason == "ReleasingServer" and "reviews-serving-1" in found.message
    while not any(r.stage == "train" for r in world.requests):
        reconcile(world)
    assert condition(world, "Progressing").reason == "TrainingWeights"


def test_a_backoff_says_what_failed_and_when_it_goes_on():
    world = World(manifest(strategy="p"), script=failing("optimize", failed(137), failed(1)))
    while world.run.status.steps[1:2] == () or world.run.status.steps[1].stages[0].failures < 2:
        reconcile(world)
    found = condition(world, "Progressing")
    stage = world.run.status.steps[1].stages[0]
    assert found.reason == "BackingOff"
    assert "attempt 2" in found.message and "Traceback: boom" in found.message
    assert f"{stage.finished.replace(second=stage.finished.second + 10):%H:%M:%S} UTC" in found.message


def test_while_a_task_runs_the_stage_is_told_though_the_server_is_gone():
    world = World(manifest(strategy="p"))
    while not any(r.stage == "optimize" for r in world.requests):
        reconcile(world)
    world.pending.clear()
    world.serving = None
    reconcile(world)
    assert condition(world, "Progressing").reason == "OptimizingPrompts"
