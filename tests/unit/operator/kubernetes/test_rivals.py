"""Others in the way: a second operator, an earlier run of the same name, people who delete and scale by hand."""

from __future__ import annotations

import random
import threading

import pytest
from kubernetes.client import ApiException
from tests.unit.operator.kubernetes.cluster import copied, refusal
from tests.unit.operator.kubernetes.controllers import ordinary
from tests.unit.operator.kubernetes.test_runs import P_W_P
from tests.unit.operator.kubernetes.world import NAME, NAMESPACE, World, guard, leftovers, manifest, outcome

from tandem_operator.platforms.kubernetes import names


class Turns:
    """Two threads of which one runs at a time; who goes on is decided by lot at every call to the API server."""

    def __init__(self, seed: int) -> None:
        self._lots = random.Random(seed)
        self._free = threading.Condition()
        self._threads: set[int] = set()
        self._current: int | None = None

    def play(self, *parts) -> None:
        threads = [threading.Thread(target=self._play, args=(number, part)) for number, part in enumerate(parts)]
        self._threads = set(range(len(parts)))
        self._current = self._lots.choice(sorted(self._threads))
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    def pass_on(self) -> None:
        """Called at every call; waits until it is this thread's turn again."""
        mine = getattr(self._mine, "number", None)
        if mine is not None:
            with self._free:
                self._next()
                self._free.wait_for(lambda: self._current == mine)

    _mine = threading.local()

    def _play(self, number, part) -> None:
        self._mine.number = number
        with self._free:
            self._free.wait_for(lambda: self._current == number)
        try:
            part()
        finally:
            with self._free:
                self._threads.discard(number)
                self._next()

    def _next(self) -> None:
        if self._threads:
            self._current = self._lots.choice(sorted(self._threads))
        self._free.notify_all()


@pytest.mark.parametrize("seed", range(6))
def test_two_operators_at_once_come_to_the_same_end(seed):
    """They should never be two; where they are for a moment, the resource's version keeps them apart."""
    mode = "reload" if seed % 2 else "merged"
    undisturbed = outcome(guard(World(manifest(serving={"adapters": mode}))).finish())
    world = World(manifest(serving={"adapters": mode}))
    turns = Turns(seed)
    world.cluster.before_call = turns.pass_on
    rivals = [world.operator(), world.operator()]
    conflicts = []

    def play(operator):
        try:
            operator.reconcile_run(NAMESPACE, NAME)
        except ApiException as error:
            assert error.status == 409
            conflicts.append(error)

    def both(world):
        turns.play(*(lambda rival=rival: play(rival) for rival in rivals))
        return world.status.finished is not None

    world.until(both)
    world.cluster.before_call = lambda: None
    world.turns(6)
    assert outcome(world) == undisturbed
    assert conflicts
    assert sorted(set(world.stages())) == sorted(P_W_P)
    assert leftovers(world) == []


def earlier(world: World, kind: str, name: str, **body) -> None:
    """An object that a run of the same name has left behind."""
    labels = names.labels(world.name, "uid-earlier", names.WORKER)
    metadata = {"name": name, "labels": labels}
    world.cluster.add({"apiVersion": "v1", "kind": kind, "metadata": metadata, **body})


WAYS = {
    "spec": ("ConfigMap", "reviews-spec", {"immutable": True, "data": {"spec.json": "{}"}}),
    "request": ("ConfigMap", "reviews-0b-check-1", {"data": {"request.json": "{}"}}),
    "Job": ("Job", "reviews-0b-check-1", {"spec": {"template": {}, "suspend": True}}),
    "Service": ("Service", "reviews-serving", {"spec": {}}),
    "Deployment": (
        "Deployment",
        "reviews-serving",
        {"spec": {"replicas": 0, "selector": {"matchLabels": {"run": "earlier"}}, "template": {}}},
    ),
    "policy": ("NetworkPolicy", "reviews-workers", {"spec": {}}),
}


@pytest.mark.parametrize("way", WAYS)
def test_what_an_earlier_run_of_the_same_name_left_gives_way(way):
    world = guard(World())
    kind, name, body = WAYS[way]
    earlier(world, kind, name, **body)
    world.finish()
    assert world.succeeded == ("True", "Completed")
    assert world.stages() == P_W_P
    assert leftovers(world) == []


@pytest.mark.parametrize("way", WAYS)
def test_what_others_made_under_our_names_is_told_and_never_deleted(way):
    world = World()
    kind, name, body = WAYS[way]
    theirs = world.cluster.add({"apiVersion": "v1", "kind": kind, "metadata": {"name": name}, **copied(body)})
    world.turns(12)
    # The spec is asked for before anything is decided; all else when its turn comes.
    told = world.condition("Accepted") if way == "spec" else world.condition("Progressing")
    assert told.reason == ("InvalidSpec" if way == "spec" else "NameTaken")
    assert f"{kind} {name!r}" in told.message
    # It is asked for again, and nothing else is written.
    # The patch changes nothing: it proves that the run is as it was read.
    assert {*world.quiet_writes()} <= {f"create {kind} {name}", "patch OptimizationRun reviews"}
    world.cluster.remove(world.run)
    world.turns(4)
    assert world.cluster.find(kind, name) is theirs
    assert f"delete {kind} {name}" not in world.cluster.writes


def test_a_name_that_is_taken_no_more_lets_the_run_go_on():
    world = World(manifest(strategy="p"))
    theirs = world.cluster.add({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "reviews-serving"}})
    world.turns(12)
    world.cluster.remove(theirs)
    assert world.finish().succeeded == ("True", "Completed")


def test_a_job_that_is_deleted_by_hand_is_made_again_as_the_same_attempt():
    world = guard(World(manifest(strategy="p")))
    world.until(lambda w: w.works("optimize"))
    world.cluster.remove(world.cluster.find("Job", "reviews-1p-optimize-1"))
    world.finish()
    assert world.succeeded == ("True", "Completed")
    assert (world.stage(1, "optimize").attempt, world.stage(1, "optimize").failures) == (1, 0)
    assert world.stages().count("1p:optimize") == 2


def test_a_pod_that_is_deleted_by_hand_costs_an_attempt():
    world = guard(World(manifest(strategy="p")))
    world.until(lambda w: w.works("optimize"))
    world.cluster.remove(world.pods(names.WORKER)[-1])
    world.finish()
    assert world.succeeded == ("True", "Completed")
    stage = world.stage(1, "optimize")
    assert (stage.attempt, stage.failures) == (2, 1)


def test_a_serving_pod_that_is_deleted_by_hand_comes_back_while_the_worker_goes_on():
    world = World(manifest(strategy="p"))
    world.controllers.script = waiting_script(world, "optimize")
    world.until(lambda w: w.works("optimize"))
    world.cluster.remove(world.pods(names.SERVING)[0])
    world.turns(8)
    assert world.condition("ServingReady").status == "True"
    world.controllers.script = ordinary
    world.finish()
    assert world.created("Job").count("reviews-1p-optimize-1") == 1
    assert world.status.serving.restarts == 0


@pytest.mark.parametrize("how", ["deleted", "scaled"])
def test_servers_that_are_taken_away_by_hand_come_back(how):
    world = World(manifest(strategy="p"))
    world.controllers.script = waiting_script(world, "optimize")
    world.until(lambda w: w.works("optimize"))
    deployment = world.cluster.find("Deployment", "reviews-serving")
    if how == "deleted":
        world.cluster.remove(deployment)
    else:
        spec = {**deployment["spec"], "replicas": 0}
        world.cluster.change(deployment, {**deployment, "spec": spec})
    world.turns(12)
    assert world.condition("ServingReady").status == "True"
    assert len(world.pods(names.SERVING)) == 1
    assert world.quiet_writes() == []
    world.controllers.script = ordinary
    world.finish()
    assert world.succeeded == ("True", "Completed")
    assert world.created("Job").count("reviews-1p-optimize-1") == 1


@pytest.mark.parametrize(("kind", "name"), [("Service", "reviews-serving"), ("ConfigMap", "reviews-adapters")])
def test_what_servers_stand_on_comes_back_when_it_is_deleted_by_hand(kind, name):
    """It was made with the servers only: without their address every call failed until the attempts were used up."""
    serving = {"adapters": "reload", "resources": {"limits": {"nvidia.com/gpu": 1}}}
    world = World(manifest(strategy="w", serving=serving))
    world.controllers.script = waiting_script(world, "evaluate")
    world.until(lambda w: w.works("evaluate"))
    server, worker = world.pods(names.SERVING)[0], world.pods(names.WORKER)[0]
    world.cluster.remove(world.cluster.find(kind, name))
    world.turns(3)
    assert world.cluster.find(kind, name) is not None
    assert world.condition("ServingReady").status == "True"
    assert [world.pods(names.SERVING)[0], world.pods(names.WORKER)[0]] == [server, worker]
    assert world.quiet_writes() == []


def test_a_request_that_is_deleted_before_its_pod_starts_comes_back():
    """The pod waited for it until it was given up, and the run failed."""
    world = World(manifest(strategy="p"))
    missing = {"reason": "CreateContainerConfigError", "message": 'configmap "reviews-1p-optimize-1" not found'}
    waits = [{"name": "worker", "ready": False, "state": {"waiting": missing}}]

    def hold(pod):
        is_here = world.cluster.find("ConfigMap", "reviews-1p-optimize-1") is not None
        is_ours = pod["metadata"]["labels"].get(names.TASK) == "reviews-1p-optimize-1"
        return {"phase": "Pending", "containerStatuses": waits} if is_ours and not is_here else None

    world.controllers.hold = hold
    world.until(lambda w: w.cluster.find("Job", "reviews-1p-optimize-1") is not None)
    (job,) = (job for job in world.cluster.all("Job") if job["metadata"]["name"] == "reviews-1p-optimize-1")
    uid = job["metadata"]["uid"]
    world.cluster.remove(world.cluster.find("ConfigMap", "reviews-1p-optimize-1"))
    world.until(lambda w: w.works("optimize"))
    assert world.cluster.find("Job", "reviews-1p-optimize-1")["metadata"]["uid"] == uid
    assert world.finish().succeeded == ("True", "Completed")
    assert all(stage.failures == 0 for step in world.status.steps for stage in step.stages)


@pytest.mark.parametrize("replicas", [2, 3])
def test_servers_that_somebody_scales_up_are_left_as_they_are(replicas):
    """An autoscaler would scale them again at once: there is no end to such a fight."""
    world = World(manifest(strategy="p"))
    world.controllers.script = waiting_script(world, "optimize")
    world.until(lambda w: w.works("optimize"))
    deployment = world.cluster.find("Deployment", "reviews-serving")
    world.cluster.change(deployment, {**deployment, "spec": {**deployment["spec"], "replicas": replicas}})
    world.turns(8)
    assert world.cluster.find("Deployment", "reviews-serving")["spec"]["replicas"] == replicas
    assert world.condition("ServingReady").status == "True"
    assert world.quiet_writes() == []
    world.controllers.script = ordinary
    world.finish()
    assert world.succeeded == ("True", "Completed")


def waiting_script(world: World, stage: str):
    """Workers of `stage` go on for ever."""
    usual = world.controllers.script
    return lambda request: None if request.stage == stage else usual(request)


def test_a_job_of_this_run_that_the_status_knows_nothing_of_is_stopped():
    world = World(manifest(strategy="p"))
    world.turns(2)
    stray = copied(world.cluster.find("Job", "reviews-0b-check-1"))
    del stray["metadata"]["uid"]
    stray["metadata"]["name"] = "reviews-1p-optimize-9"
    world.cluster.add(stray)
    world.turns(4)
    assert world.cluster.find("Job", "reviews-1p-optimize-9") is None
    assert world.finish().succeeded == ("True", "Completed")


def test_an_event_that_cannot_be_stored_stops_nothing():
    world = World(manifest(strategy="p"))

    def admit(verb, thing):
        if thing["kind"] == "Event":
            raise refusal(403, "Forbidden", "no events here")

    world.cluster.admission = admit
    assert world.finish().succeeded == ("True", "Completed")


def test_an_event_that_occurs_again_is_counted():
    world = World(manifest(strategy="p"))
    world.look()
    world.run["status"] = {}
    world.look()
    assert ("Normal", "StepStarted", 2) in world.events()


def test_what_is_refused_once_is_tried_again_before_the_run_fails():
    """A webhook may answer anything while it is being replaced."""
    world, refused = World(manifest(strategy="p")), []

    def admit(verb, thing):
        if verb == "create" and thing["kind"] == "Job" and thing["metadata"]["name"] not in refused:
            refused.append(thing["metadata"]["name"])
            raise refusal(422, "Invalid", "no")

    world.cluster.admission = admit
    assert world.finish().succeeded == ("True", "Completed")
    assert len(refused) == 4


@pytest.mark.parametrize(
    ("kind", "task", "field"),
    [("Job", "-check-", "spec.workers"), ("Job", "-train-", "spec.training"), ("Deployment", "", "spec.serving")],
)
def test_what_is_refused_for_good_is_told_with_the_field_that_it_was_made_of(kind, task, field):
    """The API server's words name the place in the Job: `spec.template.spec.volumes[4].csi.driver`."""
    world = World(manifest(strategy="p -> w"))

    def admit(verb, thing):
        if verb in ("create", "apply") and thing["kind"] == kind and task in thing["metadata"]["name"]:
            raise refusal(422, "Invalid", "spec.template.spec.volumes[4].csi.driver: Required value")

    world.cluster.admission = admit
    world.finish()
    assert f"made of {field} and its podTemplate: spec.template" in world.condition("Succeeded").message


def test_nothing_of_a_later_run_is_deleted_by_an_operator_that_still_sees_the_earlier_one():
    """Time travel (Sieve): the operator, started anew, reads from an API server that lags behind a deletion and a
    creation under the same name. Whatever is there then belongs to no run that it sees."""
    world = World(manifest(strategy="p"))
    world.controllers.script = waiting_script(world, "optimize")
    world.until(lambda w: w.works("optimize"))
    earlier = copied(world.run)
    world.cluster.remove(world.run)
    for kind in ("Deployment", "Service", "ConfigMap", "Job", "Pod"):  # the garbage collector
        for thing in world.cluster.all(kind):
            world.cluster.gone(thing)
    world.cluster.add(copied(manifest(strategy="p")))
    world.until(lambda w: w.works("optimize"))
    before, reads = uids(world), world.cluster.get
    assert before

    def lagging(kind, namespace, name, *, may_be_late=False):
        return copied(earlier) if kind == earlier["kind"] else reads(kind, namespace, name)

    world.cluster.get = lagging
    world.turns(8)
    assert uids(world) == before
    world.cluster.get = reads
    world.controllers.script = ordinary
    assert world.finish().succeeded == ("True", "Completed")
    assert set(world.created("Job")) == set(world.created("Job")[-4:])


def uids(world: World) -> dict[str, str]:
    """Everything that there is for a run."""
    kinds = ("Deployment", "Service", "ConfigMap", "Job", "Pod")
    return {f"{kind} {t['metadata']['name']}": t["metadata"]["uid"] for kind in kinds for t in world.cluster.all(kind)}
