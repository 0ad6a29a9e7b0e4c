"""Trainings on several machines: what a JobSet is told, and what its end means."""

from __future__ import annotations

import pytest
from tests.unit.operator.kubernetes.cluster import START, Object, labels_of, owners_of
from tests.unit.operator.kubernetes.controllers import Ending, ordinary, speaking
from tests.unit.operator.kubernetes.world import GPU, World, leftovers, manifest, settings

from tandem_api.contract import StageResult
from tandem_api.v1alpha1.run import parse_run
from tandem_operator.platforms.kubernetes import names
from tandem_operator.platforms.kubernetes.jobsets import COMPLETION_INDEX
from tandem_operator.platforms.kubernetes.manifest import cluster_problems
from tandem_operator.platforms.kubernetes.task_state import observe_task

TOGETHER = {"strategy": "w", "training": {"nodes": 2, "backend": "jobset", "resources": GPU}}
TASK = "reviews-1w-train-1"


def world(**spec: object) -> World:
    return World(manifest(**{**TOGETHER, **spec}))


def training(here: World) -> World:
    """Up to a training that is under way."""
    here.controllers.script = lambda request: None if request.stage == "train" else ordinary(request)
    return here.until(lambda w: w.works("train"))


def the_jobset(here: World) -> Object:
    (jobset,) = here.cluster.all("JobSet")
    return jobset


def environment(pod: Object) -> dict[str, object]:
    return {v["name"]: v.get("value", v.get("valueFrom")) for v in pod["spec"]["containers"][0]["env"]}


def test_a_training_on_two_machines_ends_like_any_other():
    here = world().finish()
    assert here.succeeded == ("True", "Completed")
    assert here.created("JobSet") == [TASK]
    assert TASK not in here.created("Job")
    assert the_jobset(here)["spec"]["ttlSecondsAfterFinished"] == here.settings.job_ttl_seconds
    assert [left for left in leftovers(here) if TASK not in left] == []
    here.turns(4, seconds=here.settings.job_ttl_seconds)
    assert here.cluster.all("JobSet") == []
    assert here.quiet_writes() == []


def test_the_pods_are_told_how_to_find_each_other():
    here = training(world())
    jobset = the_jobset(here)
    (replicated,) = jobset["spec"]["replicatedJobs"]
    job = replicated["template"]["spec"]
    assert (job["completionMode"], job["completions"], job["parallelism"], job["backoffLimit"]) == ("Indexed", 2, 2, 0)
    assert jobset["spec"]["failurePolicy"] == {"maxRestarts": 0}
    found = environment(job["template"])
    assert found["MASTER_ADDR"] == f"{TASK}-n-0-0.{TASK}"
    assert found["NNODES"] == "2"
    assert "job-completion-index" in str(found["NODE_RANK"])
    assert job["template"]["spec"]["containers"][0]["command"][-1] == "tandem_trainer.lora.node"
    assert owners_of(jobset) == {here.run["metadata"]["uid"]}
    assert len([pod for pod in here.pods(names.WORKER) if labels_of(pod)[names.STAGE] == "train"]) == 2


def test_no_machine_is_replaced_alone():
    (replicated,) = the_jobset(training(world()))["spec"]["replicatedJobs"]
    rules = replicated["template"]["spec"]["podFailurePolicy"]["rules"]
    assert [rule["action"] for rule in rules] == ["FailJob"]


def test_it_is_the_jobset_that_waits_in_a_queue():
    here = world(queue="team-queue")
    run = here.cluster.find("OptimizationRun", "reviews")
    assert run is not None
    run["metadata"]["labels"] = {names.QUEUE_PRIORITY: "nightly"}
    jobset = the_jobset(training(here))
    (replicated,) = jobset["spec"]["replicatedJobs"]
    for name, value in ((names.QUEUE, "team-queue"), (names.QUEUE_PRIORITY, "nightly")):
        assert labels_of(jobset)[name] == value
        assert name not in replicated["template"]["metadata"]["labels"]


def test_machines_that_train_together_may_talk_to_each_other():
    def peers(here: World) -> list[Object]:
        policy = here.cluster.find("NetworkPolicy", "reviews-workers")
        assert policy is not None
        return [rule for rule in policy["spec"]["ingress"] if "ports" not in rule]

    (rule,) = peers(training(world()))
    assert rule["from"][0]["podSelector"]["matchLabels"][names.COMPONENT] == names.WORKER
    assert peers(training(world(training={}))) == []


def test_pod_names_stay_short_however_long_the_runs_name_is():
    task = "a-run-of-which-the-name-is-as-long-as-any-may-be-000-1w-train-"
    one, other = names.jobset_name(f"{task}1"), names.jobset_name(f"{task}2")
    assert len(f"{one}-n-0-63-abcde") <= 63
    assert one != other
    assert names.jobset_name(TASK) == TASK


@pytest.mark.parametrize(
    ("first", "others", "reason", "said"),
    [
        (speaking(42, "BadConfiguration", "the loss is nan"), Ending(42), "BadConfiguration", "the loss is nan"),
        (Ending(143), speaking(42, "BadConfiguration", "no such model here"), "BadConfiguration", "no such model"),
        (Ending(137), Ending(137, reason="OOMKilled"), "OOMKilled", "more memory"),
    ],
)
def test_the_attempt_ends_as_the_machine_that_failed_says(first: Ending, others: Ending, reason: str, said: str):
    here = world(attempts=1)
    here.controllers.script = lambda request: first if request.stage == "train" else ordinary(request)
    here.controllers.others = others
    here.until(lambda w: w.run.get("status", {}).get("steps") and w.stage(1, "train").state == "Failed")
    assert here.stage(1, "train").reason == reason
    assert said in here.stage(1, "train").message


def test_a_machine_that_the_cluster_takes_away_costs_no_attempt():
    here = training(world(attempts=1))
    here.controllers.script = lambda request: Ending(1) if request.stage == "train" else ordinary(request)
    here.controllers.others = Ending(143, disrupted=True)
    here.turn()
    here.controllers.script, here.controllers.others = ordinary, None
    here.finish()
    assert here.succeeded == ("True", "Completed")
    assert here.created("JobSet") == [TASK, "reviews-1w-train-2"]
    assert here.stage(1, "train").failures == 0


def test_a_suspended_run_lets_its_jobset_go_and_starts_another():
    here = training(world())
    here.edit(suspend=True)
    here.turns(5)
    assert here.cluster.all("JobSet") == []
    assert not here.works("train")
    here.controllers.script = ordinary
    here.edit(suspend=None)
    assert here.finish().succeeded == ("True", "Completed")


def test_a_deleted_runs_jobset_goes_and_is_not_made_again():
    storage = {**manifest()["spec"]["storage"], "deletionPolicy": "Delete"}
    here = training(world(storage=storage))
    here.cluster.remove(here.run)
    here.turns(8)
    assert here.cluster.all("JobSet") == []
    assert [name for name in here.cluster.names("Job") if "train" in name] == []


@pytest.mark.parametrize("missing", ["has_jobsets", "may_see_jobsets"])
def test_a_run_with_a_jobset_can_be_deleted_where_there_are_none_or_none_may_be_seen(missing: str):
    here = world(storage={**manifest()["spec"]["storage"], "deletionPolicy": "Delete"})
    here.turns(3)
    setattr(here.cluster, missing, False)
    here.cluster.remove(here.run)
    here.turns(12)
    assert here.cluster.names("OptimizationRun") == []


def test_jobset_that_is_removed_while_a_run_goes_on_is_told_and_waited_for():
    here = training(world())
    here.cluster.has_jobsets = False
    here.cluster.remove(the_jobset(here))
    here.turns(20)
    assert "404" in str(here.run["status"])
    here.controllers.script, here.cluster.has_jobsets = ordinary, True
    assert here.finish().succeeded == ("True", "Completed")


def test_the_end_of_another_machine_is_never_the_trainings_result():
    job: Object = {"metadata": {}, "spec": {}, "status": {"conditions": [{"type": "Complete", "status": "True"}]}}

    def pod(node: int, message: str) -> Object:
        ended = {"terminated": {"exitCode": 0, "message": message}}
        return {
            "metadata": {"name": f"n-{node}", "annotations": {COMPLETION_INDEX: str(node)}},
            "status": {"phase": "Succeeded", "containerStatuses": [{"name": "worker", "state": ended}]},
        }

    def termination(*pods: Object) -> str:
        found = observe_task(job, pods, events=lambda _: (), progress=None, now=START, settings=settings())
        assert found is not None
        return found.termination

    result = StageResult(facts={"rows": 3}).to_message()
    assert termination(pod(1, "{}"), pod(0, result)) == result
    assert termination(pod(1, "{}")) == ""


def test_a_jobset_of_which_nothing_becomes_is_told():
    here = world()
    here.controllers.makes_jobs = False
    here.until(lambda w: "NoJob" in str(w.run.get("status")))
    assert "the JobSet controller has made no Job" in str(here.run["status"])
    here.controllers.makes_jobs = True
    assert here.finish().succeeded == ("True", "Completed")


@pytest.mark.parametrize(
    ("settings_of_w", "training", "allowed"),
    [
        ({}, TOGETHER["training"], None),
        ({"batchSize": 7}, TOGETHER["training"], 2),
        ({"microBatchSize": 8}, TOGETHER["training"], 16),
        ({"batchSize": 6}, {"resources": {"limits": {"nvidia.com/gpu": 4, "rdma/hca": 1}}}, 4),
        ({"batchSize": 8}, {"resources": {"limits": {"nvidia.com/gpu": 4, "rdma/hca": 1}}}, None),
        ({"batchSize": 7}, {}, 8),
        ({"batchSize": 7}, {"resources": {"limits": {"cpu": 3}}}, None),
    ],
)
def test_devices_must_be_able_to_share_a_batch(settings_of_w: Object, training: Object, allowed: int | None):
    run = parse_run(manifest(strategy="p -> w", weightOptimizer=settings_of_w, training=training))
    problems = [str(problem) for problem in cluster_problems(run, {"limits": {"nvidia.com/gpu": "8"}})]
    assert len(problems) == (allowed is not None)
    for problem in problems:
        assert problem.startswith("spec.weightOptimizer.batchSize: found ")
        assert f"allowed: a multiple of {allowed}; write batchSize: {max(8, allowed or 0)}, or change" in problem


def test_a_batch_that_cannot_be_shared_is_told_at_its_step():
    steps = [{"kind": "w"}, {"kind": "p"}, {"kind": "w", "weightOptimizer": {"batchSize": 9}}]
    run = parse_run(manifest(strategy=steps, training=TOGETHER["training"]))
    (problem,) = cluster_problems(run)
    assert problem.path == "spec.strategy[2].weightOptimizer.batchSize"


def test_a_batch_is_left_alone_where_the_runs_own_patch_says_how_many_devices_train():
    patch = {"spec": {"containers": [{"name": "worker", "env": [{"name": "CUDA_VISIBLE_DEVICES", "value": "0"}]}]}}
    training = {"resources": {"limits": {"nvidia.com/gpu": 2}}, "podTemplate": patch}
    assert cluster_problems(parse_run(manifest(weightOptimizer={"batchSize": 7}, training=training))) == []


def test_a_cluster_without_jobsets_refuses_the_run_and_names_the_fix():
    here = world()
    here.cluster.has_jobsets = False
    here.turns(3)
    assert here.created("JobSet") == here.created("Job") == []
    message = here.condition("Succeeded").message
    assert "spec.training.backend" in message
    assert "install JobSet" in message


@pytest.mark.parametrize(
    ("fields", "path", "fix"),
    [
        ({"nodes": 2}, "spec.training.nodes", "backend: jobset"),
        ({"nodes": 2, "backend": "trainjob"}, "spec.training.backend", "'jobset' for several"),
    ],
)
def test_several_machines_need_a_jobset(fields: Object, path: str, fix: str):
    (problem,) = cluster_problems(parse_run(manifest(training=fields)))
    assert str(problem).startswith(path)
    assert fix in str(problem)
