"""GPU seconds: what the pods of a stage hold, while the stage works."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
from tests.unit.operator.decide.test_faults import failing
from tests.unit.operator.decide.world import World, condition, finish, manifest

from tandem_api.contract import StageFailure
from tandem_api.v1alpha1.status import Usage
from tandem_operator.reconcile import reconcile
from tandem_operator.snapshot import Observed, TaskObservation


@dataclass
class GpuWorld(World):
    """Servers of two accelerators each, a training pod of four."""

    has_gpu: bool = True
    state: TaskObservation | None = None
    """What is seen of the current task instead of its end."""

    def observe(self, run) -> Observed:
        if self.state is not None:
            held, self.pending = self.pending, {}
            self.tasks.update(dict.fromkeys(held, self.state))
            seen = super().observe(run)
            self.pending = held
        else:
            seen = super().observe(run)
        return replace(seen, serving_accelerators=2, training_accelerators=4)

    def see(self, state: TaskObservation, seconds: int) -> None:
        """Hold the current task in this state for a while."""
        self.state = state
        for _ in range(3):
            reconcile(self)
        self.now += timedelta(seconds=seconds)
        reconcile(self)
        self.state = None


def stage_of(world, name):
    return next(s for step in world.run.status.steps for s in step.stages if s.name == name and step.kind != "baseline")


def until(world, stage):
    while not any(r.stage == stage and r.kind != "baseline" for r in world.requests):
        reconcile(world)


def suspend(world, value):
    world.run = world.run.model_copy(update={"spec": world.run.spec.model_copy(update={"suspend": value})})


@pytest.mark.parametrize(("strategy", "stage", "factor"), [("p", "optimize", 6), ("w", "train", 4)])
def test_every_accelerator_of_every_pod_counts(strategy, stage, factor):
    world = GpuWorld(manifest(strategy=strategy, serving={"replicas": 3}))
    until(world, stage)
    world.see(TaskObservation("running"), 100)
    finish(world)
    seconds = stage_of(world, stage).usage.gpu_seconds
    assert seconds % factor == 0 and 100 * factor <= seconds <= 110 * factor
    assert world.run.status.usage.gpu_seconds >= seconds


def test_without_an_accelerator_nothing_is_counted():
    assert finish(World(manifest(strategy="p"))).run.status.usage.gpu_seconds == 0


@pytest.mark.parametrize("keeps", [True, False], ids=["ends with 143", "its Job is deleted"])
def test_a_pause_is_not_counted(keeps):
    world = GpuWorld(manifest(strategy="p"))
    until(world, "optimize")
    world.see(TaskObservation("running"), 50)
    suspend(world, True)
    reconcile(world)
    if not keeps:
        world.tasks = {}
    for _ in range(4):
        reconcile(world)
    writes = world.writes
    world.now += timedelta(seconds=5000)
    reconcile(world)
    assert world.writes == writes
    suspend(world, False)
    finish(world)
    assert 100 <= stage_of(world, "optimize").usage.gpu_seconds <= 140


def test_waiting_for_a_place_is_not_counted():
    world = GpuWorld(manifest(strategy="w"))
    until(world, "train")
    world.see(TaskObservation("running", waiting="WaitingForQuota", waiting_message="2 before it"), 5000)
    writes = world.writes
    world.see(TaskObservation("running", waiting="WaitingForQuota", waiting_message="2 before it"), 5000)
    assert world.writes == writes
    world.see(TaskObservation("running"), 100)
    finish(world)
    assert 400 <= stage_of(world, "train").usage.gpu_seconds <= 440


def test_the_usage_of_a_preempted_attempt_is_kept_when_the_worker_tells_its_calls():
    said = StageFailure(error="Preempted", message="stopped", usage=Usage(calls=7)).model_dump_json()
    world = GpuWorld(
        manifest(strategy="p"), script=failing("optimize", TaskObservation("failed", 143, termination=said))
    )
    until(world, "optimize")
    world.see(TaskObservation("running"), 100)
    suspend(world, True)
    reconcile(world)
    suspend(world, False)
    finish(world)
    assert stage_of(world, "optimize").usage.gpu_seconds >= 200


def test_a_task_that_cannot_be_made_is_asked_for_without_writes():
    world = GpuWorld(manifest(strategy="p"))
    until(world, "optimize")
    for _ in range(2):
        world.tasks, world.pending = {}, {}
        reconcile(world)
    before = world.run.status
    world.tasks, world.pending = {}, {}
    world.now += timedelta(seconds=5000)
    reconcile(world)
    assert world.run.status == before
    assert stage_of(finish(world), "optimize").usage.gpu_seconds < 20


def test_the_deadline_counts_from_the_first_pass_that_is_not_suspended():
    world = World(manifest(strategy="p", suspend=True, budget={"deadlineSeconds": 60}))
    reconcile(world)
    world.now += timedelta(seconds=1000)
    reconcile(world)
    assert world.run.status.started is None
    suspend(world, False)
    reconcile(world)
    assert world.run.status.started == world.now
    finish(world)
    assert condition(world, "Succeeded").reason == "Completed"
