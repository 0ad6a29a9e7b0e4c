"""What becomes of a run whose children are deleted, taken away or written to by others.

Deleted by hand: every kind of child, right before, during and right after every stage of a run, while the operator
works and while it is down. The run ends as one that nobody disturbed; only a worker's pod that is taken away while it
works may count as a failed attempt, and one at most.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final, Self

import pytest
from tests.faults.api import ApiError
from tests.faults.children import ENV_LATENCY
from tests.faults.stages import LONG_LEASE, STAGES, STRATEGY, Stages, point, stages_of
from tests.faults.world import BATCH, World, is_full

from tandem_operator.platforms.kubernetes import names

Object = dict[str, Any]
Delete = Callable[[World, str, str], int]
"""(world, run, stage): how many it has deleted."""

#: For all runs of a test to come to the same point, on a slow machine.
SECONDS: Final = 300.0


def named(kind: str, name: Callable[[str], str]) -> Delete:
    """Deletes the child of that name."""
    return lambda world, run, stage: world.api.delete(kind, world.namespace, name(run))


def all_of(kind: str, component: str) -> Delete:
    """Deletes all children of that kind and component."""

    def delete(world: World, run: str, stage: str) -> int:
        found = world.api.list(kind, world.namespace, f"{names.RUN}={run},{names.COMPONENT}={component}")
        return sum(world.api.delete(kind, world.namespace, one["metadata"]["name"]) for one in found)

    return delete


def with_job(delete: Callable[[World, Object], bool]) -> Delete:
    """Does it to the Jobs of the stage."""

    def act(world: World, run: str, stage: str) -> int:
        return sum(delete(world, job) for job in world.jobs(run) if point(job) == stage)

    return act


def job(propagation: str) -> Delete:
    """Deletes the Job. kubectl does it in the background, older clients leave its pod alone."""

    def delete(world: World, found: Object) -> bool:
        return world.api.delete("Job", world.namespace, found["metadata"]["name"], propagationPolicy=propagation)

    return with_job(delete)


def _collect(world: World, found: Object) -> bool:
    """As the controller that collects ended Jobs does, if somebody has given them a time to live."""
    try:
        world.api.patch("Job", world.namespace, found["metadata"]["name"], {"spec": {"ttlSecondsAfterFinished": 0}})
    except ApiError as error:
        if error.status == 404:  # the operator was faster
            return False
        raise
    return True


#: What is deleted of a run, by the run's name.
CHILDREN: Final[dict[str, Delete]] = {
    "job-background": job("Background"),
    "job-foreground": job("Foreground"),
    "job-orphan": job("Orphan"),
    "job-collected": with_job(_collect),
    "request": with_job(lambda world, found: world.api.delete("ConfigMap", world.namespace, found["metadata"]["name"])),
    "worker": all_of("Pod", names.WORKER),
    "spec": named("ConfigMap", names.spec_name),
    "deployment": named("Deployment", names.serving_name),
    "replicaset": all_of("ReplicaSet", names.SERVING),
    "server": all_of("Pod", names.SERVING),
    "address": named("Service", names.serving_name),
    "replicas": named("Service", names.replicas_name),
    "adapters": named("ConfigMap", names.adapters_name),
    "policy-serving": named("NetworkPolicy", names.serving_name),
    "policy-workers": named("NetworkPolicy", names.workers_name),
}
CALM: Final = "calm"
#: The stages at which they are, where not all are wanted: one without a server, one that has released it, one that has
#: an adapter loaded.
SAMPLE: Final = ("0b-check", "2w-train", "2w-evaluate")


@pytest.mark.timeout(1800)
def test_every_child_deleted_by_hand_before_during_and_after_every_stage(
    make_world: Callable[..., World], record_cases: Callable[[str, int, int], None]
) -> None:
    world = make_world(lease=LONG_LEASE)
    acted = STAGES if is_full() else SAMPLE
    others = set(STAGES) - set(acted)
    stages, cases = Stages(world, others, others), Counter[str]()
    runs = {CALM, *CHILDREN}
    world.operator.start()
    for run in sorted(runs):
        world.apply_run(run, strategy=STRATEGY)

    def arrive(stage: str, *phases: str, but: dict[str, Object] | None = None) -> dict[str, Object]:
        def arrived() -> dict[str, Object] | None:
            found = stages.workers(stage, *phases)
            stale = {pod["metadata"]["uid"] for pod in (but or {}).values()}
            fresh = {run for run, pod in found.items() if pod["metadata"]["uid"] not in stale}
            late = runs - fresh
            return found if not late else None

        try:
            return world.wait(f"all runs at {stage} {phases}", arrived, SECONDS)
        except AssertionError:
            late = sorted(runs - stages.workers(stage, *phases).keys())
            said = {run: world.status(run).get("conditions") for run in late}
            raise AssertionError(f"late at {stage} {phases}: {said}\n{world.operator.tail()}") from None

    def delete(moment: str, stage: str) -> None:
        for run, act in CHILDREN.items():
            cases[f"{run} {moment}"] += act(world, run, stage)

    for stage in acted:
        arrive(stage, "Pending")
        delete("before", stage)
        stages.begun.add(stage)
        working = arrive(stage, "Running")
        delete("during", stage)
        gone = {run: working[run] for run in ("worker", "job-background", "job-foreground")}
        arrive(stage, "Running", but=gone)
        world.operator.kill()
        stages.ended.add(stage)
        # With its Job, if that has been collected already.
        world.wait("the workers' ends", lambda stage=stage: not stages.workers(stage, "Pending", "Running"), SECONDS)
        delete("after", stage)
        world.operator.start()

    lost = {}
    for run in sorted(runs):
        world.wait_finished(run, succeeded=None, seconds=SECONDS)
    wanted = told(world, CALM)
    assert wanted["phase"] == "Succeeded"
    for run in CHILDREN:
        found = told(world, run)
        attempts = [(s["attempt"], s.get("failures", 0)) for s in stages_of(world, run)]
        most = 2 if run == "worker" else 0
        if found != wanted or any(failures > most for _, failures in attempts):
            lost[run] = (attempts, found["conditions"])
        if kinds(world, run) != kinds(world, CALM):
            lost[run] = (kinds(world, run), kinds(world, CALM))
    total = sum(cases.values())
    print(f"{total} children deleted: {dict(cases)}")
    record_cases("child deleted by hand", total, total - sum(n for case, n in cases.items() if case.split()[0] in lost))
    assert not lost, lost
    # Some are made again with the next attempt only, and are not there twice in one.
    assert all(sum(n for case, n in cases.items() if case.split()[0] == run) >= 2 for run in CHILDREN), cases


# --- others that write ------------------------------------------------------------------------------------------------


@dataclass
class Meddler:
    """Writes to the children of two runs all the time, as queues, autoscalers and people with scripts do."""

    world: World
    counts: Counter[str] = field(default_factory=Counter)
    is_over: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._thread = threading.Thread(target=self._meddle, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.is_over.set()
        self._thread.join()

    def _meddle(self) -> None:
        while not self.is_over.wait(0.25):
            for kind, component in (("Job", names.WORKER), ("Pod", names.WORKER), ("Deployment", names.SERVING)):
                for thing in self.world.api.list(kind, self.world.namespace, f"{names.COMPONENT}={component}"):
                    self._write(kind, thing)

    def _write(self, kind: str, thing: Object) -> None:
        note = str(sum(self.counts.values()))
        patch: Object = {"metadata": {"labels": {"queue": note}, "annotations": {"position": note}}}
        if kind == "Job":
            patch["spec"] = {"activeDeadlineSeconds": 7200 + len(note), "suspend": bool(len(note) % 2)}
        replicas = thing.get("spec", {}).get("replicas")
        if kind == "Deployment" and replicas not in (0, REPLICAS):  # one that is at 0 no autoscaler touches
            patch["spec"] = {"replicas": REPLICAS}
            self.counts["scaled"] += 1
        with suppress(ApiError):  # it is gone
            self.world.api.patch(kind, self.world.namespace, thing["metadata"]["name"], patch)
            self.counts[kind] += 1


#: What the autoscaler wants; the runs want 1.
REPLICAS: Final = 2
WATCHED_SECONDS: Final = 30.0
#: Writes of the operator in that time, for two runs: what it has to tell of the servers that come.
QUIET_WRITES: Final = 8


@pytest.mark.timeout(900)
def test_others_that_write_to_the_children_are_not_fought(
    make_world: Callable[..., World], record_cases: Callable[[str, int, int], None]
) -> None:
    world = make_world(lease=LONG_LEASE)
    held = "2w-evaluate"
    stages = Stages(world, set(STAGES), set(STAGES) - {held})
    world.operator.start()
    for run in ("one", "other"):
        world.apply_run(run, strategy=STRATEGY)
    with Meddler(world) as meddler:
        world.wait("both at work", lambda: len(stages.workers(held, "Running")) == 2, SECONDS)
        before, meddled = len(world.proxy.writes), meddler.counts.copy()
        time.sleep(WATCHED_SECONDS)
        writes = [str(call) for call in world.proxy.writes[before:] if call.resource not in ("leases", "events")]
        meddled = meddler.counts - meddled
        labels = [job["metadata"]["labels"] for job in world.jobs("one")]
        stages.ended.add(held)
        for run in ("one", "other"):
            world.wait_finished(run, seconds=SECONDS)
    print(f"{sum(meddled.values())} foreign writes in {WATCHED_SECONDS:g} s, {len(writes)} of the operator: {writes}")
    assert min(meddled[kind] for kind in ("Job", "Pod", "Deployment")) > 10, meddled
    assert len(writes) <= QUIET_WRITES, writes
    assert all("queue" in each for each in labels)
    # Scaled again once for each time that the servers were made anew, and no more.
    assert meddler.counts["scaled"] <= 2 * 4, meddler.counts
    assert all(stage.get("failures", 0) == 0 for run in ("one", "other") for stage in stages_of(world, run))
    record_cases("foreign writer", 2, 2)


# --- pods that are taken away while they really work ------------------------------------------------------------------


@dataclass(frozen=True)
class Blow:
    """What befalls a worker, or what it stands on, in the middle of a stage."""

    stage: str
    name: str
    strike: Callable[[World, Object], object]
    counts: int
    """Failed attempts that it may cost."""


def _lose_node(world: World, pod: Object) -> None:
    node = pod["spec"]["nodeName"]
    world.kubelet.node_lost(node)
    is_new = lambda other: other["metadata"]["uid"] != pod["metadata"]["uid"]  # noqa: E731
    world.wait("another pod", lambda: any(map(is_new, world.pods(HIT, names.WORKER))), SECONDS)
    world.kubelet.node_back(node)


def _delete(kind: str, name: Callable[[str], str]) -> Callable[[World, Object], object]:
    return lambda world, pod: world.api.delete(kind, world.namespace, name(HIT))


HIT: Final = "hit"
BLOWS: Final = (
    Blow("0b-evaluate", "OOM-killed", lambda world, pod: world.kubelet.oom_kill(pod), 1),
    Blow("1p-optimize", "evicted", lambda world, pod: world.kubelet.evict(pod), 0),
    Blow("1p-optimize", "server deleted", lambda world, pod: CHILDREN["server"](world, HIT, ""), 0),
    Blow("2w-traces", "preempted", lambda world, pod: world.kubelet.preempt(pod), 1),
    Blow("2w-evaluate", "shut down", lambda world, pod: world.kubelet.shut_down(pod), 0),
    Blow("2w-evaluate", "address deleted", _delete("Service", names.serving_name), 0),
    Blow("2w-evaluate", "adapters deleted", _delete("ConfigMap", names.adapters_name), 0),
    Blow("3f-evaluate", "servers deleted", _delete("Deployment", names.serving_name), 0),
    Blow("3f-evaluate", "node lost", _lose_node, 1),
)


@pytest.mark.timeout(1200)
def test_workers_and_servers_that_are_taken_away_at_work_cost_at_most_a_batch_each(
    make_world: Callable[..., World],
    record_cases: Callable[[str, int, int], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    world = make_world(lease=LONG_LEASE)
    monkeypatch.setitem(world.kubelet.environment, ENV_LATENCY, "1.0")
    world.operator.start()
    # One after the other: a node that is lost takes the pods of both.
    world.apply_run(CALM, strategy=STRATEGY)
    world.wait_finished(CALM, seconds=SECONDS)
    world.apply_run(HIT, strategy=STRATEGY)
    struck: list[str] = []
    for blow in BLOWS:
        before = world.calls(HIT).total()

        def at_work(blow: Blow = blow, before: int = before) -> Object | None:
            """The worker, some calls after the blow before."""
            assert not world.status(HIT).get("finished"), f"{blow.name}: it has ended before: {struck}"
            found = [pod for pod in world.pods(HIT, names.WORKER) if pod["status"].get("phase") == "Running"]
            pods = [pod for pod in found if point(pod) == blow.stage and "deletionTimestamp" not in pod["metadata"]]
            return pods[-1] if pods and world.calls(HIT).total() > before else None

        pod = world.wait(f"{blow.name} at {blow.stage}", at_work, SECONDS)
        blow.strike(world, pod)
        struck.append(blow.name)
    world.wait_finished(HIT, seconds=SECONDS)
    assert nameless(world, HIT) == nameless(world, CALM)
    found = {blow.stage: 0 for blow in BLOWS}
    for step in world.status(HIT)["steps"]:
        for stage in step["stages"]:
            place = f"{step['index']}{step['kind'][0]}-{stage['name']}"
            found[place] = stage.get("failures", 0)
            assert found[place] <= sum(blow.counts for blow in BLOWS if blow.stage == place), f"{place}: {stage}"
    assert found["0b-evaluate"] == 1
    calls, wanted = bare_calls(world, HIT), bare_calls(world, CALM)
    assert calls.keys() == wanted.keys()
    repeated = calls.total() - wanted.total()
    print(f"{len(BLOWS)} blows, {repeated} of {wanted.total()} calls paid twice, failed attempts: {found}")
    assert repeated <= BATCH * len(BLOWS)
    assert kinds(world, HIT) == kinds(world, CALM)
    record_cases("pod taken away at work", len(BLOWS), len(BLOWS))


def nameless(world: World, run: str) -> str:
    """What its status says, without its name in addresses."""
    return json.dumps(told(world, run)).replace(f"/{run}/", "/RUN/")


def bare_calls(world: World, run: str) -> Counter[str]:
    """Its LM calls, with served names that do not begin with its own."""
    found = Counter[str]()
    for call, times in world.calls(run).items():
        found[call.replace(f'"{run}-', '"RUN-')] += times
    return found


def told(world: World, run: str) -> Object:
    """What its status says, but for how many attempts it took."""
    outcome = world.outcome(run)
    for step in outcome["steps"]:
        step.pop("attempts", None)
        for stage in step["stages"]:
            stage.pop("attempt", None)
            stage.pop("failures", None)
    return outcome


def kinds(world: World, run: str) -> set[str]:
    """What is left of it, but for its Jobs, whose names have the attempt, and which may have been collected."""
    return {child.replace(f"/{run}-", "/RUN-") for child in world.children(run) if not child.startswith("Job/")}
