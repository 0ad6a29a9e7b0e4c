"""The operator killed (-9) around any of its writes: the run ends as one that nobody disturbed, and nothing of it is
made, or paid for, twice.

Right before a write: the request has left the process and reaches nobody. Right after it: it was carried out, and the
answer reaches nobody. The operator writes to the API server only, never to the object store.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from tests.faults.differences import differences
from tests.faults.proxy import Answer, Call, CutError, Forward
from tests.faults.stages import LONG_LEASE
from tests.faults.world import BATCH, Ground, World, is_volatile

When = Literal["before", "after"]
#: No run has as many writes: if it is reached, some write is another one each time, and the run would never end.
LIMIT = 500
#: Runs side by side.
PARALLEL = 6
#: Of the operators: nobody but the killer ends them. A new one is the same pod, and need not wait for the Lease.
#: The undisturbed run is compared with for longer than an hour, after which its Jobs would be collected.
SETTINGS = {"lease": LONG_LEASE, "jobTtlSeconds": 86_400}
#: Of what is written and does not tell one write from another.
_PASSING = frozenset({"resourceVersion", "managedFields", "lastTimestamp", "firstTimestamp", "count"})


def signature(call: Call) -> str | None:
    """What a write does, the same when it is done again; None for what is no step of the run: the Lease's renewal."""
    if not call.is_write or call.resource == "leases":
        return None
    body = json.loads(call.body) if call.body else {}
    if call.target == "optimizationruns/status":
        # A change of progress alone comes or does not come, as time will have it.
        body = {key: value for key, value in body["status"].items() if key != "step"}
    return f"{call} {hashlib.sha256(json.dumps(_bare(body), sort_keys=True).encode()).hexdigest()[:12]}"


def _bare(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _bare(item) for key, item in value.items() if key not in _PASSING and not is_volatile(key)}
    return [_bare(item) for item in value] if isinstance(value, list) else value


@dataclass
class Killer:
    """A rule that kills the world's operator around writes for which `wanted` says so, and starts a new one."""

    world: World
    wanted: Callable[[str], When | None]
    kills: list[str] = field(default_factory=list)

    async def __call__(self, call: Call, forward: Forward) -> Answer:
        write = signature(call)
        when = self.wanted(write) if write is not None else None
        if when is None or len(self.kills) >= LIMIT:
            return await forward()
        if when == "after":
            await forward()
        self.kills.append(f"{when} {write}")
        await self.world.proxy.in_thread(self.world.operator.restart)
        raise CutError


class EachOnce:
    """Every write is hit the first time right before, the second time right after, and then let pass."""

    def __init__(self) -> None:
        self.seen: dict[str, int] = {}

    def __call__(self, write: str) -> When | None:
        self.seen[write] = self.seen.get(write, 0) + 1
        whens: dict[int, When] = {1: "before", 2: "after"}
        return whens.get(self.seen[write])


class Nth:
    """The n-th write of the run, counted from 0, is hit; one that is repeated is not counted again."""

    def __init__(self, number: int, when: When) -> None:
        self.number, self.when = number, when
        self.seen: list[str] = []

    def __call__(self, write: str) -> When | None:
        if write in self.seen:
            return None
        self.seen.append(write)
        return self.when if len(self.seen) == self.number + 1 else None


@dataclass(frozen=True)
class Calm:
    """A run that nobody disturbed."""

    world: World
    writes: int


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    return make_world(**SETTINGS)


@pytest.fixture(scope="module")
def calm(ground: Ground) -> Iterator[Calm]:
    with World(ground, "calm", SETTINGS) as world:
        counter = Nth(-1, "before")
        drive(world, counter)
        yield Calm(world, len(counter.seen))


def drive(world: World, wanted: Callable[[str], When | None], seconds: float = 300.0) -> list[str]:
    """A whole run under a killer; what it has hit."""
    killer = Killer(world, wanted)
    # Outermost: the others see what has become of a call whose answer is not delivered.
    world.proxy.rules.insert(0, killer)
    world.operator.start()
    world.apply_run()
    world.wait_finished(seconds=seconds)
    return killer.kills


def assert_same(world: World, calm: World, kills: int) -> None:
    """The same end, the same objects, one Job for each attempt, nothing extra, at most a batch paid twice a kill."""
    assert differences(world.outcome(), calm.outcome()) == []
    assert differences(world.contents(), calm.contents()) == []
    assert world.created_jobs == calm.created_jobs
    assert world.children() == calm.children()
    calls, wanted = world.calls(), calm.calls()
    assert calls.keys() == wanted.keys()
    assert calls.total() - wanted.total() <= BATCH * kills


def test_two_undisturbed_runs_are_the_same(calm: Calm, world: World) -> None:
    """Or no comparison would tell anything."""
    drive(world, Nth(-1, "before"))
    assert_same(world, calm.world, kills=0)
    assert set(calm.world.created_jobs.values()) == {1}


@pytest.mark.timeout(1800)
def test_the_operator_killed_before_and_after_each_of_its_writes_in_one_run(
    calm: Calm, world: World, record_cases: Callable[[str, int, int], None]
) -> None:
    kills = drive(world, EachOnce(), seconds=1500)
    print(f"{len(kills)} kill points in one run, which makes {calm.writes} writes undisturbed")
    assert calm.writes <= len(kills) < LIMIT, kills
    assert_same(world, calm.world, kills=1)
    record_cases("operator killed around a write", len(kills), len(kills))


@pytest.mark.full
@pytest.mark.timeout(3 * 3600)
def test_the_operator_killed_at_one_write_of_a_run(
    calm: Calm, ground: Ground, record_cases: Callable[[str, int, int], None]
) -> None:
    points: list[tuple[int, When]] = [(n, when) for n in range(calm.writes) for when in ("before", "after")]

    def attempt(point: tuple[int, When]) -> str | None:
        number, when = point
        with World(ground, f"write-{number}-{when}", SETTINGS) as world:
            kills: list[str] = []
            try:
                kills = drive(world, Nth(number, when))
                assert_same(world, calm.world, len(kills))
            except AssertionError as error:
                return f"killed {kills or point}: {error}"
        return None

    with ThreadPoolExecutor(PARALLEL) as pool:
        failures = [failure for failure in pool.map(attempt, points) if failure is not None]
    print(f"{len(points)} kill points, each in a run of its own")
    record_cases("operator killed around a write", len(points), len(points) - len(failures))
    assert not failures, "\n\n".join(failures)
