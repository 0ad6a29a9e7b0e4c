"""What goes wrong with model servers: pods that never start, crash loops, adapters that nobody can load."""

from __future__ import annotations

import pytest
from tests.unit.operator.kubernetes import pod_faults
from tests.unit.operator.kubernetes.controllers import ordinary, status_of
from tests.unit.operator.kubernetes.pod_faults import crashing, of, waits
from tests.unit.operator.kubernetes.world import World, guard, leftovers, manifest, settings

from tandem_operator.platforms.kubernetes.names import SERVING


def held(hold, set_up=None, **spec) -> World:
    world = World(manifest(**{"strategy": "p", **spec}), set_up)
    world.controllers.hold = of(SERVING, hold)
    return world


@pytest.mark.parametrize(
    ("hold", "reason"),
    [
        (waits(("ErrImagePull", "x"), ("ImagePullBackOff", "y")), "ImagePullBackOff"),
        (waits(("CreateContainerConfigError", 'secret "s3" not found')), "MissingSecret"),
        (waits(("InvalidImageName", "")), "InvalidImageName"),
    ],
    ids=["image", "secret", "name"],
)
def test_a_server_that_can_never_start_ends_the_run_and_says_why(hold, reason):
    world = held(hold, settings(startFailureSeconds=120))
    if reason != "InvalidImageName":
        world.until(lambda w: w.condition("ServingReady").reason == reason if w.status.conditions else False)
        message = world.condition("ServingReady").message
        assert world.quiet_writes(seconds=3) == []
        assert world.condition("ServingReady").message == message
        assert world.events().count(("Warning", reason, 1)) == 1
    world.finish(seconds=10)
    assert world.succeeded == ("False", "ServingFailed")
    assert world.status.serving.restarts == 0
    assert leftovers(world) == []


def test_a_server_without_a_node_is_waited_for():
    world = held(pod_faults.unscheduled, settings(unschedulableSeconds=60))
    world.until(lambda w: w.condition("ServingReady").reason == "Unschedulable" if w.status.conditions else False)
    assert "Insufficient nvidia.com/gpu" in world.condition("ServingReady").message
    assert world.quiet_writes(seconds=300) == []
    assert world.events().count(("Warning", "Unschedulable", 1)) == 1
    world.controllers.hold = pod_faults.nothing
    assert world.finish().succeeded == ("True", "Completed")
    assert world.status.serving.restarts == 0


def test_a_server_that_crashes_again_and_again_is_started_anew_and_then_given_up_with_its_log():
    world = held(crashing(1, words="torch.OutOfMemoryError: CUDA out of memory"))
    world.finish()
    assert world.succeeded == ("False", "ServingFailed")
    message = world.condition("Succeeded").message
    assert "exit code 1" in message and "CUDA out of memory" in message
    assert world.status.serving.restarts == 2  # spec.attempts is 3
    assert sum(count for _, reason, count in world.events() if reason == "ServingFailed") == 2
    assert leftovers(world) == []


def test_each_restart_is_a_new_pod():
    world = guard(held(crashing()))
    seen = set()

    def look(world):
        seen.update(pod["metadata"]["uid"] for pod in world.pods(SERVING))
        return world.status.finished is not None

    world.until(look)
    assert len(seen) == 3


def test_a_server_without_memory_is_told_where_to_give_it_more():
    world = held(crashing(137, "OOMKilled", "")).finish()
    assert "spec.serving.resources" in world.condition("Succeeded").message


@pytest.mark.parametrize("code", [42, 43])
def test_a_server_that_says_that_no_retry_helps_is_not_started_anew(code):
    world = held(crashing(code, words="spec.model.uri: no such model")).finish()
    assert world.succeeded == ("False", "ServingFailed")
    assert "no such model" in world.condition("Succeeded").message
    assert world.status.serving.restarts == 0


def test_a_server_that_recovers_is_not_given_up():
    world = held(crashing())
    world.until(lambda w: w.status.serving.restarts == 1)
    world.controllers.hold = pod_faults.nothing
    world.finish()
    assert world.succeeded == ("True", "Completed")
    assert world.status.serving.restarts == 1


def test_a_server_that_never_gets_ready_is_given_up_after_its_time():
    def unready(pod):
        return {} if status_of(pod)["phase"] == "Running" else None

    world = held(unready, serving={"startupTimeoutSeconds": 60}, attempts=2)
    world.finish(seconds=5)
    assert world.succeeded == ("False", "ServingFailed")
    assert "spec.serving.startupTimeoutSeconds" in world.condition("Succeeded").message
    assert world.status.serving.restarts == 1


def test_pods_that_admission_refuses_are_told_about():
    world = World(manifest(strategy="p"))
    world.until(lambda w: w.cluster.find("Job", "reviews-0b-check-1") and w.works("check"))
    world.controllers.refuse_pods = "exceeded quota: gpus"
    world.until(lambda w: w.condition("ServingReady").reason == "CannotCreatePod")
    assert "exceeded quota: gpus" in world.condition("ServingReady").message
    assert world.quiet_writes() == []
    world.controllers.refuse_pods = ""
    assert world.finish().succeeded == ("True", "Completed")


def test_an_adapter_that_no_sidecar_can_load_ends_the_run():
    world = World(manifest(strategy="w", serving={"adapters": "reload"}))
    world.controllers.refused_adapters = "rank 64 is above the server's 16"
    world.finish()
    assert world.succeeded == ("False", "ServingFailed")
    assert "rank 64 is above" in world.condition("Succeeded").message
    assert leftovers(world) == []


def test_no_stage_calls_a_server_that_does_not_list_its_adapter():
    """The sidecar takes its time: the pods are ready all along, and the run waits for every one of them."""
    world = World(manifest(strategy="w", serving={"adapters": "reload", "handover": "keep", "replicas": 2}))
    usual = world.controllers.served
    late = {"open": False}

    def served(pod):
        names = usual(pod)
        is_late = not late["open"] and pod is world.pods(SERVING)[-1]
        return names[:1] if is_late else names

    world.controllers.served = served
    world.until(lambda w: w.condition("ServingReady").reason == "LoadingAdapter" if w.status.conditions else False)
    world.turns(10)
    assert "1 of 2 replicas serve" in world.condition("ServingReady").message
    assert world.stages()[-1] == "1w:train"
    late["open"] = True
    assert world.finish().succeeded == ("True", "Completed")


def test_mounted_adapters_are_renewed_at_once():
    """Another adapter is not waited for until the kubelet's next round: the operator touches the pods."""
    world = World(manifest(strategy="w", serving={"adapters": "reload", "handover": "keep"}))
    world.until(lambda w: w.works("train"))
    world.until(lambda w: w.condition("ServingReady").status == "False")
    assert world.until(lambda w: w.condition("ServingReady").status == "True", limit=4)


def test_a_server_that_dies_under_a_worker_is_started_anew_beside_it():
    world = World(manifest(strategy="p"))
    world.controllers.script = lambda request: None if request.stage == "optimize" else ordinary(request)
    world.until(lambda w: w.works("optimize"))
    world.controllers.hold = of(SERVING, crashing())
    world.until(lambda w: w.status.serving.restarts == 1)
    world.controllers.hold = pod_faults.nothing
    world.until(lambda w: w.condition("ServingReady").status == "True")
    world.controllers.script = ordinary
    world.finish()
    assert world.created("Job").count("reviews-1p-optimize-1") == 1
    assert world.stage(1, "optimize").attempt == 1


def unreachable(world: World) -> World:
    """The operator's questions do not get through."""
    world.controllers.fetch = lambda host, port, path: None
    world.passes = world.operator()
    return world


def test_servers_that_the_operator_cannot_reach_are_told_about_and_given_up():
    world = unreachable(World(manifest(strategy="p", serving={"startupTimeoutSeconds": 120}, attempts=2)))
    world.until(lambda w: w.condition("ServingReady").reason == "ServerUnreachable" if w.status.conditions else False)
    message = world.condition("ServingReady").message
    pod = world.pods(SERVING)[0]
    for word in (pod["metadata"]["name"], f"{pod['status']['podIP']}:8000", "NetworkPolic", "mTLS"):
        assert word in message
    assert "kubernetes.io/metadata.name" in message
    assert world.quiet_writes(passes=10) == []
    assert world.events().count(("Warning", "ServerUnreachable", 1)) == 1
    world.finish(seconds=5)
    assert world.succeeded == ("False", "ServingFailed")
    assert world.status.serving.restarts == 1
    assert "NetworkPolic" in world.condition("Succeeded").message


def test_a_new_operator_that_gets_no_answer_does_not_give_an_old_server_up_at_once():
    world = World(manifest(strategy="p", serving={"startupTimeoutSeconds": 120}))
    world.controllers.script = lambda request: None if request.stage == "optimize" else ordinary(request)
    world.until(lambda w: w.works("optimize"))
    world.turns(5, seconds=60)  # it has been ready for longer than a start may take
    usual = world.controllers.fetch
    unreachable(world).turns(10, seconds=5)
    assert world.status.serving.restarts == 0
    world.controllers.fetch, world.controllers.script = usual, ordinary
    world.passes = world.operator()
    assert world.finish().succeeded == ("True", "Completed")
    assert world.status.serving.restarts == 0


def test_one_missing_answer_does_not_make_a_server_unready():
    world = World(manifest(strategy="p"))
    world.controllers.script = lambda request: None if request.stage == "optimize" else ordinary(request)
    usual, lost = world.controllers.fetch, []
    world.controllers.fetch = lambda *question: None if lost else usual(*question)
    world.passes = world.operator()
    world.until(lambda w: w.works("optimize"))
    lost.append(True)
    world.turns(2)
    assert world.condition("ServingReady").status == "True"
