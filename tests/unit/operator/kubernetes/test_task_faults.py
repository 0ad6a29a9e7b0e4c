"""What goes wrong with workers' pods: it is told in the status, retried, waited for, or ends the run."""

from __future__ import annotations

import pytest
from tests.unit.operator.kubernetes import pod_faults
from tests.unit.operator.kubernetes.cluster import START
from tests.unit.operator.kubernetes.controllers import Ending, ordinary, speaking
from tests.unit.operator.kubernetes.pod_faults import of, waits
from tests.unit.operator.kubernetes.world import World, guard, leftovers, manifest, settings

from tandem_operator.platforms.kubernetes.names import STAGE, WORKER
from tandem_operator.platforms.kubernetes.task_state import observe_task

NO_SECRET = 'secret "s3" not found'
NO_CONFIGMAP = 'MountVolume.SetUp failed for volume "configmap-reviews-data" : configmap "reviews.data" not found'


def failing(world: World, stage: str, *endings: Ending) -> World:
    """The first attempts of `stage` end like this; then it works."""
    left = list(endings)

    def script(request):
        return left.pop(0) if request.stage == stage and left else ordinary(request)

    world.controllers.script = script
    return world


WAITS = {
    "image": (
        lambda c: waits(("ErrImagePull", "manifest unknown"), ("ImagePullBackOff", "Back-off pulling image")),
        "ImagePullBackOff",
        "the image 'tandem-trainer:test' cannot be pulled",
    ),
    "secret": (
        lambda c: waits(("CreateContainerConfigError", NO_SECRET)),
        "MissingSecret",
        "kubectl -n team create secret generic s3",
    ),
    "key": (
        lambda c: waits(("CreateContainerConfigError", "couldn't find key AWS_ACCESS_KEY_ID in Secret team/s3")),
        "MissingSecret",
        "AWS_ACCESS_KEY_ID",
    ),
    "configmap": (
        lambda c: pod_faults.failed_mount(c, NO_CONFIGMAP),
        "MissingConfigMap",
        "kubectl -n team create configmap reviews.data",
    ),
    "volume": (
        lambda c: pod_faults.failed_mount(c, "timed out waiting for the condition"),
        "MissingVolume",
        "timed out",
    ),
    "name": (lambda c: waits(("InvalidImageName", "couldn't parse")), "InvalidImageName", "is not an image's name"),
}


def with_leftover(world: World, stage: str) -> World:
    """The Job of that stage's attempt ends while another pod of it waits, as when its node was lost for a while."""
    left: list[str] = []
    step = world.controllers.step

    def leave(seconds: float = 2.0) -> None:
        step(seconds)
        for job in world.cluster.all("Job"):
            if not left and stage in job["metadata"]["name"] and job.get("status", {}).get("conditions"):
                left.append(world.controllers._add_pod(job, job["spec"]["template"], 9)["metadata"]["name"])

    def hold(pod):
        return {"phase": "Pending"} if pod["metadata"]["name"] in left else None

    world.controllers.step, world.controllers.hold = leave, hold
    return world


@pytest.mark.parametrize("stage", ["0b-evaluate", "1p-optimize", "2f-evaluate"])
def test_a_pod_that_an_ended_job_has_left_goes_with_it(stage):
    """One waited for its request, which had been tidied away, for as long as the Job was there."""
    world = with_leftover(World(manifest(strategy="p")), stage).finish()
    assert world.succeeded == ("True", "Completed")
    assert leftovers(world) == []


@pytest.mark.parametrize("way", WAITS)
def test_a_pod_that_can_never_start_ends_the_run_and_says_why(way):
    make, reason, words = WAITS[way]
    world = World(manifest(strategy="p"), settings(startFailureSeconds=120))
    world.controllers.hold = of(WORKER, make(world.controllers), stage="optimize")
    world.finish(seconds=5)
    assert world.succeeded == ("False", reason)
    assert words in world.condition("Succeeded").message
    assert world.status.steps[1].attempts == 1  # another attempt would wait for the same
    assert world.status.best is not None  # what was found so far is kept
    assert leftovers(world) == []
    assert ("Warning", "RunFailed", 1) in world.events()


@pytest.mark.parametrize("way", ["image", "secret", "configmap", "volume"])
def test_what_a_pod_waits_for_is_told_once_in_words_that_stay(way):
    make, reason, words = WAITS[way]
    world = World(manifest(strategy="p"))
    world.controllers.hold = of(WORKER, make(world.controllers), stage="optimize")
    world.until(lambda w: w.condition("Progressing").reason == reason if w.status.conditions else False, seconds=4)
    message = world.condition("Progressing").message
    assert words in message and message.startswith("step 1 (p), attempt 1: ")
    # The kubelet's words change with every try; nothing is written for it.
    assert world.quiet_writes() == []
    assert world.condition("Progressing").message == message
    assert world.events().count(("Warning", reason, 1)) == 1
    world.controllers.hold = pod_faults.nothing
    world.finish()
    assert world.succeeded == ("True", "Completed")
    assert world.stage(1, "optimize").attempt == 1


def test_an_unschedulable_pod_is_waited_for_and_told_about_after_a_while():
    world = World(manifest(strategy="p"), settings(unschedulableSeconds=60))
    world.controllers.hold = of(WORKER, pod_faults.unscheduled, stage="optimize")
    world.until(lambda w: w.condition("Progressing").reason == "Scheduling" if w.status.conditions else False)
    assert not any(reason == "Unschedulable" for _, reason, _ in world.events())
    world.until(lambda w: w.condition("Progressing").reason == "Unschedulable")
    assert "Insufficient nvidia.com/gpu" in world.condition("Progressing").message
    assert world.quiet_writes(seconds=100) == []
    assert world.events().count(("Warning", "Unschedulable", 1)) == 1
    world.controllers.hold = pod_faults.nothing
    world.finish()
    assert world.succeeded == ("True", "Completed")
    assert (world.stage(1, "optimize").attempt, world.stage(1, "optimize").failures) == (1, 0)


def test_a_gated_pod_waits_for_quota_without_a_warning():
    world = World(manifest(strategy="p"), settings(unschedulableSeconds=60))
    gated = lambda pod: pod_faults.unscheduled(pod, "SchedulingGated")  # noqa: E731
    world.controllers.hold = of(WORKER, gated, stage="optimize")
    world.until(lambda w: w.condition("Progressing").reason == "WaitingForQuota" if w.status.conditions else False)
    assert world.quiet_writes(seconds=100) == []
    assert ("Normal", "WaitingForQuota", 1) in world.events()


def test_a_job_that_kueue_holds_back_waits_for_quota():
    world = World(manifest(strategy="p", queue="team-queue"))

    def kueue(verb, thing):
        if thing["kind"] == "Job" and verb == "create" and "kueue.x-k8s.io/queue-name" in thing["metadata"]["labels"]:
            thing["spec"]["suspend"] = True

    world.cluster.admission = kueue
    world.turns(3)
    assert world.condition("Progressing").reason == "WaitingForQuota"
    assert "team-queue" in world.condition("Progressing").message
    assert world.quiet_writes() == []
    assert ("Normal", "WaitingForQuota", 1) in world.events()
    world.cluster.admission = lambda verb, thing: None
    job = world.cluster.all("Job")[0]
    world.cluster.change(job, {**job, "spec": {**job["spec"], "suspend": False}})
    assert world.finish().succeeded == ("True", "Completed")


def test_pods_that_admission_refuses_are_told_about():
    world = World(manifest(strategy="p"))
    world.controllers.refuse_pods = 'pods "reviews-0b-check-1-x" is forbidden: exceeded quota: compute'
    world.turns(4)
    progressing = world.condition("Progressing")
    assert progressing.reason == "CannotCreatePod"
    assert "exceeded quota" in progressing.message
    assert [w for w in world.quiet_writes() if "OptimizationRun" in w or "Job" in w] == []
    assert ("Warning", "CannotCreatePod", 1) in world.events()
    world.controllers.refuse_pods = ""
    assert world.finish().succeeded == ("True", "Completed")


ENDINGS = {
    # way: (ending, counted failures, reason of the failed attempt)
    "crash": (Ending(1, "Traceback: boom"), 1, "WorkerDied"),
    "out of memory": (Ending(137, reason="OOMKilled"), 1, "OOMKilled"),
    "evicted for its disk": (
        Ending(137, pod_reason="Evicted", pod_message="Pod ephemeral local storage usage exceeds the total limit"),
        1,
        "Evicted",
    ),
    "evicted from its node": (
        Ending(137, pod_reason="Evicted", pod_message="The node was low on resource: memory"),
        0,
        "Preempted",
    ),
    "stopped in good order": (Ending(143, "Preempted"), 0, "Preempted"),
    "node gone": (Ending(137, pod_reason="NodeShutdown"), 0, "Preempted"),
    "says why": (speaking(1, "ServingUnavailable", "the server is dead"), 1, "ServingUnavailable"),
}


@pytest.mark.parametrize("way", ENDINGS)
def test_an_attempt_that_ends_badly_is_followed_by_another(way):
    ending, failures, reason = ENDINGS[way]
    world = failing(guard(World(manifest(strategy="p"))), "optimize", ending)
    world.until(lambda w: w.stage(1, "optimize").reason == reason if w.status.steps else False)
    world.finish()
    assert world.succeeded == ("True", "Completed")
    assert (world.stage(1, "optimize").attempt, world.stage(1, "optimize").failures) == (2, failures)
    assert leftovers(world) == []
    told = [reason for _, reason, _ in world.events()]
    assert told.count("AttemptFailed") == failures
    assert told.count("Preempted") == 1 - failures


def test_a_worker_without_memory_is_told_where_to_give_it_more():
    ending = Ending(137, reason="OOMKilled")
    world = failing(World(manifest(strategy="p", workers={"resources": {"limits": {"memory": "1Gi"}}})), "optimize")
    failing(world, "optimize", ending, ending, ending)
    world.finish()
    assert world.succeeded == ("False", "OOMKilled")
    message = world.condition("Succeeded").message
    assert "its limit of 1Gi" in message and "spec.workers.resources" in message
    world = failing(World(manifest(strategy="w")), "train", ending, ending, ending).finish()
    assert "spec.training.resources" in world.condition("Succeeded").message


@pytest.mark.parametrize("code", [42, 43])
def test_a_permanent_failure_ends_the_run_at_once(code):
    world = failing(World(manifest(strategy="p")), "optimize", speaking(code, "BadData", "the file is empty")).finish()
    assert world.succeeded == ("False", "BadData")
    assert world.stage(1, "optimize").attempt == 1
    assert leftovers(world) == []


@pytest.mark.parametrize(("version", "attempts"), [((1, 25), 2), ((1, 33), 1)])
def test_a_disrupted_pod_costs_nothing(version, attempts):
    """Newer clusters replace it within its Job; on older ones the next attempt is a new Job. Neither is counted."""
    world = World(manifest(strategy="p"))
    world.cluster.server_version = version
    world.passes = world.operator()
    failing(world, "optimize", Ending(143, disrupted=True)).finish()
    assert world.succeeded == ("True", "Completed")
    assert (world.stage(1, "optimize").attempt, world.stage(1, "optimize").failures) == (attempts, 0)


def test_a_job_that_has_failed_is_waited_for_until_its_pod_has_ended():
    """Clusters before 1.31 say that a Job has failed while its pod still keeps what it has."""
    job = {"metadata": {"name": "j"}, "status": {"conditions": [{"type": "Failed", "status": "True"}]}}
    pod = {"metadata": {"name": "p", "deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": "Running"}}
    nothing = {"events": lambda thing: [], "progress": None, "now": START, "settings": settings()}
    assert observe_task(job, [pod], **nothing).state == "running"
    pod["status"] = {"phase": "Failed", "containerStatuses": []}
    assert observe_task(job, [pod], **nothing).state == "failed"
    assert observe_task(job, [], **nothing).reason == "PodLost"


def test_an_attempt_that_takes_too_long_is_counted():
    world = World(manifest(strategy="p", stageTimeoutSeconds=60, attempts=2))
    world.controllers.script = lambda request: None if request.stage == "optimize" else ordinary(request)
    world.finish(seconds=5)
    assert world.succeeded == ("False", "DeadlineExceeded")
    assert world.stage(1, "optimize").failures == 2


def test_a_lost_result_is_fetched_by_another_attempt():
    world = World(manifest(strategy="p"))
    lost = []
    world.until(lambda w: w.works("optimize"))
    usual = world.controllers.step

    def step(seconds=2.0):
        usual(seconds)
        for pod in world.pods(WORKER):
            if not lost and pod["metadata"]["labels"][STAGE] == "optimize" and pod["status"]["phase"] == "Succeeded":
                lost.append(pod)
                world.cluster.gone(pod)

    world.controllers.step = step
    world.finish()
    assert lost
    assert world.succeeded == ("True", "Completed")
    assert (world.stage(1, "optimize").attempt, world.stage(1, "optimize").failures) == (2, 1)
