"""The operator's clock is put forward or back in the middle of a run: nothing is waited for that long, or counted."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import timedelta

import pytest
from tests.unit.operator.decide.test_faults import failing
from tests.unit.operator.decide.world import World, condition, failed, finish, manifest

from tandem_operator.snapshot import Observed

#: More passes than the run takes.
PASSES = 40
HOURS = 5


@dataclass
class Jumping(World):
    """The clock jumps once, right before a pass."""

    jump_at: int = 0
    hours: int = 0
    passes: int = 0

    def observe(self, run) -> Observed:
        if self.passes == self.jump_at:
            self.now += timedelta(hours=self.hours)
        self.passes += 1
        return replace(super().observe(run), serving_accelerators=1, training_accelerators=1)


def jumping(at: int, hours: int, **spec) -> Jumping:
    """A run with two failed attempts, on accelerators."""
    script = failing("optimize", failed(1), failed(1))
    return Jumping(manifest(strategy="p -> w", **spec), script=script, has_gpu=True, jump_at=at, hours=hours)


@pytest.mark.parametrize("hours", [HOURS, -HOURS])
@pytest.mark.parametrize("at", range(0, PASSES, 3))
def test_a_jump_of_the_clock_changes_no_result_and_holds_nothing_up(at, hours):
    calm, world = finish(jumping(-1, 0)), finish(jumping(at, hours), passes=200)
    assert world.stages() == calm.stages()
    assert condition(world, "Succeeded").reason == "Completed"
    assert world.run.status.best == calm.run.status.best
    # The clock put back neither takes away what was counted, nor makes a retry wait for hours.
    assert world.passes <= calm.passes + 1
    status = world.run.status
    assert status.usage.gpu_seconds >= 0
    assert status.serving.load_seconds >= 0
    assert all(stage.usage.gpu_seconds >= 0 for step in status.steps for stage in step.stages)


@pytest.mark.parametrize("at", range(5, PASSES, 5))
def test_a_clock_put_forward_beyond_the_deadline_ends_the_run_in_good_order(at):
    world = finish(jumping(at, HOURS, budget={"deadlineSeconds": 3600}))
    succeeded = condition(world, "Succeeded")
    assert (succeeded.status, succeeded.reason) in {("True", "DeadlineReached"), ("True", "Completed"),
                                                    ("False", "DeadlineReached")}  # fmt: skip


@pytest.mark.parametrize("at", range(5, PASSES, 5))
def test_a_clock_put_back_moves_the_deadline_and_no_more(at):
    world = finish(jumping(at, -HOURS, budget={"deadlineSeconds": 3600}))
    assert condition(world, "Succeeded").reason == "Completed"
