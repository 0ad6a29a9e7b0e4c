"""Runs that MLflow is told of: what their workers are given, and how it is told that MLflow could not be had."""

from __future__ import annotations

from tests.unit.operator.decide.world import World, finish, manifest, scripted

from tandem_api.contract import StageRequest, StageResult
from tandem_operator.actions import EmitEvent

TRACKED = {"tracking": {"mlflow": {"uri": "http://mlflow", "experiment": "e"}}}


def test_every_worker_is_given_the_status_so_that_it_can_make_up_for_those_before_it():
    world = finish(World(manifest(strategy="p -> w", **TRACKED)))
    seen = [request.status for request in world.requests]
    assert all(status is not None and not status.conditions for status in seen)
    states = [[step.state for step in status.steps] for status in seen if status is not None]
    assert states[0] == ["Running", "Pending", "Pending", "Pending"]
    assert states[-1] == ["Succeeded", "Succeeded", "Succeeded", "Running"]


def test_without_mlflow_only_the_last_worker_is():
    world = finish(World(manifest(strategy="p -> w")))
    assert [request.kind for request in world.requests if request.status is not None] == ["final"]


def test_that_mlflow_cannot_be_had_is_told_once_and_fails_nothing():
    def unheard(request: StageRequest) -> StageResult:
        result = scripted(request)
        return result.model_copy(update={"facts": {**result.facts, "mlflow": f"down at {request.stage}"}})

    world = finish(World(manifest(**TRACKED), script=unheard))
    told = [action.message for action in world.log if isinstance(action, EmitEvent) and "MLflow" in action.message]
    assert told == ["MLflow: down at check"]
    status = world.run.status
    assert {step.state for step in status.steps} == {"Succeeded"}
    assert status.steps[-1].stages[-1].facts["mlflow"] == "down at evaluate"
