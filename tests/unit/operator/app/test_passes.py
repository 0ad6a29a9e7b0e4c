"""Passes over runs that are invalid, changed, finished or deleted."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.operator.kubernetes.cluster import refusal
from tests.unit.operator.kubernetes.conftest import clock  # noqa: F401 - a fixture that all tests here use
from tests.unit.operator.kubernetes.controllers import ordinary
from tests.unit.operator.kubernetes.world import World, leftovers, manifest, settings

from tandem_api.v1alpha1.run import KIND
from tandem_operator.app.deletion import LIMIT_SECONDS
from tandem_operator.platforms.kubernetes import names
from tandem_operator.platforms.kubernetes.jobs import CLEANUP_SECONDS
from tandem_operator.platforms.kubernetes.names import FINALIZER
from tandem_trainer.cleanup import parse as parse_cleanup

STORAGE = {"s3": {"bucket": "bucket", "prefix": "runs", "credentialsSecret": "s3"}}
DELETE = {"storage": {**STORAGE, "deletionPolicy": "Delete"}}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"strategy": "p -> x"}, "spec.strategy"),
        ({"storage": None}, "spec.storage: required on a cluster"),
        ({"seed": -1}, "spec.seed"),
        ({"model": {"uri": "file:model.gguf"}}, "spec.model.uri"),
        ({"sead": 1}, "did you mean seed?"),
    ],
)
def test_an_invalid_run_says_so_once_and_runs_when_it_is_corrected(change, words):
    document = manifest(strategy="p")
    document["spec"] = {key: value for key, value in {**document["spec"], **change}.items() if value is not None}
    world = World(document)
    found = world.look()
    assert (found.requeue_seconds, found.run) == (None, None)
    for kind in ("Accepted", "Succeeded"):
        condition = world.condition(kind)
        assert (condition.status, condition.reason) == ("False", "InvalidSpec")
        assert words in condition.message
    assert world.status.phase == "Failed"
    assert world.events() == [("Warning", "InvalidSpec", 1)]
    assert world.quiet_writes() == []
    assert world.created("Job") == []
    world.edit(**{"sead": None, "seed": 1, **{k: v for k, v in manifest(strategy="p")["spec"].items() if k in change}})
    world.finish()
    assert world.succeeded == ("True", "Completed")
    assert world.condition("Accepted").status == "True"
    assert world.status.phase == "Succeeded"


def test_a_status_that_another_version_wrote_is_not_overwritten():
    world = World(manifest(strategy="x"))
    world.run["status"] = {"steps": "all"}
    world.look()
    assert world.run["status"] == {"steps": "all"}
    assert ("Warning", "InvalidSpec", 1) in world.events()


def test_a_run_whose_spec_cannot_be_stored_says_so_and_begins_when_it_can():
    """The ConfigMap with the accepted spec comes before everything else. Where a quota refused it each pass failed, and
    the run had no condition at all."""
    world = World(manifest(strategy="p"))
    is_full = True

    def admit(verb: str, thing: dict[str, object]) -> None:
        if is_full and (verb, thing["kind"]) == ("create", "ConfigMap"):
            raise refusal(403, "Forbidden", "exceeded quota: objects, limited: count/configmaps=3")

    world.cluster.admission = admit
    found = world.look()
    assert found.requeue_seconds == 15
    condition = world.condition("Succeeded")
    assert (condition.status, condition.reason) == ("False", "InvalidSpec")
    assert condition.message == (
        "spec: the cluster refuses the ConfigMap reviews-spec with the spec that was accepted: "
        "exceeded quota: objects, limited: count/configmaps=3"
    )
    # It is tried again, and nothing is told twice.
    assert {*world.quiet_writes(passes=3)} == {"create ConfigMap reviews-spec"}
    is_full = False
    world.finish()
    assert world.succeeded == ("True", "Completed")


@pytest.mark.parametrize("change", [{"strategy": "p"}, {"strategy": "p -> x"}, {"seed": 7}, {"storage": None}])
def test_a_change_that_comes_too_late_is_told_and_ignored(change):
    world = World(manifest(strategy="p -> p"))
    world.until(lambda w: w.works("optimize"))
    world.controllers.script = lambda request: None
    world.edit(**change)
    world.turn()
    accepted = world.condition("Accepted")
    assert (accepted.status, accepted.reason) == ("True", "SpecChangeIgnored")
    assert f"spec.{next(iter(change))}" in accepted.message
    assert world.quiet_writes() == []
    assert world.events().count(("Warning", "SpecChangeIgnored", 1)) == 1
    world.controllers.script = ordinary
    world.finish()
    assert world.succeeded == ("True", "Completed")
    assert [step.kind for step in world.status.steps] == ["baseline", "p", "p", "final"]
    assert all(request.spec.seed == 0 for request in world.controllers.requests)
    assert leftovers(world) == []


def test_a_suspended_run_stays_so_whatever_becomes_of_its_manifest():
    world = World(manifest(strategy="p"))
    world.until(lambda w: w.works("optimize"))
    world.controllers.script = lambda request: None
    world.edit(suspend=True)
    world.turns(4)
    world.edit(seed=-1)
    world.turns(4)
    assert world.status.phase == "Suspended"
    assert world.condition("Accepted").reason == "SpecChangeIgnored"
    assert world.quiet_writes() == []


def test_a_change_that_is_taken_back_is_forgotten():
    world = World(manifest(strategy="p -> p"))
    world.until(lambda w: w.works("optimize"))
    world.edit(strategy="p")
    world.turn()
    world.edit(strategy="p -> p")
    world.turn()
    assert world.condition("Accepted").reason == "Checked"


def test_budgets_and_suspension_may_change():
    world = World(manifest(strategy="p -> p -> p"))
    world.until(lambda w: w.works("optimize"))
    world.edit(budget={"tokens": 1})
    world.finish()
    assert world.succeeded == ("True", "BudgetExhausted")
    assert world.condition("Accepted").reason == "Checked"


def test_a_finished_run_is_deleted_when_its_time_is_over():
    world = World(manifest(strategy="p", ttlSecondsAfterFinished=600))
    world.finish(rest=2)
    left = world.look().requeue_seconds
    assert 500 < left < 600
    assert world.quiet_writes(10, seconds=5) == []
    world.controllers.step(left)
    world.turns(3)
    assert world.cluster.find(KIND, "reviews") is None
    assert [kind for kind in ("Job", "ConfigMap", "NetworkPolicy", "Pod") if world.cluster.all(kind)] == []


def test_a_finished_run_without_a_time_stays():
    world = World(manifest(strategy="p")).finish()
    assert world.look().requeue_seconds is None


def not_removed(world: World) -> list[str]:
    """What was told of objects that stay in S3."""
    return [e["message"] for e in world.cluster.all("Event") if e["reason"] == "StorageNotRemoved"]


def test_a_run_of_which_nothing_is_to_be_removed_is_not_held():
    world = World()
    world.turns(3)
    assert "finalizers" not in world.run["metadata"]
    world.cluster.remove(world.run)
    assert world.cluster.find(KIND, "reviews") is None


def deleted(stage: str = "", **spec) -> World:
    """A run that is deleted while a worker of `stage` is at work, or when it has finished."""
    world = World(manifest(**{"strategy": "p -> w", **DELETE, **spec}))
    if stage:
        world.until(lambda w: w.works(stage))
    else:
        world.finish()
    assert world.run["metadata"]["finalizers"] == [FINALIZER]
    world.cluster.remove(world.run)
    return world


def is_gone(world: World) -> bool:
    return world.cluster.find(KIND, "reviews") is None


@pytest.mark.parametrize("stage", ["check", "evaluate", "optimize", "train", ""])
def test_a_deleted_run_goes_when_its_objects_are_removed(stage):
    world = deleted(stage)
    uid = world.run["metadata"]["uid"]
    workers = []

    def admit(verb, thing):
        if thing["kind"] == "Job":
            workers.extend(p for p in world.pods(names.WORKER) if p["status"]["phase"] == "Running")

    world.cluster.admission = admit
    world.until(is_gone, limit=15)
    world.turns(4)
    assert workers == []  # nobody writes any more when the cleanup begins
    job = world.cluster.find("Job", "reviews-cleanup")
    command = job["spec"]["template"]["spec"]["containers"][0]["command"]
    options = parse_cleanup(command[command.index("tandem_trainer.cleanup") + 1 :])
    assert (options.bucket, options.layout.root) == ("bucket", f"runs/team/reviews/{uid}/")
    assert "ownerReferences" not in job["metadata"]
    assert world.cluster.names("Job") == ["reviews-cleanup"]
    left = [kind for kind in ("Deployment", "Service", "ConfigMap", "NetworkPolicy") if world.cluster.all(kind)]
    assert left == []
    assert not_removed(world) == []


def told(world: World) -> str:
    (message,) = not_removed(world)
    return message


def test_a_cleanup_that_fails_lets_the_run_go_and_says_what_stays():
    world = deleted()
    uid = world.run["metadata"]["uid"]
    world.controllers.cleanup_code = 1
    world.until(is_gone, limit=60)
    assert "the Job reviews-cleanup failed" in told(world)
    assert f"s3://bucket/runs/team/reviews/{uid}/" in told(world)


def test_a_cleanup_is_not_collected_before_its_end_was_seen():
    """With `jobTtlSeconds: 0` it went at once, was begun again and again, and the run stayed until the limit."""
    world = World(manifest(strategy="p", **DELETE), settings(jobTtlSeconds=0))
    world.finish()
    world.cluster.remove(world.run)
    world.until(is_gone, limit=15)
    assert world.created("Job").count("reviews-cleanup") == 1
    assert not_removed(world) == []


def test_a_cleanup_that_does_not_end_holds_the_run_no_longer_than_the_limit():
    world = deleted()
    is_cleanup = lambda pod: pod["metadata"]["labels"][names.COMPONENT] == names.CLEANUP  # noqa: E731
    world.controllers.hold = lambda pod: {"phase": "Pending"} if is_cleanup(pod) else None
    world.until(lambda w: w.pods(names.CLEANUP), limit=15)
    assert not is_gone(world)
    world.cluster.pass_time(LIMIT_SECONDS)
    world.until(is_gone, limit=15)
    assert f"within {LIMIT_SECONDS} s" in told(world)
    assert world.cluster.find("Job", "reviews-cleanup") is None


def test_a_cleanup_whose_node_was_lost_is_made_anew():
    """The objects stayed in S3: its time was over, and nobody tried again."""
    world = deleted()
    lost: list[str] = []

    def hold(pod):
        if pod["metadata"]["labels"][names.COMPONENT] != names.CLEANUP:
            return None
        lost.extend([pod["metadata"]["uid"]] if not lost else [])
        return {"phase": "Pending"} if pod["metadata"]["uid"] in lost else None

    world.controllers.hold = hold
    world.until(lambda world: lost, limit=15)
    world.cluster.pass_time(CLEANUP_SECONDS)
    world.until(is_gone, limit=15)
    assert world.created("Job").count("reviews-cleanup") == 2
    assert not_removed(world) == []


def leave_pods(world: World, stage: str) -> dict[str, Any]:
    """Delete a stage's Job as `kubectl delete --cascade=orphan` does; the pod that it leaves."""
    job = next(job for job in world.cluster.all("Job") if stage in job["metadata"]["name"])
    (pod,) = world.cluster.owned("Pod", job)
    del pod["metadata"]["ownerReferences"]
    world.cluster.remove(job)
    return pod


@pytest.mark.parametrize("ending", ["finished", "suspended", "deleted", "at once", "at work"])
def test_a_worker_that_its_job_has_left_behind_is_ended(ending):
    """It held its accelerator for as long as it liked, and stayed after the run."""
    world = World(manifest(strategy="p", **(DELETE if ending != "at once" else {})))
    if ending == "finished":
        world.finish()
    else:
        world.until(lambda w: w.works("optimize"))
        world.controllers.script = lambda request: None
    pod = leave_pods(world, "evaluate" if ending == "finished" else "optimize")
    if ending == "suspended":
        world.edit(suspend=True)
    elif ending in ("deleted", "at once"):
        world.cluster.remove(world.run)
    world.turns(4)
    uids = [found["metadata"]["uid"] for found in world.cluster.all("Pod")]
    assert pod["metadata"]["uid"] not in uids
    if ending == "deleted":
        world.until(is_gone, limit=15)
        assert not_removed(world) == []


@pytest.mark.parametrize("ending", ["at work", "finished", "deleted"])
def test_a_pod_that_somebody_else_made_with_a_workers_labels_is_left_alone(ending):
    """The operator deleted what a user had made to look at a network policy."""
    world = World(manifest(strategy="p"))
    world.until(lambda w: w.works("optimize"))
    pod = leave_pods(world, "optimize")
    del pod["metadata"]["labels"][names.MANAGED_BY]
    if ending == "finished":
        world.finish()
    elif ending == "deleted":
        world.cluster.remove(world.run)
    world.turns(4)
    assert pod["metadata"]["uid"] in [found["metadata"]["uid"] for found in world.cluster.all("Pod")]


def test_a_namespace_that_goes_takes_no_new_jobs():
    world = deleted("optimize")

    def admit(verb, thing):
        if verb == "create" and thing["kind"] == "Job":
            raise refusal(403, "Forbidden", "namespace team is being terminated")

    world.cluster.admission = admit
    world.until(is_gone, limit=15)
    assert "the cluster takes no Job for it (403" in told(world)


@pytest.mark.parametrize("change", [{"strategy": "p -> x"}, {"seed": -1}, {"storage": None}])
def test_a_run_that_has_become_invalid_goes_when_it_is_deleted(change):
    world = deleted("optimize")
    world.edit(**change)
    world.until(is_gone, limit=15)
    assert "the run's objects stay in S3" in told(world)


def test_a_pod_that_an_ended_job_has_left_does_not_hold_up_the_deletion():
    """The run stayed for eight minutes, and its objects in S3 for good."""
    world = World(manifest(strategy="p", **DELETE))
    world.until(lambda world: world.stage(0, "check").state == "Succeeded" if world.status.steps else False)
    job = next(job for job in world.cluster.all("Job") if "check" in job["metadata"]["name"])
    left = world.controllers._add_pod(job, job["spec"]["template"], 9)["metadata"]["name"]
    world.controllers.hold = lambda pod: {"phase": "Pending"} if pod["metadata"]["name"] == left else None
    world.cluster.remove(world.run)
    world.until(is_gone, limit=15)
    assert not_removed(world) == []


def test_a_pod_that_a_job_makes_while_its_run_is_deleted_is_waited_for(monkeypatch):
    """It may still write what the cleanup is to remove."""
    world = World(manifest(strategy="p", **DELETE))
    for _ in range(5):
        world.look()
    (job,) = world.cluster.all("Job")
    world.cluster.remove(world.run)
    found, made = world.cluster.list, []

    def listed(kind, *args, **kwargs):
        if kind == "Job" and not made:
            made.append(world.controllers._add_pod(job, job["spec"]["template"], 0))
        return found(kind, *args, **kwargs)

    monkeypatch.setattr(world.cluster, "list", listed)
    world.look()
    assert made
    assert not [name for name in world.created("Job") if name.endswith("-cleanup")]


def test_a_run_that_was_never_valid_goes_when_it_is_deleted():
    world = World(manifest(strategy="x", **DELETE))
    world.turns(2)
    world.cluster.remove(world.run)
    world.until(is_gone, limit=15)


@pytest.mark.parametrize("storage", [{}, DELETE])
def test_what_was_refused_of_a_run_that_is_gone_is_forgotten(storage):
    """It was kept for as long as the process lived."""
    world = World(manifest(strategy="p", **storage))

    def admit(verb: str, thing: dict[str, object]) -> None:
        if (verb, thing["kind"]) == ("create", "Job"):
            raise refusal(403, "Forbidden", "exceeded quota: jobs")

    world.cluster.admission = admit
    world.until(lambda world: world.passes._refused)
    world.cluster.remove(world.run)
    world.until(is_gone, limit=15)
    world.look()
    assert not world.passes._refused


def test_the_cleanup_of_an_earlier_run_of_the_same_name_gives_way():
    world = deleted()
    labels = names.labels("reviews", "uid-earlier", names.CLEANUP)
    metadata = {"name": "reviews-cleanup", "labels": labels}
    done = {"conditions": [{"type": "Complete", "status": "True"}]}
    old = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": {"template": {}}, "status": done}
    world.cluster.add(old)
    world.until(is_gone, limit=15)
    assert world.created("Job").count("reviews-cleanup") == 1


def test_other_finalizers_are_left_alone():
    world = World(manifest(**DELETE))
    world.run["metadata"]["finalizers"] = ["others/finalizer"]
    world.turns(2)
    assert world.run["metadata"]["finalizers"] == ["others/finalizer", FINALIZER]
    world.cluster.remove(world.run)
    world.until(lambda w: w.run["metadata"]["finalizers"] == ["others/finalizer"], limit=15)
    assert world.quiet_writes() == []


def test_a_death_at_any_write_of_a_deletion_ends_it_all_the_same():
    world = deleted("optimize")
    saved, before = world.saved(), len(world.cluster.writes)
    world.until(is_gone, limit=15)
    after = len(world.cluster.writes)
    for write in range(before, after):
        for when in ("before", "after"):
            world.restore(saved)
            world.cluster.crash = (write, when)
            world.until(is_gone, limit=20)
            world.turns(3)
            assert world.cluster.names("Job") == ["reviews-cleanup"]
            assert world.cluster.all("Deployment") == []


def test_an_answer_of_the_api_server_is_raised_for_the_queue():
    world = World()

    def admit(verb, thing):
        if thing["kind"] == "Job":
            raise refusal(500, "InternalError")

    world.cluster.admission = admit
    with pytest.raises(Exception, match="InternalError"):
        world.turns(3)
    world.cluster.admission = lambda verb, thing: None
    assert world.finish().succeeded == ("True", "Completed")
