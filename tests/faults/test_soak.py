"""The soak: runs one after another and beside each other, random faults all the time, and nothing that adds up.

Each run that ends is compared with one that nobody disturbed, and deleted. Now and then the test waits until no run is
left: then the operator holds what it held before, and the API server and the object store have what they had.

The faults follow from a seed: TANDEM_FAULTS_SEED. What was done, to which run and when, is printed.
TANDEM_SOAK_SECONDS sets how long it lasts; TANDEM_FAULTS=full means two hours.
"""

from __future__ import annotations

import json
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

import psutil
import pytest
from tests.faults.children import ENV_LATENCY
from tests.faults.soak import KINDS, WITH_RESTARTS, Faults, Planned, Run, plan
from tests.faults.stages import LONG_LEASE
from tests.faults.test_children import bare_calls
from tests.faults.test_store_faults import essence
from tests.faults.world import BATCH, World, is_full
from tests.faults.world import KINDS as CHILD_KINDS

from tandem_api.v1alpha1.run import KIND
from tandem_operator.platforms.kubernetes import names

Object = dict[str, Any]

SECONDS: Final = float(os.environ.get("TANDEM_SOAK_SECONDS") or (7200 if is_full() else 600))
SEED: Final = int(os.environ.get("TANDEM_FAULTS_SEED") or 5)
#: After each the test waits until no run is left. In the last third the operator is restarted, too.
PARTS: Final = max(5, round(SECONDS / 600))
CALM_PARTS: Final = PARTS * 2 // 3
KINDS_OF_PARTS: Final = [KINDS if part < CALM_PARTS else WITH_RESTARTS for part in range(PARTS)]
AT_ONCE: Final = 3
STRATEGIES: Final = ("p", "w", "p -> w", "p -> w -> p")
#: A run that takes longer to end, or to go, is stuck; with all its attempts and the waits between them.
STUCK_SECONDS: Final = 900.0
#: The last runs of a part begin so long before its faults end, and take about as long after that.
DRAIN_SECONDS: Final = 30.0
#: How long a part lasts until its faults end.
PART_SECONDS: Final = max(SECONDS / PARTS - DRAIN_SECONDS, 45.0)
#: A fault that finds nothing to hit comes again after this.
AGAIN_SECONDS: Final = 2.0
#: What the operator may hold at the end of a part beyond what it held at the end of the first.
MORE_BYTES: Final = 6 * 1024**2
MORE: Final = {"threads": 4, "fds": 8, "sockets": 8}
SETTLE_SECONDS: Final = 90.0


@dataclass(frozen=True)
class Told:
    """What came of a run, without its name."""

    essence: str
    calls: Counter[str]


def told(world: World, run: Run) -> Told:
    """What came of this one."""
    text = json.dumps(essence(world, run.name), sort_keys=True)
    return Told(text.replace(f"/{run.name}/", "/RUN/").replace(f'"{run.name}-', '"RUN-'), bare_calls(world, run.name))


@dataclass
class Soak:
    """All of it."""

    world: World
    runs: dict[str, Run] = field(default_factory=dict)
    """Those that there are, by name."""
    calm: dict[str, Told] = field(default_factory=dict)
    """What comes of a run that nobody disturbs, by its strategy."""
    lost: dict[str, str] = field(default_factory=dict)
    """What was wrong with a run."""
    not_survived: set[str] = field(default_factory=set)
    """The faults that hit those."""
    problems: list[str] = field(default_factory=list)
    """What is wrong beside that."""
    applied: int = 0
    ended: int = 0
    compared: int = 0
    longest: float = 0.0
    """Seconds from a run's deletion until nothing of it was left."""
    began: float = field(default_factory=time.monotonic)

    def say(self, text: str) -> None:
        """Print, with the time."""
        print(f"{time.monotonic() - self.began:7.1f} s  {text}", flush=True)

    # --- runs --------------------------------------------------------------------------------------------------------

    def apply(self, name: str, strategy: str) -> None:
        """A new run."""
        storage = {"s3": {**self.world.s3, "credentialsSecret": "s3-credentials"}, "deletionPolicy": "Delete"}
        stored = self.world.apply_run(name, strategy=strategy, storage=storage, attempts=10)
        self.applied += 1
        self.runs[name] = Run(name, strategy, stored["metadata"]["uid"], time.monotonic())

    def look(self) -> None:
        """Compare and delete what has ended, forget what has gone."""
        for run in list(self.runs.values()):
            if run.deleted is None:
                self._look_at_working(run)
            else:
                self._look_at_deleted(run, time.monotonic() - run.deleted)

    def _look_at_working(self, run: Run) -> None:
        if self.world.ended(run.name):
            self._judge(run)
        elif time.monotonic() - run.began > STUCK_SECONDS:
            self._lose(run, f"it does not end: {self.world.status(run.name)}")
        else:
            return
        self.world.api.delete(KIND, self.world.namespace, run.name)
        run.deleted = time.monotonic()

    def _look_at_deleted(self, run: Run, seconds: float) -> None:
        left = self._left(run)
        if left and seconds > STUCK_SECONDS:
            self._lose(run, f"it was deleted and has left {left}")
        elif left:
            return
        del self.runs[run.name]
        self.ended += 1
        self.longest = max(self.longest, seconds)
        for log in self._logs(run):
            log.unlink()

    def _judge(self, run: Run) -> None:
        verdict = self.world.condition("Succeeded", run.name)
        if verdict["status"] != "True":
            self._lose(run, f"it failed: {verdict}")
            return
        found = told(self.world, run)
        wanted = self.calm.setdefault(run.strategy, found)
        more = found.calls.total() - wanted.calls.total()
        self.compared += 1
        self.say(f"{run.name} ({run.strategy}) has succeeded after {time.monotonic() - run.began:.0f} s, "
                 f"{len(run.hits)} faults, {more} calls more")  # fmt: skip
        if found.essence != wanted.essence:
            self._lose(run, f"another result: {found.essence}\n    instead of {wanted.essence}")
        if found.calls.keys() != wanted.calls.keys() or more > BATCH * len(run.hits):
            self._lose(run, f"{more} more calls; others: {list(found.calls.keys() ^ wanted.calls.keys())[:3]}")
        # One that was deleted, by hand or because the run was suspended, is made again for the same attempt.
        again = sum("job-" in hit or "run suspended" in hit for hit in run.hits)
        jobs = {job: n for job, n in self.world.created_jobs.items() if job.startswith(f"{run.name}-") and n > 1}
        if any(n > 1 + again for n in jobs.values()):
            self._lose(run, f"Jobs created again: {jobs}")

    def _lose(self, run: Run, why: str) -> None:
        self.lost[run.name] = f"{why}; after {run.hits}"
        self.not_survived |= set(run.hits)
        said = [f"== {log.name}\n{log.read_text(errors='replace')[-1500:]}" for log in self._logs(run)]
        ours = [line for line in self.world.operator.tail(10_000).splitlines() if f"/{run.name}" in line]
        self.say("\n".join([f"LOST {run.name}: {self.lost[run.name]}", *said, *ours]))

    def _logs(self, run: Run) -> list[Path]:
        return sorted((self.world.kubelet.folder / self.world.namespace).glob(f"{run.name}-*"))

    def _left(self, run: Run) -> list[str]:
        """What is there of a deleted run, but for the removal of its objects, which is kept for a while."""
        world = self.world
        if world.api.get(KIND, world.namespace, run.name) is not None:
            return [f"{KIND}/{run.name}"]
        things = [
            f"{kind}/{thing['metadata']['name']}"
            for kind in CHILD_KINDS
            for thing in world.api.list(kind, world.namespace, f"{names.RUN_UID}={run.uid}")
            if thing["metadata"]["labels"].get(names.COMPONENT) != names.CLEANUP
        ]
        return things + list(world.store.list(f"{world.namespace}/{run.name}/"))

    # --- what must not add up ----------------------------------------------------------------------------------------

    def things(self) -> set[str]:
        """Every object of the world's namespace, of whatever kind, and every key in the store. Events end by
        themselves."""
        call, namespace = self.world.api.call, self.world.namespace
        versions = [f"/apis/{one['preferredVersion']['groupVersion']}" for one in call("GET", "/apis")["groups"]]
        found = set(self.world.store.list(f"{namespace}/"))
        for version in ("/api/v1", *versions):
            for kind in call("GET", version)["resources"]:
                if kind["namespaced"] and "list" in kind["verbs"] and kind["name"] != "events":
                    items = call("GET", f"{version}/namespaces/{namespace}/{kind['name']}")["items"]
                    found |= {f"{kind['name']}/{item['metadata']['name']}" for item in items}
        return found

    def collect_cleanups(self) -> None:
        """As the controller does that collects ended Jobs, an hour later."""
        for job in self.world.api.list("Job", self.world.namespace, f"{names.COMPONENT}={names.CLEANUP}"):
            patch = {"spec": {"ttlSecondsAfterFinished": 0}}
            self.world.api.patch("Job", self.world.namespace, job["metadata"]["name"], patch)

    def wait_for(self, before: set[str]) -> set[str]:
        """Until there is what there was, and nothing else; what there is then."""
        self.collect_cleanups()
        end = time.monotonic() + SETTLE_SECONDS
        while (now := self.things()) != before:
            if time.monotonic() > end:
                self._report(f"too much: {sorted(now - before)}; missing: {sorted(before - now)}")
                break
            time.sleep(0.5)
        return now

    def settled(self, first: dict[str, int]) -> dict[str, int]:
        """What the operator holds, when it holds no more than at first."""
        end = time.monotonic() + SETTLE_SECONDS
        while True:
            now = self.world.operator.footprint()
            much = [what for what, more in MORE.items() if now[what] > first[what] + more]
            much += ["uss"] if now["uss"] > first["uss"] + MORE_BYTES else []
            if not much:
                return now
            if time.monotonic() > end:
                self._report(f"{much} have grown: {first} at first, {now} now")
                return now
            time.sleep(1)

    def _report(self, problem: str) -> None:
        self.problems.append(problem)
        self.say(problem)


def in_words(footprint: dict[str, int]) -> str:
    """Of a process."""
    return ", ".join(f"{n / 1024**2:.1f} MB {what}" if n > 10**6 else f"{n} {what}" for what, n in footprint.items())


def disturb(soak: Soak, faults: Faults, planned: list[Planned], chance: random.Random) -> None:
    """One part: runs and faults for a time, then until all runs have ended and gone."""
    began = time.monotonic()
    while (passed := time.monotonic() - began) < PART_SECONDS:
        for fault in [fault for fault in planned if fault.at <= passed]:
            planned.remove(fault)
            said = faults.strike(fault)
            if said:
                soak.say(said)
            else:
                planned.append(replace(fault, at=passed + AGAIN_SECONDS))
        faults.end()
        soak.look()
        if passed < PART_SECONDS - DRAIN_SECONDS:
            for _ in range(AT_ONCE - len(faults.working())):
                soak.apply(f"s{soak.applied}", chance.choice(STRATEGIES))
        time.sleep(0.2)
    faults.end(everything=True)
    while soak.runs:
        faults.end()
        soak.look()
        time.sleep(0.2)


@pytest.mark.timeout(2 * SECONDS + 2 * STUCK_SECONDS)
def test_random_faults_for_a_long_time_lose_no_run_and_leave_nothing_behind(
    make_world: Callable[..., World], record_cases: Callable[[str, int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(lease=LONG_LEASE)
    world.proxy.calls = None
    monkeypatch.setitem(world.kubelet.environment, ENV_LATENCY, "0.2")
    world.operator.start()
    world.operator.wait_until_ready()
    soak = Soak(world)
    faults = Faults(world, soak.runs, soak.problems)
    soak.say(f"the soak begins: TANDEM_FAULTS_SEED={SEED} TANDEM_SOAK_SECONDS={SECONDS:.0f}, {PARTS} parts")
    before = soak.things()
    for number, strategy in enumerate(STRATEGIES):
        soak.apply(f"calm{number}", strategy)
    while soak.runs:
        soak.look()
        time.sleep(0.2)
    before = soak.wait_for(before)
    assert soak.calm.keys() == set(STRATEGIES), soak.lost
    soak.say(f"undisturbed runs: {in_words(world.operator.footprint())}")

    pid, samples, chance = world.operator.pid, list[dict[str, int]](), random.Random(SEED)
    try:
        for part, planned in enumerate(plan(SEED, KINDS_OF_PARTS, PART_SECONDS)):
            faults.may_restart = part >= CALM_PARTS
            disturb(soak, faults, planned, chance)
            before = soak.wait_for(before)
            if not faults.may_restart:
                assert world.operator.pid == pid
                samples.append(soak.settled(samples[0]) if samples else world.operator.footprint())
            harness = psutil.Process().memory_info().rss
            soak.say(f"part {part}: {in_words(world.operator.footprint())}; the test itself {harness / 1024**2:.0f} MB")
    except BaseException:
        soak.say(world.operator.tail(100))
        raise
    finally:
        faults.end(everything=True)
    done = faults.done.total()
    record_cases("soak: random faults", done, done - len(soak.not_survived))
    record_cases("soak: runs", soak.ended, soak.ended - len(soak.lost))
    soak.say(f"{done} faults: {dict(faults.done)}; {soak.ended} runs, {soak.compared} compared with undisturbed ones, "
             f"the deleted ones gone after at most {soak.longest:.0f} s")  # fmt: skip
    assert not soak.lost, soak.lost
    assert not soak.problems, soak.problems
    assert soak.compared > len(STRATEGIES)
