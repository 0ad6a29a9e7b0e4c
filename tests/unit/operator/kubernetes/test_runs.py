"""Whole runs on a cluster: every stage once, nothing beside a training worker, nothing left; death at any write."""

from __future__ import annotations

import pytest
from tests.unit.operator.kubernetes.cluster import labels_of
from tests.unit.operator.kubernetes.world import GPU, World, guard, leftovers, manifest, outcome

from tandem_operator.platforms.kubernetes import names

P_W_P = [
    "0baseline:check",
    "0baseline:evaluate",
    "1p:optimize",
    "2w:traces",
    "2w:train",
    "2w:evaluate",
    "3p:optimize",
    "4final:evaluate",
]
KINDS = {
    "merged": {"serving": {"adapters": "merged"}},
    "reload": {"serving": {"adapters": "reload"}},
    "accelerator": {"serving": {"resources": GPU}, "training": {"resources": GPU}},
    "rollout": {"serving": {"adapters": "rollout", "replicas": 2}},
}


def world_of(kind: str) -> World:
    return guard(World(manifest(**KINDS[kind])))


@pytest.mark.parametrize("kind", KINDS)
def test_a_run_does_every_stage_once_and_leaves_nothing(kind):
    world = world_of(kind).finish()
    assert world.stages() == P_W_P
    assert world.succeeded == ("True", "Completed")
    assert world.status.phase == "Succeeded"
    assert len(world.created("Job")) == len(set(world.created("Job"))) == 8
    assert leftovers(world) == []
    assert ("Normal", "RunSucceeded", 1) in world.events()
    assert all(count == 1 for _, _, count in world.events())


def test_workers_call_the_run_s_own_service_under_the_adapter_s_name():
    world = world_of("reload").finish()
    requests = {f"{r.index}{r.kind}:{r.stage}": r for r in world.controllers.requests}
    adapter = world.status.steps[2].adapter
    assert requests["2w:traces"].endpoint.url == "http://reviews-serving.team.svc:8000"
    assert requests["2w:traces"].endpoint.model == "base"
    assert requests["3p:optimize"].endpoint.model == f"reviews-{adapter.sha256[:16]}"
    assert requests["2w:train"].endpoint is None


@pytest.mark.parametrize(("mode", "templates"), [("merged", 2), ("reload", 1), ("rollout", 2)])
def test_only_reloading_keeps_the_servers_template(mode, templates):
    """With handover keep, a hot-loading server is the same pod from the first stage to the last."""
    world = guard(World(manifest(serving={"adapters": mode, "handover": "keep"})))
    world.cluster.admission = lambda verb, thing: None
    seen = set()
    served = []

    def look(world):
        for pod in world.pods(names.SERVING):
            seen.add(pod["metadata"]["uid"])
            served.append(world.controllers.served(pod) if pod["status"].get("podIP") else ())
        return world.status.finished is not None

    world.until(look)
    assert len(seen) == templates
    assert world.status.steps[2].adapter.sha256[:16] in served[-1][-1]


def test_a_kept_server_is_not_in_the_way_of_training():
    world = World(manifest(serving={"adapters": "merged", "handover": "keep"}))
    world.until(lambda w: w.works("train"))
    assert len(world.pods(names.SERVING)) == 1


def test_every_child_carries_the_run_and_goes_with_it():
    world = world_of("merged")
    world.until(lambda w: w.works("train"))
    for kind in ("Job", "Deployment", "Service", "ConfigMap", "NetworkPolicy", "Pod"):
        for thing in world.cluster.all(kind):
            assert labels_of(thing)[names.RUN_UID] == world.run["metadata"]["uid"], (kind, thing["metadata"])
    world.cluster.remove(world.run)
    world.turns(4)
    assert [kind for kind in ("Job", "Deployment", "Service", "ConfigMap", "Pod") if world.cluster.all(kind)] == []


def test_a_run_that_is_gone_is_nothing_to_look_after():
    world = World()
    world.cluster.gone(world.run)
    found = world.passes.reconcile_run("team", "reviews")
    assert (found.requeue_seconds, found.run) == (None, None)


def test_an_operator_that_is_started_anew_in_every_pass_comes_to_the_same_end():
    undisturbed = outcome(world_of("merged").finish())
    world = world_of("merged")

    def start(world):
        world.passes = world.operator()
        return world.status.finished is not None

    world.until(start)
    world.turns(6)
    assert outcome(world) == undisturbed


@pytest.mark.parametrize(("kind", "strategy"), [("merged", "p -> w -> p"), ("reload", "w")])
def test_death_at_any_write_comes_to_the_same_end(kind, strategy):
    """The run is played once; from the beginning of each of its passes it is played again with a death in it.

    Nothing happens between two writes of a pass, so death after one is death before the next: after the last one of
    each pass is all that is left to try.
    """
    world = guard(World(manifest(**KINDS[kind], strategy=strategy)))
    beginnings = []
    while not beginnings or beginnings[-1][0] != len(world.cluster.writes) or world.status.finished is None:
        beginnings.append((len(world.cluster.writes), world.saved()))
        world.turn()
    undisturbed, total = outcome(world), len(world.cluster.writes)
    stages, jobs = world.stages(), world.created("Job")
    assert total > 50
    ends = [first for first, _ in beginnings[1:]] + [total]
    for (first, saved), end in zip(beginnings, ends, strict=True):
        points = [(write, "before") for write in range(first, end)] + [(end - 1, "after")] * (end > first)
        for point in points:
            world.restore(saved)
            world.cluster.crash = point
            world.finish(rest=3)
            where = f"death at {point}: {world.cluster.writes[point[0]]}"
            assert outcome(world) == undisturbed, where
            assert world.stages() == stages, where
            assert world.created("Job") == jobs, where
            assert leftovers(world) == [], where
