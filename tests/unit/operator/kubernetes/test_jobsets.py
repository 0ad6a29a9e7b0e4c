"""Trainings on several machines: what a JobSet is told, and what its end means."""

from __future__ import annotations

import pytest
from tests.unit.operator.kubernetes.cluster import Object, labels_of, owners_of
from tests.unit.operator.kubernetes.controllers import Ending, ordinary, speaking
from tests.unit.operator.kubernetes.world import GPU, World, leftovers, manifest

from tandem_api.v1alpha1.run import parse_run
from tandem_operator.platforms.kubernetes import names
from tandem_operator.platforms.kubernetes.manifest import cluster_problems

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
    jobset = the_jobset(training(world(queue="team-queue")))
    (replicated,) = jobset["spec"]["replicatedJobs"]
    assert labels_of(jobset)[names.QUEUE] == "team-queue"
    assert names.QUEUE not in replicated["template"]["metadata"]["labels"]


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
