"""Any call to the API server fails in any way: the run ends as one that nobody disturbed, or waits and says for what.

The pods are no processes here, so that many runs go side by side; the operator and the API server are the real ones.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

import pytest
from tests.faults.children import ENV_PATIENCE
from tests.faults.instant_runs import LEASE, Owners, kept_running, poked, result, script, wait_all
from tests.faults.proxy import Answer, Call, CutError, Forward, refusal
from tests.faults.world import Ground, World, is_full

Object = dict[str, Any]

#: The operator waits so long for an answer here.
PATIENCE: Final = 4.0
RETRY_AFTER: Final = 2.0
#: Of all calls so many fail at random, for so many runs at once.
SHARE, RUNS, SEED = 0.1, 12 if is_full() else 3, 5
Fault = Callable[[Call, Forward], Awaitable[Answer]]


def answer(status: int, reason: str, **headers: str) -> Fault:
    """A fault: this refusal, and nothing is done."""

    async def fault(call: Call, forward: Forward) -> Answer:
        return refusal(status, reason, f"a test refuses {call}", **headers)

    return fault


def no_answer(*, is_done: bool, seconds: float) -> Fault:
    """A fault: the connection ends after so long without an answer, and what was asked for is done or not."""

    async def fault(call: Call, forward: Forward) -> Answer:
        if is_done:
            await forward()
        await asyncio.sleep(seconds)
        raise CutError

    return fault


FAULTS: Final = {
    "conflict": answer(409, "Conflict"),
    "invalid": answer(422, "Invalid"),
    "throttled": answer(429, "TooManyRequests", Retry_After=f"{RETRY_AFTER:.0f}"),
    "broken": answer(500, "InternalError"),
    "unavailable": answer(503, "ServiceUnavailable"),
    "lost": no_answer(is_done=False, seconds=0.0),
    "unacknowledged": no_answer(is_done=True, seconds=0.0),
    "silent": no_answer(is_done=False, seconds=2 * PATIENCE),
    "mute": no_answer(is_done=True, seconds=2 * PATIENCE),
}


@pytest.fixture(scope="module")
def calm(ground: Ground) -> Iterator[Object]:
    """What becomes of a run that nobody disturbs."""
    with World(ground, "calm", {"lease": LEASE}) as world:
        world.kubelet.scripts[world.namespace] = script()
        with kept_running(world.operator):
            world.apply_run("calm")
            wait_all(world, ["calm"])
            yield result(world, "calm")


@pytest.fixture
def world(make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> World:
    """A world without processes in its pods, whose operator is not patient."""
    monkeypatch.setenv(ENV_PATIENCE, f"{PATIENCE}")
    made = make_world(workers=32, lease=LEASE)
    made.kubelet.scripts[made.namespace] = script()
    return made


@dataclass
class EachKindOnce:
    """A rule: of each run, which is named after a fault, every kind of call meets that fault at its first occurrence;
    and every kind of call of the process itself meets all of them, one after another."""

    owners: Owners
    hits: set[tuple[str, str]] = field(default_factory=set)
    """(fault, kind of call)."""
    gaps: list[tuple[str, float]] = field(default_factory=list)
    """After each call that was asked to wait: its kind, and when its run's next call came."""
    _asked: dict[str, tuple[str, float]] = field(default_factory=dict)
    _last: dict[str, float] = field(default_factory=dict)

    async def __call__(self, call: Call, forward: Forward) -> Answer:
        kind, run, now = f"{call.verb} {call.target}", self.owners.of(call), time.monotonic()
        if run in self._asked:
            asked, at = self._asked.pop(run)
            self.gaps.append((asked, now - at))
        name = run if run is not None else self._next(call, kind, now)
        if name is None or (name, kind) in self.hits:
            return await forward()
        self.hits.add((name, kind))
        if name == "throttled" and run is not None:
            self._asked[run] = kind, now
        return await FAULTS[name](call, forward)

    def _next(self, call: Call, kind: str, now: float) -> str | None:
        """Of the process's own calls: not so often that nothing else would happen but the loss of the leadership, and
        not those of its start, which ends it."""
        if call.resource.startswith("/") or now - self._last.get(kind, 0.0) < PATIENCE:
            return None
        self._last[kind] = now
        return next((name for name in FAULTS if (name, kind) not in self.hits), None)


#: Of what a pass does, and the process beside; the API server is asked for more by some.
OF_RUNS: Final = frozenset(
    {"get optimizationruns", "update optimizationruns/status", "get configmaps", "create configmaps",
     "patch configmaps", "delete configmaps", "list jobs", "create jobs", "patch jobs", "list pods",
     "get deployments", "patch deployments", "delete deployments", "get services", "patch services",
     "delete services", "get networkpolicies", "patch networkpolicies", "create events"}
)  # fmt: skip
OF_PROCESS: Final = frozenset({"get leases", "update leases"})


@pytest.mark.timeout(1200)
def test_every_kind_of_call_fails_once_in_every_way(
    calm: Object, world: World, record_cases: Callable[[str, int, int], None]
) -> None:
    owners = Owners()
    rule = EachKindOnce(owners)
    with kept_running(world.operator), poked(world, FAULTS):
        # What fails at the start is asked for again every 10 s, or ends the process: nothing of a run is at stake then.
        world.wait("the leader", lambda: world.proxy.count("watch", "optimizationruns"))
        world.proxy.rules.insert(0, rule)
        for name in FAULTS:
            owners.apply(world, name)
        wait_all(world, FAULTS, seconds=900)
    lost = [name for name in FAULTS if result(world, name) != calm]
    print(f"{len(rule.hits)} calls failed: {sorted({kind for _, kind in rule.hits})}")
    record_cases("API: each kind of call fails once", len(rule.hits), len([h for h in rule.hits if h[0] not in lost]))
    assert {name: result(world, name) for name in lost} == dict.fromkeys(lost, calm)
    missed = {(name, kind) for name in FAULTS for kind in OF_RUNS} - rule.hits
    assert not missed, f"were not hit: {sorted(missed)}"
    assert {kind for _, kind in rule.hits} >= OF_PROCESS
    # An event that cannot be stored holds nothing up.
    early = [(kind, gap) for kind, gap in rule.gaps if gap < RETRY_AFTER - 0.1 and not kind.endswith(" events")]
    assert rule.gaps
    assert not early, "the API server asked for a wait, and did not get it"


@pytest.mark.full
@pytest.mark.timeout(1200)
def test_one_call_in_ten_fails_for_the_whole_run(
    calm: Object, world: World, record_cases: Callable[[str, int, int], None]
) -> None:
    chance, hits = random.Random(SEED), Counter[str]()

    async def fail(call: Call, forward: Forward) -> Answer:
        if chance.random() >= SHARE:
            return await forward()
        name = chance.choice(list(FAULTS))
        hits[name] += 1
        return await FAULTS[name](call, forward)

    world.proxy.rules.insert(0, fail)
    runs = [f"unlucky{number}" for number in range(RUNS)]
    with kept_running(world.operator), poked(world, runs):
        for name in runs:
            world.apply_run(name)
        wait_all(world, runs, seconds=900)
    print(f"{hits.total()} calls failed: {dict(hits)}; the operator was started {world.operator.starts} times")
    same = [name for name in runs if result(world, name) == calm]
    record_cases("API: one call in ten fails", hits.total(), hits.total() if same == runs else 0)
    assert [result(world, name) for name in runs] == [calm] * RUNS


@dataclass(frozen=True)
class Refused:
    """A kind of call that one run may never make."""

    kind: str
    status: int
    ending: str
    """What becomes of the run: it `succeeds` all the same, `fails`, `waits` and says why, or the `log` says why."""

    @property
    def run(self) -> str:
        return f"{self.kind.replace(' ', '').replace('/', '')}{self.status}"


REFUSED: Final = (
    *(Refused(kind, 403, "waits") for kind in ("create jobs", "patch services", "patch deployments")),
    *(Refused(kind, 422, "fails") for kind in ("create jobs", "patch services", "patch deployments")),
    *(Refused(kind, 403, "waits") for kind in ("create configmaps", "patch configmaps", "patch networkpolicies")),
    *(Refused(kind, 422, "fails") for kind in ("patch configmaps", "patch networkpolicies")),
    *(Refused("create events", status, "succeeds") for status in (403, 422)),
    *(Refused("update optimizationruns/status", status, "log") for status in (403, 422)),
    *(Refused(kind, 403, "log") for kind in ("get configmaps", "list jobs", "list pods", "get deployments")),
    *(Refused(kind, 403, "log") for kind in ("delete configmaps", "patch jobs", "delete deployments")),
)
#: A refused run is tried again every 15 s. One that only cannot be tidied goes on meanwhile, and its stages take no
#: time here: it may write about as much as a whole run. Tried again without a pause it would write ten times a second.
QUIET_SECONDS, QUIET_WRITES = 32.0, 64


@pytest.mark.timeout(600)
def test_a_call_that_is_refused_for_good_is_told_and_not_made_again_and_again(
    calm: Object, world: World, record_cases: Callable[[str, int, int], None]
) -> None:
    owners, of_run = Owners(), {case.run: case for case in REFUSED}
    words = "the test has its reasons"

    async def refuse(call: Call, forward: Forward) -> Answer:
        case = of_run.get(owners.of(call) or "")
        if case is None or f"{call.verb} {call.target}" != case.kind:
            return await forward()
        return refusal(case.status, "Forbidden" if case.status == 403 else "Invalid", words)

    def is_told(case: Refused) -> bool:
        if case.ending == "log":
            return any(
                f"/{case.run} " in line and words in line for line in world.operator.log.read_text().splitlines()
            )
        if case.ending == "succeeds":
            return bool(world.status(case.run).get("finished"))
        status = world.status(case.run)
        is_said = any(words in one.get("message", "") for one in status.get("conditions", []))
        return is_said and bool(status.get("finished")) == (case.ending == "fails")

    world.proxy.rules.insert(0, refuse)
    with kept_running(world.operator):
        for case in REFUSED:
            owners.apply(world, case.run)
        for case in REFUSED:
            world.wait(f"word of {case}", lambda case=case: is_told(case), 200)
        before = Counter(owners.of(call) for call in world.proxy.writes)
        time.sleep(QUIET_SECONDS)  # that is what is measured
        writes = Counter(owners.of(call) for call in world.proxy.writes) - before
    writes.pop(None, None)
    busy = {run: count for run, count in writes.items() if count > QUIET_WRITES}
    record_cases("API: a call refused for good", len(REFUSED), len(REFUSED) - len(busy))
    print(f"writes of refused runs in {QUIET_SECONDS:.0f} s: {dict(writes)}")
    assert not busy
    for case in REFUSED:
        if case.ending == "succeeds":
            assert result(world, case.run) == calm
