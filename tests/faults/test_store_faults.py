"""The object store is gone, slow, full, refuses, or gives back something else: the run ends as one that nobody
disturbed, or fails and says why; never with another result.

Real workers, sidecars and S3; between them a proxy.
"""

from __future__ import annotations

import asyncio
import base64
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, Final

import pytest
from tests.faults.instant_runs import LEASE
from tests.faults.keys import SECOND_PAIR
from tests.faults.proxy import Answer, Call, CutError, Forward
from tests.faults.world import BATCH, Ground, World, is_full
from yarl import URL

Object = dict[str, Any]
SHORT, WHOLE = "p", "p -> w"
#: The check gives up after about 8 s, and its next attempt begins after 2 s. The other stages wait for five minutes.
CHECK_OUTAGE_SECONDS: Final = 12.0
OUTAGE_SECONDS: Final = 150.0 if is_full() else 12.0
LATE_SECONDS: Final = 1.0
SECONDS: Final = 2400.0 if is_full() else 900.0
PROMPTS, ADAPTER = re.compile(r"/prompts/[0-9a-f]+\.json$"), re.compile(r"/adapter/adapter_\w+\.\w+$")
_STAGE = re.compile(r"/steps/(\d+-\w+/[\w-]+)/")


def stage_of(call: Call) -> str | None:
    """The stage that an object belongs to."""
    found = _STAGE.search(call.name)
    return found[1] if found is not None else None


def refusal(status: int, code: str) -> Answer:
    """An answer in S3's form."""
    text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>refused by a test</Message></Error>"
    return Answer(status, text.encode(), {"Content-Type": "application/xml"})


@dataclass(frozen=True)
class Calm:
    """What comes of runs that nobody disturbs, by their strategy."""

    worlds: dict[str, World]

    def assert_same(self, world: World, strategy: str) -> None:
        """The same result, from the same objects; nothing paid twice but a batch for each attempt that failed."""
        calm = self.worlds[strategy]
        assert essence(world) == essence(calm)
        retries = sum(stage["attempt"] - 1 for step in world.status()["steps"] for stage in step["stages"])
        assert world.calls().keys() == calm.calls().keys()
        assert world.calls().total() - calm.calls().total() <= BATCH * retries


@pytest.fixture(scope="module")
def calm(ground: Ground) -> Iterator[Calm]:
    lease = {"lease": LEASE}
    with World(ground, "calm-short", lease) as short, World(ground, "calm-whole", lease) as whole:
        worlds = {SHORT: short, WHOLE: whole}
        for strategy, world in worlds.items():
            begin(world, strategy)
        for world in worlds.values():
            world.wait_finished(seconds=SECONDS)
            world.operator.kill()
        yield Calm(worlds)


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """A world of the test's own."""
    return make_world(lease=LEASE)


def begin(world: World, strategy: str, **spec: Any) -> None:
    """Start the operator and the run."""
    world.operator.start()
    world.apply_run(strategy=strategy, **spec)


def essence(world: World, run: str = "run") -> Object:
    """The result, and the objects that it is made of: all of what is addressed by its content."""
    outcome = world.outcome(run)
    steps = [
        {key: step.get(key) for key in ("kind", "state", "score", "promptSet", "traces", "adapter", "candidates")}
        for step in outcome["steps"]
    ]
    objects = {key: digest for key, digest in world.objects(run).items() if PROMPTS.search(key) or ADAPTER.search(key)}
    return {**{key: outcome.get(key) for key in ("best", "baseline", "test")}, "steps": steps, "objects": objects}


def failure(world: World) -> str:
    """Why the run has failed."""
    world.wait_finished(succeeded=False, seconds=SECONDS)
    condition = world.condition("Succeeded")
    assert "Traceback" not in condition["message"]
    return f"{condition['reason']}: {condition['message']}"


def outage_seconds(stage: str) -> float:
    """For how long the store is gone in a stage."""
    return CHECK_OUTAGE_SECONDS if stage.endswith("/check") else OUTAGE_SECONDS


@dataclass
class Outages:
    """A rule: the store is gone for a while, once in each stage: from its first call on, or from a later one."""

    began: dict[str, float] = field(default_factory=dict)
    seen: Counter[str] = field(default_factory=Counter)

    async def __call__(self, call: Call, forward: Forward) -> Answer:
        stage, now = stage_of(call), time.monotonic()
        if any(now - began < outage_seconds(stage) for stage, began in self.began.items()):
            raise CutError
        if stage is not None and stage not in self.began:
            self.seen[stage] += 1
            if self.seen[stage] > len(self.began) % 3:
                self.began[stage] = now
                raise CutError
        return await forward()


@pytest.mark.timeout(SECONDS)
def test_the_store_is_gone_for_a_while_in_each_stage(
    calm: Calm, world: World, record_cases: Callable[[str, int, int], None]
) -> None:
    outages = Outages()
    world.s3_proxy.rules.append(outages)
    begin(world, WHOLE)
    world.wait_finished(seconds=SECONDS)
    print(f"gone for {OUTAGE_SECONDS:.0f} s in each of {sorted(outages.began)}")
    calm.assert_same(world, WHOLE)
    steps = world.status()["steps"]
    assert {one["name"] for step in steps for one in step["stages"] if one["attempt"] > 1} <= {"check"}
    stages = {f"{step['index']}-{step['kind']}/{one['name']}" for step in steps for one in step["stages"]}
    assert set(outages.began) == stages
    record_cases("store: gone", len(stages), len(stages))


@dataclass
class HalfUploads:
    """A rule: of the first upload of each kind of object only the first half reaches the store."""

    world: World
    kinds: set[str] = field(default_factory=set)
    visible: list[str] = field(default_factory=list)
    """Objects that were there after half of them had come."""

    async def __call__(self, call: Call, forward: Forward) -> Answer:
        kind = re.sub(r"[0-9a-f-]{8,}|\d+", "N", call.name.partition("/steps/")[2] or call.name)
        if call.verb != "put" or len(call.body) < 2 or kind in self.kinds:
            return await forward()
        self.kinds.add(kind)
        await self.world.s3_proxy.in_thread(lambda: self._send_half(call))
        raise CutError

    def _send_half(self, call: Call) -> None:
        upstream = URL(self.world.s3_proxy.upstream)
        before = self.world.store.get(call.name)
        headers = {**call.headers, "Content-Length": str(len(call.body)), "Connection": "close"}
        head = "".join(f"{name}: {value}\r\n" for name, value in headers.items() if name.lower() != "expect")
        with socket.create_connection((str(upstream.host), int(upstream.port or 80)), timeout=10) as connection:
            connection.sendall(f"{call.method} {call.path} HTTP/1.1\r\n{head}\r\n".encode())
            connection.sendall(call.body[: len(call.body) // 2])
        if self.world.store.get(call.name) != before:
            self.visible.append(call.name)


@pytest.mark.timeout(SECONDS)
def test_uploads_that_are_cut_in_the_middle_leave_nothing_and_are_made_again(
    calm: Calm, world: World, record_cases: Callable[[str, int, int], None]
) -> None:
    halves = HalfUploads(world)
    world.s3_proxy.rules.append(halves)
    begin(world, WHOLE)
    world.wait_finished(seconds=SECONDS)
    print(f"cut in the middle: {sorted(halves.kinds)}")
    assert not halves.visible
    assert any("adapter" in kind for kind in halves.kinds)
    calm.assert_same(world, WHOLE)
    record_cases("store: half uploads", len(halves.kinds), len(halves.kinds))


@pytest.mark.full
@pytest.mark.timeout(SECONDS)
def test_a_slow_store_that_also_asks_to_slow_down(
    calm: Calm, world: World, record_cases: Callable[[str, int, int], None]
) -> None:
    """Each answer a second late, and the first call of each kind is asked to come again."""
    asked: set[tuple[str, str | None]] = set()

    async def slow(call: Call, forward: Forward) -> Answer:
        await asyncio.sleep(LATE_SECONDS)
        kind = (call.verb, stage_of(call))
        if kind not in asked:
            asked.add(kind)
            return refusal(503, "SlowDown")
        return await forward()

    world.s3_proxy.rules.append(slow)
    begin(world, SHORT)
    world.wait_finished(seconds=SECONDS)
    calm.assert_same(world, SHORT)
    record_cases("store: slow", len(asked), len(asked))


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize(
    ("status", "code", "verb", "words"),
    [
        (403, "AccessDenied", "", ("StorageRefused", "no right", "grant")),
        (403, "InvalidAccessKeyId", "", ("StorageRefused", "access key is unknown", "credentialsSecret")),
        (507, "XMinioStorageFull", "put", ("StorageRefused", "disk is full")),
    ],
)
def test_a_store_that_refuses_fails_the_run_with_the_cause(
    world: World,
    status: int,
    code: str,
    verb: str,
    words: tuple[str, ...],
    record_cases: Callable[[str, int, int], None],
) -> None:
    async def refuse(call: Call, forward: Forward) -> Answer:
        return refusal(status, code) if verb in ("", call.verb) else await forward()

    world.s3_proxy.rules.append(refuse)
    begin(world, SHORT)
    said = failure(world)
    assert [word for word in words if word not in said] == [], said
    assert len(world.jobs()) == 1, "no attempt can help"
    record_cases("store: refuses", 1, 1)


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize("way", ["damaged", "missing"])
@pytest.mark.parametrize(
    ("objects", "strategy"),
    [
        pytest.param(PROMPTS, SHORT, id="prompts"),
        pytest.param(ADAPTER, WHOLE, id="adapter", marks=pytest.mark.full),
    ],
)
def test_an_object_that_does_not_come_back_as_it_was_written_is_named(
    calm: Calm,
    world: World,
    way: str,
    objects: re.Pattern[str],
    strategy: str,
    record_cases: Callable[[str, int, int], None],
) -> None:
    """Each time that it is read. Whoever reads it again may also get around it: then the result is the same."""
    hit: set[str] = set()

    async def spoil(call: Call, forward: Forward) -> Answer:
        answer = await forward()
        if call.verb not in ("get", "head") or answer.status >= 300 or not objects.search(call.name):
            return answer
        hit.add(call.name)
        if way == "missing":
            return refusal(404, "NoSuchKey")
        body = bytearray(answer.body)
        if body:
            body[len(body) // 2] ^= 1
        return replace(answer, body=bytes(body))

    world.s3_proxy.rules.append(spoil)
    begin(world, strategy)
    world.wait_finished(succeeded=None, seconds=SECONDS)
    assert hit
    if world.condition("Succeeded")["status"] == "True":
        calm.assert_same(world, strategy)
    else:
        said = failure(world)
        assert any(name.rpartition("/")[0] in said for name in hit), f"{said} does not name any of {hit}"
        assert "damaged" in said or "sha256" in said or "missing" in said, said
    record_cases("store: damaged or lost objects", 1, 1)


@pytest.mark.timeout(SECONDS)
@pytest.mark.parametrize(
    ("strategy", "moment", "spec"),
    [(SHORT, "/optimize/ledger/", {}), (WHOLE, "/2-w/train/", {"serving": {"handover": "keep"}})],
    ids=["in a search", "before a server's adapter"],
)
def test_keys_that_are_rotated(
    calm: Calm,
    world: World,
    strategy: str,
    moment: str,
    spec: Object,
    record_cases: Callable[[str, int, int], None],
) -> None:
    """The Secret gets the new pair and the old one is refused at once: the attempt fails, the next one has the new; so
    has the sidecar of a server that was up before, once it is started anew."""
    old = world.ground.storage.credentials["AWS_ACCESS_KEY_ID"]
    rotated: list[float] = []
    used: Counter[str] = Counter()

    def rotate() -> None:
        data = {name: base64.b64encode(value.encode()).decode() for name, value in SECOND_PAIR.items()}
        world.api.patch("Secret", world.namespace, "s3-credentials", {"data": data})

    async def check(call: Call, forward: Forward) -> Answer:
        key = re.search(r"Credential=([^/]+)/", call.headers.get("Authorization", ""))
        assert key is not None
        used[key[1]] += 1
        if not rotated and call.verb == "put" and moment in call.name:
            rotated.append(time.monotonic())
            await world.s3_proxy.in_thread(rotate)
        if rotated and key[1] == old:
            return refusal(403, "InvalidAccessKeyId")
        return await forward()

    world.s3_proxy.rules.append(check)
    begin(world, strategy, **spec)
    world.wait_finished(seconds=SECONDS)
    assert used[SECOND_PAIR["AWS_ACCESS_KEY_ID"]] > 0
    calm.assert_same(world, strategy)
    record_cases("store: rotated keys", 1, 1)
