"""A run on a cluster in memory: the operator's passes and the cluster's own steps take turns."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

from kubernetes.client import ApiException
from tests.unit.operator.kubernetes.cluster import Clock, Cluster, Crash, Object, copied, labels_of
from tests.unit.operator.kubernetes.controllers import Controllers, status_of

from tandem_api.conditions import find
from tandem_api.v1alpha1 import Status
from tandem_api.v1alpha1.run import KIND
from tandem_api.v1alpha1.status import Condition, StageStatus
from tandem_operator.app.passes import Passes
from tandem_operator.app.queue import Outcome
from tandem_operator.platforms.kubernetes import names
from tandem_operator.platforms.kubernetes.asking import Asking
from tandem_operator.platforms.kubernetes.platform import Surroundings
from tandem_operator.settings import OperatorSettings

NAMESPACE, NAME = "team", "reviews"
GPU = {"limits": {"nvidia.com/gpu": 1}}
#: Fields of a status that tell times.
_TIMES = frozenset(
    {"started", "finished", "requested", "ready", "attemptStarted", "lastTransitionTime", "loadSeconds", "since"}
    | {"readySince", "eta", "gpuSeconds"}
)


def settings(**changes: Any) -> OperatorSettings:
    return OperatorSettings.model_validate({"images": {"trainer": "tandem-trainer:test"}, **changes})


def manifest(name: str = NAME, **spec: Any) -> Object:
    """A small valid run for a cluster; keyword arguments replace fields of its spec."""
    return {
        "apiVersion": "tandem.dev/v1alpha1",
        "kind": KIND,
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {
            "program": {"inline": {"signature": "review -> sentiment", "adapter": "plain"}},
            "metric": {"builtin": "exact-match", "field": "sentiment"},
            "data": {
                "train": {"uri": "configmap://reviews.data/train.jsonl"},
                "test": {"uri": "s3://data/test.jsonl"},
                "inputs": ["review"],
            },
            "model": {"uri": "hf://org/model"},
            "strategy": "p -> w -> p",
            "storage": {"s3": {"bucket": "bucket", "endpoint": "http://s3:9000", "credentialsSecret": "s3"}},
            **spec,
        },
    }


class World:
    """One run, its operator and its cluster."""

    def __init__(self, document: Object | None = None, set_up: OperatorSettings | None = None) -> None:
        self.cluster = Cluster()
        self.controllers = Controllers(self.cluster)
        self.settings = set_up or settings()
        self.name = (document or manifest())["metadata"]["name"]
        self.conflicts = 0
        self.passes = self.operator()
        self.cluster.add(copied(document or manifest()))

    def operator(self) -> Passes:
        """A new process."""
        asking = Asking(fetch=self.controllers.fetch, clock=lambda: Clock.current.timestamp())
        around = Surroundings(
            client=self.cluster,  # type: ignore[arg-type]
            settings=self.settings,
            asking=asking,
            operator_namespace="tandem-system",
            instance="tandem-operator-0",
            version=self.cluster.version(),
        )
        return Passes(around)

    def saved(self) -> bytes:
        """Everything that survives the operator, for `restore`."""
        cluster, controllers = self.cluster, self.controllers
        stored = (cluster._objects, cluster._applied, cluster._serial, cluster.writes)
        return pickle.dumps((stored, controllers.memory, controllers.asked, Clock.current), -1)

    def restore(self, saved: bytes) -> None:
        """Go back to that moment, with a new operator."""
        cluster, controllers = self.cluster, self.controllers
        stored, controllers.memory, controllers.asked, Clock.current = pickle.loads(saved)
        cluster._objects, cluster._applied, cluster._serial, cluster.writes = stored
        cluster.crash = None
        self.passes = self.operator()

    def look(self) -> Outcome | None:
        """One pass; None if it died, or met somebody else's write."""
        try:
            return self.passes.reconcile_run(NAMESPACE, self.name)
        except Crash:
            self.passes = self.operator()
        except ApiException as error:
            if error.status != 409:
                raise
            self.conflicts += 1
        return None

    def turn(self, seconds: float = 2.0) -> Outcome | None:
        """One pass, then one step of the cluster's."""
        outcome = self.look()
        self.controllers.step(seconds)
        return outcome

    def turns(self, number: int, seconds: float = 2.0) -> None:
        for _ in range(number):
            self.turn(seconds)

    def until(self, reached: Callable[[World], Any], limit: int = 300, seconds: float = 2.0) -> World:
        """Take turns until it is so."""
        for _ in range(limit):
            if reached(self):
                return self
            self.turn(seconds)
        raise AssertionError(f"it was not reached: {self.status.to_json()}\n{self.cluster.writes[-10:]}")

    def finish(self, limit: int = 300, seconds: float = 2.0, rest: int = 6) -> World:
        """Take turns until the run has ended, and some more, until nothing moves."""
        self.until(lambda world: "finished" in world.run.get("status", {}), limit, seconds)
        self.turns(rest, seconds)
        return self

    @property
    def run(self) -> Object:
        """The stored resource itself."""
        found = self.cluster.find(KIND, self.name)
        assert found is not None
        return found

    @property
    def status(self) -> Status:
        return Status.model_validate(self.run.get("status") or {})

    def condition(self, kind: str) -> Condition:
        found = find(self.status.conditions, kind)
        assert found is not None, f"no condition {kind}"
        return found

    @property
    def succeeded(self) -> tuple[str, str]:
        """Status and reason of the summary."""
        condition = self.condition("Succeeded")
        return condition.status, condition.reason

    def stage(self, index: int, name: str) -> StageStatus:
        return next(stage for stage in self.status.steps[index].stages if stage.name == name)

    def edit(self, **spec: Any) -> None:
        """What a user's `kubectl patch` does; None removes a field."""
        new = {key: value for key, value in {**self.run["spec"], **spec}.items() if value is not None}
        self.cluster.change(self.run, {**self.run, "spec": new})

    def pods(self, component: str) -> list[Object]:
        return [pod for pod in self.cluster.all("Pod") if labels_of(pod)[names.COMPONENT] == component]

    def works(self, stage: str) -> bool:
        """Whether a worker of this stage is running."""
        return any(
            labels_of(pod)[names.STAGE] == stage and status_of(pod).get("phase") == "Running"
            for pod in self.pods(names.WORKER)
        )

    def events(self) -> list[tuple[str, str, int]]:
        return self.cluster.told(self.run)

    def stages(self) -> list[str]:
        return [f"{r.index}{r.kind}:{r.stage}" for r in self.controllers.requests]

    def created(self, kind: str) -> list[str]:
        """The names of what was created, once for each time."""
        return [write.split(" ")[2] for write in self.cluster.writes if write.startswith(f"create {kind} ")]

    def quiet_writes(self, passes: int = 20, seconds: float = 5.0) -> list[str]:
        """What is written in so many more turns."""
        before = len(self.cluster.writes)
        self.turns(passes, seconds)
        return self.cluster.writes[before:]


def outcome(world: World) -> Any:
    """What must not depend on crashes or on luck: the status but for its times."""

    def bare(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: bare(item) for key, item in value.items() if key not in _TIMES}
        return [bare(item) for item in value] if isinstance(value, list) else value

    return bare(world.run["status"])


def leftovers(world: World) -> list[str]:
    """What a run that has ended should not hold any more."""

    def is_left(thing: Object) -> bool:
        match thing["kind"]:
            case "Pod":
                return status_of(thing).get("phase") not in ("Succeeded", "Failed")
            case "Job":
                return not status_of(thing).get("conditions") or "ttlSecondsAfterFinished" not in thing["spec"]
        return bool(thing["metadata"]["name"] != f"{world.name}-spec")

    kinds = ("Deployment", "Service", "ConfigMap", "Job", "Pod")
    things = [thing for kind in kinds for thing in world.cluster.all(kind) if is_left(thing)]
    return [f"{thing['kind']} {thing['metadata']['name']}" for thing in things]


def guard(world: World) -> World:
    """Whatever happens: no server beside a training worker, one live pod a task, one holder of the accelerator."""
    step = world.controllers.step

    def check(seconds: float = 2.0) -> None:
        step(seconds)
        alive = [p for p in world.cluster.all("Pod") if status_of(p).get("phase") not in ("Succeeded", "Failed")]
        tasks = [labels_of(p)[names.TASK] for p in alive if labels_of(p)[names.COMPONENT] == names.WORKER]
        assert len(tasks) == len(set(tasks)), f"two pods of one task: {tasks}"
        holders = [p["metadata"]["name"] for p in alive if _holds(p)]
        assert len(holders) <= 1, f"{holders} hold the accelerator at once"

    def admit(verb: str, thing: Object) -> None:
        if (verb, thing["kind"]) == ("create", "Job") and labels_of(thing).get(names.STAGE) == "train":
            assert not world.pods(names.SERVING), "the servers still hold what the training needs"

    world.controllers.step = check  # type: ignore[method-assign]
    world.cluster.admission = admit
    return world


def _holds(pod: Object) -> bool:
    return any(
        "nvidia.com/gpu" in (container.get("resources", {}).get("limits") or {})
        for container in pod["spec"]["containers"]
    )
