"""The operator's view of the cluster is late, partial, doubled, in disorder, or long past; or two operators look at it.

Whatever it is, the run ends as one that nobody disturbed, with one Job for each attempt. The pods are no processes
here; the operators and the API server are the real ones.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Any, Final

import pytest
from tests.faults.children import ENV_CLOCK
from tests.faults.instant_runs import LEASE, kept_running, result, script, wait_all
from tests.faults.kubelet import Ending
from tests.faults.proxy import Answer, Call, CutError, FaultProxy, Forward
from tests.faults.world import Ground, World

from tandem_api.v1alpha1.run import KIND
from tandem_operator.platforms.kubernetes import names

Object = dict[str, Any]
Events = AsyncIterator[Object]
SEED: Final = 8
#: How late events are, and how long they are held back to come in another order.
LATE_SECONDS, WINDOW_SECONDS = 3.0, 0.5
#: Of two operators.
SHORT_LEASE: Final = {"durationSeconds": 20, "renewSeconds": 1}
RUN: Final = "viewed"


@pytest.fixture(scope="module")
def calm(ground: Ground) -> Iterator[Object]:
    """What becomes of a run that nobody disturbs."""
    with World(ground, "calm", {"lease": LEASE}) as world:
        world.kubelet.scripts[world.namespace] = script()
        with kept_running(world.operator):
            world.apply_run(RUN)
            wait_all(world, [RUN])
            yield result(world, RUN)


@pytest.fixture
def make_instant(make_world: Callable[..., World]) -> Callable[..., World]:
    """Worlds without processes in their pods; a stage's worker takes as long as is said, or hardly any time."""

    def make(lease: Object = LEASE, **seconds: float) -> World:
        world = make_world(lease=lease)
        usual = script()

        def ending(pod: Object, request: str) -> Ending | None:
            found = usual(pod, request)
            stage = (pod["metadata"].get("labels") or {}).get(names.STAGE, "")
            return replace(found, seconds=seconds.get(stage, found.seconds)) if found is not None else None

        world.kubelet.scripts[world.namespace] = ending
        return world

    return make


# --- watches ---------------------------------------------------------------------------------------------------------


@dataclass
class Watched:
    """Ways to tell of events, and how many events they have changed."""

    chance: random.Random = field(default_factory=lambda: random.Random(SEED))
    changed: Counter[str] = field(default_factory=Counter)

    async def delayed(self, events: Events) -> Events:
        waiting: asyncio.Queue[tuple[float, Object] | None] = asyncio.Queue()

        async def receive() -> None:
            try:
                async for event in events:
                    await waiting.put((time.monotonic() + LATE_SECONDS, event))
            finally:
                await waiting.put(None)

        receiving = asyncio.create_task(receive())
        try:
            while (found := await waiting.get()) is not None:
                await asyncio.sleep(max(0.0, found[0] - time.monotonic()))
                self.changed["delayed"] += 1
                yield found[1]
        finally:
            receiving.cancel()

    async def dropped(self, events: Events) -> Events:
        async for event in events:
            if event["type"] != "BOOKMARK" and self.chance.random() < 0.3:
                self.changed["dropped"] += 1
            else:
                yield event

    async def duplicated(self, events: Events) -> Events:
        earlier: list[Object] = []
        async for event in events:
            yield event
            earlier.append(event)
            self.changed["duplicated"] += 1
            yield event
            yield self.chance.choice(earlier)

    async def reordered(self, events: Events) -> Events:
        held: list[Object] = []
        due: asyncio.Event = asyncio.Event()
        ended = False

        async def receive() -> None:
            nonlocal ended
            try:
                async for event in events:
                    held.append(event)
                    due.set()
            finally:
                ended = True
                due.set()

        receiving = asyncio.create_task(receive())
        try:
            while not ended or held:
                await due.wait()
                await asyncio.sleep(WINDOW_SECONDS)
                due.clear()
                now, held[:] = held[:], []
                self.chance.shuffle(now)
                self.changed["reordered"] += len(now) > 1
                for event in now:
                    yield event
        finally:
            receiving.cancel()

    async def cut(self, events: Events) -> Events:
        end = time.monotonic() + 1.5 * self.chance.random()
        with_end = aiter(events)
        while (left := end - time.monotonic()) > 0:
            try:
                yield await asyncio.wait_for(anext(with_end), left)
            except (TimeoutError, StopAsyncIteration):
                break
        self.changed["cut"] += 1


WAYS: Final = ("delayed", "dropped", "duplicated", "reordered", "cut")


@pytest.mark.timeout(900)
def test_watches_that_tell_late_partly_twice_in_disorder_or_not_for_long(
    calm: Object, make_instant: Callable[..., World], record_cases: Callable[[str, int, int], None]
) -> None:
    worlds, watched = {way: make_instant() for way in WAYS}, Watched()

    def tell(way: str) -> Callable[[Call, Forward], Any]:
        async def rule(call: Call, forward: Forward) -> Answer:
            answer = await forward()
            return answer if answer.events is None else replace(answer, events=getattr(watched, way)(answer.events))

        return rule

    with ExitStack() as stack:
        for way, world in worlds.items():
            world.proxy.rules.insert(0, tell(way))
            stack.enter_context(kept_running(world.operator))
        for world in worlds.values():
            world.apply_run(RUN)
        for world in worlds.values():
            wait_all(world, [RUN], seconds=600)
        found = {way: result(world, RUN) for way, world in worlds.items()}
    print(f"events: {dict(watched.changed)}")
    assert all(watched.changed[way] for way in WAYS)
    same = [way for way in WAYS if found[way] == calm]
    record_cases("views: watches", watched.changed.total(), sum(watched.changed[way] for way in same))
    assert found == dict.fromkeys(WAYS, calm)


# --- time travel -----------------------------------------------------------------------------------------------------


@dataclass
class Lag:
    """A rule: an API server whose reads, from a moment on, are answered with what they were answered before it."""

    answers: dict[str, list[tuple[float, Answer]]] = field(default_factory=lambda: defaultdict(list))
    until: float | None = None
    """Reads show what was at this time; None: what is."""
    stale: int = 0

    async def __call__(self, call: Call, forward: Forward) -> Answer:
        if call.verb not in ("get", "list") or call.resource == "leases" or "tandem" not in call.path + call.namespace:
            return await forward()
        if self.until is None:
            answer = await forward()
            self.answers[call.path].append((time.monotonic(), answer))
            return answer
        then = [answer for at, answer in self.answers[call.path] if at <= self.until]
        if not then:
            return await forward()
        self.stale += 1
        return then[-1]


def things(world: World) -> dict[str, str]:
    """Everything that there is for the run, by uid."""
    chosen = f"{names.RUN}={RUN}"
    kinds = ("ConfigMap", "Deployment", "Job", "Service", "NetworkPolicy")
    return {
        f"{kind}/{thing['metadata']['name']}": thing["metadata"]["uid"]
        for kind in kinds
        for thing in world.api.list(kind, world.namespace, chosen)
    }


def jobs_of(world: World, stage: str) -> list[Object]:
    return [job for job in world.jobs(RUN) if job["metadata"]["labels"].get(names.STAGE) == stage]


@pytest.mark.timeout(900)
def test_an_operator_that_travels_back_in_time_repeats_nothing(
    calm: Object, make_instant: Callable[..., World], record_cases: Callable[[str, int, int], None]
) -> None:
    """Started anew it reads from an API server that lags behind, to before its last writes."""
    world, lag = make_instant(optimize=20.0, train=20.0), Lag()
    world.proxy.rules.append(lag)
    world.operator.start()
    world.apply_run(RUN)
    travels = 0
    for stage in ("optimize", "train"):
        world.wait(f"the Job of {stage}", lambda stage=stage: jobs_of(world, stage), 300)
        world.operator.kill()
        # The requests of tasks that have ended go, whoever sees it.
        there = {name: uid for name, uid in things(world).items() if not name.startswith("ConfigMap/")}
        # To before the Job was made.
        made = [at for path, found in lag.answers.items() for at, _ in found if f"/{RUN}" in path]
        lag.until, lag.stale = sorted(made)[-len(made) // 3], 0
        world.operator.start()
        world.wait("reads that lag", lambda: lag.stale >= 6, 120)
        assert {name: uid for name, uid in things(world).items() if name in there} == there
        lag.until = None
        travels += 1
    wait_all(world, [RUN], seconds=300)
    record_cases("views: time travel", travels, travels if result(world, RUN) == calm else 0)
    assert result(world, RUN) == calm


@pytest.mark.timeout(900)
def test_a_run_of_the_same_name_is_left_alone_by_an_operator_that_still_sees_the_earlier_one(
    calm: Object, make_instant: Callable[..., World], record_cases: Callable[[str, int, int], None]
) -> None:
    world, lag = make_instant(optimize=30.0), Lag()
    world.proxy.rules.append(lag)
    with FaultProxy(world.ground.plane.url) as direct:
        direct.rules.append(world._count_jobs)
        spare = world.make_operator("operator-1", direct)
        world.operator.start()
        earlier = world.apply_run(RUN)["metadata"]["uid"]
        world.wait("the earlier run's search", lambda: jobs_of(world, "optimize"), 300)
        time.sleep(2.0)  # a pass or two more, to be remembered
        world.operator.kill()
        lag.until = time.monotonic()
        world.api.delete(KIND, world.namespace, RUN)
        world.wait("the garbage collector", lambda: not things(world), 120)
        world.created_jobs.clear()
        spare.start()
        assert world.apply_run(RUN)["metadata"]["uid"] != earlier
        world.wait("the later run's search", lambda: jobs_of(world, "optimize"), 300)
        spare.stop()
        there, before = things(world), len(world.proxy.writes)
        world.operator.start()
        world.wait("reads that lag", lambda: lag.stale >= 6, 120)
        assert things(world) == there
        writes = [call for call in world.proxy.writes[before:] if call.resource != "leases"]
        print(f"{lag.stale} answers from the past; writes tried meanwhile: {Counter(map(str, writes))}")
        lag.until = None
        wait_all(world, [RUN], seconds=300)
    is_same = result(world, RUN) == calm
    record_cases("views: time travel", 1, int(is_same))
    assert result(world, RUN) == calm


# --- two operators ---------------------------------------------------------------------------------------------------


@dataclass
class Pair:
    """A leader, and a spare with a way of its own to the API server."""

    world: World
    others: FaultProxy
    stack: ExitStack

    def __post_init__(self) -> None:
        self.others.rules.append(self.world._count_jobs)
        self.spare = self.world.make_operator("operator-1", self.others)

    def start(self) -> None:
        """The leader first, then the spare, then the run."""
        self.world.operator.start()
        self.world.operator.wait_until_ready()
        self.world.wait("the leader", lambda: self.world.proxy.count("list", "jobs") > 0)
        self.stack.enter_context(kept_running(self.spare))
        self.spare.wait_until_ready()
        self.world.apply_run(RUN)


@pytest.fixture
def pair(make_instant: Callable[..., World]) -> Iterator[Pair]:
    world = make_instant(lease=SHORT_LEASE)
    with FaultProxy(world.ground.plane.url) as others, ExitStack() as stack:
        yield Pair(world, others, stack)
        world.operator.kill()


@pytest.mark.timeout(600)
def test_a_leader_that_is_killed_is_replaced(
    calm: Object, pair: Pair, record_cases: Callable[[str, int, int], None]
) -> None:
    pair.start()
    pair.world.wait("half of the run", lambda: jobs_of(pair.world, "optimize"), 300)
    pair.world.operator.kill()
    wait_all(pair.world, [RUN], seconds=300)
    record_cases("views: two operators", 1, int(result(pair.world, RUN) == calm))
    assert result(pair.world, RUN) == calm


HELD: Final = ("create jobs", "update optimizationruns/status", "patch deployments")


@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", HELD)
def test_what_a_former_leader_has_sent_changes_nothing_when_it_arrives(
    calm: Object, pair: Pair, kind: str, record_cases: Callable[[str, int, int], None]
) -> None:
    """It is cut off right after it has sent a write, which arrives when another one has led the run to its end."""
    world, arrive, late = pair.world, threading.Event(), dict[str, int]()
    cut_off = threading.Event()

    async def hold(call: Call, forward: Forward) -> Answer:
        if cut_off.is_set():
            raise CutError
        if f"{call.verb} {call.target}" != kind or not jobs_of_stage(world, "evaluate"):
            return await forward()
        cut_off.set()
        while not arrive.is_set():  # noqa: ASYNC110 - a thread sets it
            await asyncio.sleep(0.1)
        late[str(call)] = (await forward()).status
        raise CutError

    world.proxy.rules.insert(0, hold)
    pair.start()
    world.wait("a write of the leader", cut_off.is_set, 300)
    wait_all(world, [RUN], seconds=300)
    assert not world.operator.is_running, "it must have ended with its Lease"
    arrive.set()
    world.wait("the write that was held", lambda: late, 60)
    print(f"late: {late}")
    world.wait("the end as it was", lambda: result(world, RUN) == calm, 60)
    record_cases("views: two operators", 1, 1)
    assert kind == "patch deployments" or set(late.values()) == {409}


def jobs_of_stage(world: World, stage: str) -> bool:
    """Whether there was such a Job, by what was counted: for rules, which must not ask the API server."""
    return any(f"-{stage}-" in name for name in list(world.created_jobs))


@pytest.mark.timeout(600)
def test_a_leader_that_was_stopped_beyond_its_lease_writes_nothing_any_more(
    calm: Object, pair: Pair, record_cases: Callable[[str, int, int], None]
) -> None:
    world = pair.world
    pair.start()
    world.wait("half of the run", lambda: jobs_of(world, "optimize"), 300)
    world.operator.pause()
    wait_all(world, [RUN], seconds=300)
    before = len(world.proxy.writes)
    world.operator.resume()
    world.wait("its end", lambda: not world.operator.is_running, 60)
    writes = [str(call) for call in world.proxy.writes[before:]]
    record_cases("views: two operators", 1, int(not writes))
    assert not writes, "a former leader has written"
    assert result(world, RUN) == calm


# --- what nobody saw, and what the clock says -------------------------------------------------------------------------


@pytest.mark.timeout(600)
def test_suspend_and_resume_while_nobody_looks(
    calm: Object, make_instant: Callable[..., World], record_cases: Callable[[str, int, int], None]
) -> None:
    """What counts is what is wanted now: toggled twice nothing has happened, toggled three times the run is held."""
    world = make_instant(optimize=20.0)
    world.operator.start()
    world.apply_run(RUN)

    def toggle(*values: bool) -> None:
        world.operator.kill()
        for value in values:
            world.api.patch(KIND, world.namespace, RUN, {"spec": {"suspend": value}})
        world.operator.start()

    (job,) = world.wait("the search", lambda: jobs_of(world, "optimize"), 300)
    toggle(True, False)
    world.wait("a look", lambda: world.condition("Progressing", RUN)["reason"] != "Suspended")
    toggle(True, False, True)
    world.wait("it is held", lambda: world.condition("Progressing", RUN)["reason"] == "Suspended", 120)
    world.wait("its pods' end", lambda: not [p for p in world.pods(RUN) if p["status"]["phase"] == "Running"], 120)
    toggle(False, True, False)
    wait_all(world, [RUN], seconds=300)
    assert max(world.created_jobs.values()) <= 2, "one for the search before it was held, one after"
    attempts = [stage["attempt"] for step in world.status(RUN)["steps"] for stage in step["stages"]]
    record_cases("views: suspend unseen", 3, 3)
    assert set(attempts) <= {1, 2}
    assert world.status(RUN)["best"] == calm["outcome"]["best"]
    assert job["metadata"]["name"] in world.created_jobs


@pytest.mark.timeout(600)
def test_the_clock_jumps_by_hours_between_any_two_stages(
    calm: Object,
    make_instant: Callable[..., World],
    monkeypatch: pytest.MonkeyPatch,
    record_cases: Callable[[str, int, int], None],
) -> None:
    """The operator's wall clock alone; what it waits for in hours, such as a server's start, is not under way then."""
    world = make_instant()
    clock = world.folder / "clock"
    clock.write_text("0")
    monkeypatch.setenv(ENV_CLOCK, str(clock))
    jumps = [3600, -7200, 86400, -86400, 60, -3600]
    made: list[int] = []

    async def jump(call: Call, forward: Forward) -> Answer:
        answer = await forward()
        if call.verb == "create" and call.resource == "jobs" and answer.status == 201:
            now = jumps[len(made) % len(jumps)]
            clock.write_text(str(now))
            made.append(now)
        return answer

    world.proxy.rules.append(jump)
    with kept_running(world.operator):
        world.apply_run(RUN)
        wait_all(world, [RUN], seconds=300)
    record_cases("views: clock jumps", len(made), len(made) if result(world, RUN) == calm else 0)
    assert len(made) >= len(jumps)
    assert result(world, RUN) == calm
