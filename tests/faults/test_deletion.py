"""Runs that are deleted: whatever they were doing, what they hold is given back, and nothing of them is left.

What serves and trains goes first and waits for nobody; the resource goes within its bound, whatever the object store
does. A run that is created anew under the same name at once is another run.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import pytest
from tests.faults.children import ENV_LATENCY
from tests.faults.proxy import Answer, Call, CutError, Forward
from tests.faults.stages import LONG_LEASE, STAGES, STRATEGY, Stages, stages_of
from tests.faults.world import KINDS, World, is_full

from tandem_operator.platforms.kubernetes import jobs, names

Object = dict[str, Any]

#: For all runs of a test to come to the same point, on a slow machine.
SECONDS: Final = 240.0
#: Servers and trainings of a deleted run are gone after this.
RELEASE_SECONDS: Final = 30.0
POLICIES: Final = ("Retain", "Delete")
#: The states in which a run's worker is at that stage.
AT_WORK: Final = {
    "checking": "0b-check",
    "scoring": "0b-evaluate",
    "searching": "1p-optimize",
    "tracing": "2w-traces",
    "training": "2w-train",
}
STATES: Final = ("created", "invalid", *AT_WORK, "serving", "held", "finished")
#: Those that are left to the full test.
RARE: Final = ("scoring", "tracing")


@dataclass
class Watched:
    """What has become of deleted runs, by uid, and when."""

    world: World
    names: dict[str, str]
    """Of the runs, by uid."""
    deleted: float
    released: dict[str, float]
    gone: dict[str, float]

    def look(self) -> list[str]:
        """The uids of those that have gone since the last look."""
        holding = {
            thing["metadata"]["labels"].get(names.RUN_UID)
            for kind in ("Pod", "Deployment")
            for thing in self.world.api.list(kind, self.world.namespace, f"{names.COMPONENT}!={names.CLEANUP}")
            if names.RUN_UID in (thing["metadata"].get("labels") or {})
            and (kind != "Pod" or thing["status"].get("phase") in ("Pending", "Running"))
        }
        there = {run["metadata"]["uid"] for run in self.world.api.list("OptimizationRun", self.world.namespace)}
        now = time.monotonic() - self.deleted
        self.released |= {uid: now for uid in self.names if uid not in holding | self.released.keys()}
        new = [uid for uid in self.names if uid not in there | self.gone.keys()]
        self.gone |= dict.fromkeys(new, now)
        return new


def delete_all(world: World, runs: list[str]) -> Watched:
    """Delete them as `kubectl delete --wait=false` does."""
    uids = {world.run(run)["metadata"]["uid"]: run for run in runs}
    started = time.monotonic()
    for run in runs:
        world.api.delete("OptimizationRun", world.namespace, run)
    return Watched(world, uids, started, {}, {})


def left(world: World, uids: set[str]) -> list[str]:
    """What still has the uid of one of these runs, but for the removal of its objects, which is kept for a while."""
    return [
        f"{kind}/{thing['metadata']['name']}"
        for kind in KINDS
        for thing in world.api.list(kind, world.namespace, names.RUN_UID)
        if thing["metadata"]["labels"][names.RUN_UID] in uids
        and thing["metadata"]["labels"].get(names.COMPONENT) != names.CLEANUP
    ]


def _is_server_of_serving(pod: Object) -> bool:
    labels = pod["metadata"]["labels"]
    return labels.get(names.COMPONENT) == names.SERVING and str(labels.get(names.RUN)).startswith("serving-")


def not_removed(world: World) -> dict[str, str]:
    """What the operator has told of objects that stay, by run."""
    events = world.api.list("Event", world.namespace)
    return {e["involvedObject"]["name"]: e["message"] for e in events if e["reason"] == "StorageNotRemoved"}


@pytest.mark.timeout(1800)
def test_a_run_deleted_in_any_state_leaves_nothing_and_its_name_is_free_at_once(
    make_world: Callable[..., World], record_cases: Callable[[str, int, int], None]
) -> None:
    world = make_world(lease=LONG_LEASE)
    states = [state for state in STATES if is_full() or state not in RARE]
    runs = {f"{state}-{policy.lower()}": (state, policy) for state in states for policy in POLICIES}
    # The runs that come after them have fewer steps.
    stages = Stages(world, [*STAGES, "1f-evaluate"], ["1f-evaluate"])
    for run, (state, _) in runs.items():
        stops = {AT_WORK.get(state, "1p-optimize" if state == "held" else "")}
        stages.ended |= {f"{run}/{stage}" for stage in STAGES if stage not in stops}
    release = world.kubelet.hold(_is_server_of_serving)

    def apply(run: str, **spec: Any) -> None:
        storage = {"s3": {**world.s3, "credentialsSecret": "s3-credentials"}, "deletionPolicy": runs[run][1]}
        world.apply_run(run, **{"strategy": STRATEGY, "storage": storage, **spec})

    def is_there(run: str) -> bool:
        state = runs[run][0]
        if state in AT_WORK:
            return run in stages.workers(AT_WORK[state], "Running")
        if state == "serving":
            pods = world.kubelet.pods(world.namespace, names.SERVING, run)
            return bool(pods)
        if state == "held":
            alive = [pod for pod in world.pods(run) if pod["status"].get("phase") in ("Pending", "Running")]
            return world.condition("Suspended", run).get("status") == "True" and not alive
        if state == "invalid":
            return world.condition("Succeeded", run).get("reason") == "InvalidSpec"
        return state == "created" or world.status(run).get("finished") is not None

    world.operator.start()
    for run, (state, _) in runs.items():
        if state == "invalid":
            apply(run, model={"uri": "file:model"})
        elif state != "created":
            apply(run)
    for policy in POLICIES:
        run = f"held-{policy.lower()}"
        world.wait(f"{run} at work", lambda run=run: run in stages.workers("1p-optimize", "Running"), SECONDS)
        world.api.patch("OptimizationRun", world.namespace, run, {"spec": {"suspend": True}})
    for run in runs:
        world.wait(f"the state of {run}", lambda run=run: is_there(run), SECONDS)
    for run, (state, _) in runs.items():
        if state == "created":
            apply(run)

    watched = delete_all(world, list(runs))
    release()
    stages.ended |= set(STAGES)

    def all_gone() -> bool:
        for uid in watched.look():
            apply(watched.names[uid], strategy="vanilla")  # at once
        return len(watched.gone) == len(watched.released) == len(runs)

    world.wait("the end of all", all_gone, SECONDS)
    print(f"{len(runs)} runs: released after at most {max(watched.released.values()):.1f} s, "
          f"gone after at most {max(watched.gone.values()):.1f} s")  # fmt: skip
    if is_full():
        assert max(watched.released.values()) <= RELEASE_SECONDS
    assert not_removed(world) == {}
    for run in runs:
        world.wait_finished(run, seconds=SECONDS)
        again = [(stage["attempt"], stage.get("failures", 0)) for stage in stages_of(world, run)]
        assert set(again) == {(1, 0)}, f"{run}: something of the new run was taken for the old one's: {again}"
    world.wait("nothing to be left", lambda: not left(world, set(watched.names)), SECONDS)
    record_cases("deletion", 2 * len(runs), 2 * len(runs))


# --- whatever the object store does: real workers, servers and cleanups -----------------------------------------------


class Store:
    """The object store as each run finds it, by the run's name, from when `is_on`."""

    is_on = False

    async def __call__(self, call: Call, forward: Forward) -> Answer:
        asked = call.path + call.body.decode(errors="replace") if self.is_on else ""
        if _is_of("down", asked):
            raise CutError
        if _is_of("refusing", asked):
            said = b"<Error><Code>AccessDenied</Code><Message>Access Denied.</Message></Error>"
            return Answer(403, said, {"Content-Type": "application/xml"})
        if _is_of("slow", asked):
            await asyncio.sleep(SLOW_SECONDS)
        return await forward()


def _is_of(run: str, asked: str) -> bool:
    return f"/{run}/" in asked or f"%2F{run}%2F" in asked


SLOW_SECONDS: Final = 3.0
FAULTS: Final = ("well", "slow", "down", "refusing")


@pytest.mark.timeout(1800)
def test_a_run_deleted_while_the_object_store_is_ill_gives_everything_back(
    make_world: Callable[..., World], record_cases: Callable[[str, int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    world, store = make_world(lease=LONG_LEASE), Store()
    monkeypatch.setitem(world.kubelet.environment, ENV_LATENCY, "1.0")
    world.s3_proxy.rules.append(store)
    world.operator.start()
    storage = {"s3": {**world.s3, "credentialsSecret": "s3-credentials"}, "deletionPolicy": "Delete"}
    for run in FAULTS:
        world.apply_run(run, strategy="p", storage=storage)

    def at_work(run: str) -> bool:
        pods = world.kubelet.pods(world.namespace, names.WORKER, run)
        return any(
            pod["metadata"]["labels"][names.STAGE] == "optimize" and pod["status"].get("phase") == "Running"
            for pod in pods
        )

    for run in FAULTS:
        world.wait(f"{run} at its search", lambda run=run: at_work(run), SECONDS)
        assert world.objects(run)
    store.is_on = True
    watched = delete_all(world, list(FAULTS))

    def all_gone() -> bool:
        watched.look()
        return len(watched.gone) == len(watched.released) == len(FAULTS)

    world.wait("the end of all", all_gone, 600)
    print("; ".join(f"{run}: released after {watched.released[uid]:.1f} s, gone after {watched.gone[uid]:.1f} s"
                    for uid, run in watched.names.items()))  # fmt: skip
    told = not_removed(world)
    assert told.keys() == {"down", "refusing"}, told
    for uid, run in watched.names.items():
        stays = list(world.store.list(f"{world.namespace}/{run}/{uid}/"))
        assert bool(stays) == (run in ("down", "refusing")), f"{run}: {stays}"
        assert f"s3://{world.s3['bucket']}/{world.namespace}/{run}/{uid}/" in told.get(run, "") or not stays
    world.wait("nothing to be left", lambda: not left(world, set(watched.names)), SECONDS)
    if is_full():
        assert max(watched.released.values()) <= RELEASE_SECONDS + jobs.GRACE_SECONDS
    record_cases("deletion", len(FAULTS), len(FAULTS))


# --- the whole namespace ----------------------------------------------------------------------------------------------


@pytest.mark.timeout(900)
def test_a_namespace_that_is_deleted_takes_its_runs_with_it(
    make_world: Callable[..., World], record_cases: Callable[[str, int, int], None]
) -> None:
    world = make_world()
    # The operator lives elsewhere.
    home = make_world(lease=LONG_LEASE, namespaces=[world.namespace])
    stages = Stages(world, STAGES, set(STAGES) - {"2w-train"})
    home.operator.start()
    runs = [policy.lower() for policy in POLICIES]
    for run, policy in zip(runs, POLICIES, strict=True):
        storage = {"s3": {**world.s3, "credentialsSecret": "s3-credentials"}, "deletionPolicy": policy}
        world.apply_run(run, strategy=STRATEGY, storage=storage)
    world.wait("both at work", lambda: len(stages.workers("2w-train", "Running")) == 2, SECONDS)
    began = time.monotonic()
    world.api.delete("Namespace", "", world.namespace)
    home.wait("its end", lambda: world.api.get("Namespace", "", world.namespace) is None, SECONDS)
    print(f"the namespace was gone after {time.monotonic() - began:.1f} s")
    assert home.operator.is_running
    record_cases("deletion", len(runs), len(runs))
