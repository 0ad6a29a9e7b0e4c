"""Faults for the soak: drawn from a seed, done to whatever is there, ended when their time is over."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

from tests.faults.api import ApiError
from tests.faults.kubelet import NODES
from tests.faults.proxy import Answer, Call, CutError, Forward, Rule
from tests.faults.stages import point
from tests.faults.test_api_faults import FAULTS as API_FAULTS
from tests.faults.test_children import CHILDREN
from tests.faults.test_store_faults import HalfUploads
from tests.faults.test_store_faults import refusal as store_refusal
from tests.faults.world import World

from tandem_api.v1alpha1.run import KIND
from tandem_operator.platforms.kubernetes import names

Object = dict[str, Any]

#: Between two faults, at the least and at the most.
GAP_SECONDS: Final = (4.0, 12.0)
#: What is done to the containers of workers and servers.
BLOWS: Final[dict[str, tuple[str, str]]] = {
    "worker killed": (names.WORKER, "worker"),
    "worker out of memory": (names.WORKER, "worker"),
    "worker evicted": (names.WORKER, "worker"),
    "worker preempted": (names.WORKER, "worker"),
    "worker shut down": (names.WORKER, "worker"),
    "server killed": (names.SERVING, "vllm"),
    "server out of memory": (names.SERVING, "vllm"),
    "server evicted": (names.SERVING, "vllm"),
    "server preempted": (names.SERVING, "vllm"),
    "sidecar killed": (names.SERVING, "adapters"),
}
STORE: Final = ("store gone", "store asks to slow down", "store slow", "uploads cut", "uploads cut in the middle")
#: All that leaves the operator's process alone; those that have many forms more than once.
KINDS: Final = (
    *BLOWS, *STORE, *["child deleted"] * 4, *["API server fails"] * 2, *["API server fails now and then"] * 2,
    *["connections cut"] * 2, *["run suspended"] * 2, *["run deleted"] * 2, "run edited", "node lost",
    "operator paused",
)  # fmt: skip
WITH_RESTARTS: Final = (*KINDS, *["operator stopped", "operator killed"] * 3)
#: Answers of the API server that do not end a run that gets them again and again.
_PASSING: Final = ("throttled", "broken", "unavailable", "lost", "unacknowledged", "silent", "mute")
_SHARE: Final = 0.3


@dataclass(frozen=True)
class Planned:
    """A fault that is to come."""

    at: float
    """Seconds from the round's begin."""
    kind: str
    choice: int
    """What decides about all that is left open."""


def plan(seed: int, parts: Sequence[Sequence[str]], seconds: float) -> list[list[Planned]]:
    """The faults of each part of the soak, given its kinds: each comes once before any comes again."""
    chance = random.Random(seed)
    found: list[list[Planned]] = []
    deck: list[str] = []
    for number, kinds in enumerate(parts):
        deck = deck if kinds == parts[number - 1] else []
        at = 0.0
        found.append([])
        while (at := at + chance.uniform(*GAP_SECONDS)) < seconds:
            deck = deck or chance.sample(kinds, len(kinds))
            found[-1].append(Planned(at, deck.pop(), chance.getrandbits(32)))
    return found


@dataclass
class Run:
    """A run of the soak."""

    name: str
    strategy: str
    uid: str
    began: float
    hits: list[str] = field(default_factory=list)
    """What has befallen it."""
    deleted: float | None = None
    """When."""


@dataclass
class Faults:
    """What does them, in the test's thread. Each returns what it has hit and how; nothing where nothing was there."""

    world: World
    runs: Mapping[str, Run]
    """Those that there are."""
    problems: list[str]
    """What else was wrong."""
    may_restart: bool = False
    """Whether the operator's process may end."""
    done: Counter[str] = field(default_factory=Counter)
    _pending: list[tuple[float, str, Callable[[], object]]] = field(default_factory=list)
    """When a fault is over, which, and what ends it."""

    def strike(self, planned: Planned) -> str:
        """Do it, and say so; nothing, if there is nothing to do it to."""
        chance, kind = random.Random(planned.choice), planned.kind
        hit, how = self._act(kind, chance)
        if not hit:
            return ""
        self.done[kind] += 1
        said = f"#{self.done.total()} {kind}: {how}"
        for run in hit:
            run.hits.append(said)
        return f"{said} ({', '.join(run.name for run in hit)})"

    def end(self, *, everything: bool = False) -> None:
        """End what is over, or everything."""
        now = time.monotonic()
        due = [entry for entry in self._pending if everything or entry[0] <= now]
        self._pending = [entry for entry in self._pending if entry not in due]
        for _, _, finish in due:
            finish()
        if not self.world.operator.is_running and not self._is_pending("operator"):
            assert self.may_restart, "the operator has ended by itself"
            self.world.operator.start()  # as its Deployment does

    # --- what there is -----------------------------------------------------------------------------------------------

    def working(self) -> list[Run]:
        """The runs that nobody has deleted."""
        return [run for run in self.runs.values() if run.deleted is None]

    def _pods(self, component: str, container: str) -> list[Object]:
        names_of = {run.name for run in self.working()}
        pods = [
            pod
            for pod in self.world.kubelet.pods(self.world.namespace, component)
            if pod["metadata"]["labels"].get(names.RUN) in names_of
            and not pod["metadata"].get("deletionTimestamp")
            and self.world.kubelet.pid(pod, container) is not None
        ]
        return sorted(pods, key=lambda pod: str(pod["metadata"]["name"]))

    def _later(self, seconds: float, what: str, finish: Callable[[], object]) -> None:
        self._pending.append((time.monotonic() + seconds, what, finish))

    def _is_pending(self, what: str) -> bool:
        return any(what == other for _, other, _ in self._pending)

    # --- what is done ------------------------------------------------------------------------------------------------

    def _act(self, kind: str, chance: random.Random) -> tuple[list[Run], str]:
        if kind in BLOWS:
            return self._blow(kind, chance)
        if kind in STORE:
            return self._store(kind, chance)
        subject, _, rest = kind.partition(" ")
        if subject == "operator":
            return self._operator(rest, chance)
        if subject == "run":
            return self._run(rest, chance)
        other = {
            "child deleted": self._child,
            "API server fails": self._api,
            "API server fails now and then": self._api_share,
            "connections cut": self._cut,
            "node lost": self._node,
        }
        return other[kind](chance)

    def _blow(self, kind: str, chance: random.Random) -> tuple[list[Run], str]:
        component, container = BLOWS[kind]
        pods, kubelet = self._pods(component, container), self.world.kubelet
        if not pods:
            return [], ""
        pod = chance.choice(pods)
        how: dict[str, Callable[[], object]] = {
            "killed": lambda: kubelet.kill(pod, container),
            "out of memory": lambda: kubelet.oom_kill(pod, container),
            "evicted": lambda: kubelet.evict(pod),
            "preempted": lambda: kubelet.preempt(pod),
            "shut down": lambda: kubelet.shut_down(pod),
        }
        act = how[kind.partition(" ")[2]]
        try:
            act()
        except KeyError:  # it has gone this moment
            return [], ""
        return [self.runs[pod["metadata"]["labels"][names.RUN]]], str(pod["metadata"]["name"])

    def _child(self, chance: random.Random) -> tuple[list[Run], str]:
        workers = {pod["metadata"]["labels"][names.RUN]: pod for pod in self._pods(names.WORKER, "worker")}
        if not workers:
            return [], ""
        name = chance.choice(sorted(workers))
        for child in chance.sample(sorted(CHILDREN), len(CHILDREN)):
            with suppress(ApiError):  # it has gone meanwhile
                if CHILDREN[child](self.world, name, point(workers[name])):
                    return [self.runs[name]], child
        return [], ""

    def _run(self, what: str, chance: random.Random) -> tuple[list[Run], str]:
        # One that ends at this moment is left alone: it is compared, and deleted then.
        found = [run for run in self.working() if not self.world.status(run.name).get("finished")]
        if not found:
            return [], ""
        run = chance.choice(found)
        if what == "deleted":
            self.world.api.delete(KIND, self.world.namespace, run.name)
            run.deleted = time.monotonic()
            return [run], f"after {run.deleted - run.began:.0f} s"
        if what == "edited":
            spec: Object = {"ttlSecondsAfterFinished": 86_400 + chance.randrange(100), "budget": {"tokens": 10**9}}
            self._patch(run, spec)
            return [run], f"{spec}"
        seconds = chance.uniform(0.0, 12.0)
        self._patch(run, {"suspend": True})
        self._later(seconds, "run", lambda: self._patch(run, {"suspend": False}))
        return [run], f"for {seconds:.1f} s"

    def _patch(self, run: Run, spec: Object) -> None:
        try:
            self.world.api.patch(KIND, self.world.namespace, run.name, {"spec": spec})
        except ApiError as error:
            if error.status != 404:  # deleted meanwhile
                raise

    def _operator(self, what: str, chance: random.Random) -> tuple[list[Run], str]:
        operator, seconds = self.world.operator, chance.uniform(0.5, 8.0)
        if self._is_pending("operator") or (self.may_restart and not operator.is_running):
            return [], ""
        if what == "paused":
            operator.pause()
            self._later(seconds, "operator", operator.resume)
            return self.working(), f"for {seconds:.1f} s"
        code: int | None = None
        if what == "stopped":
            code = operator.stop()
            if code != 0:
                self.problems.append(f"the operator ended with {code} after SIGTERM")
        else:
            operator.kill()
        self._later(seconds, "operator", operator.start)
        return self.working(), f"and started after {seconds:.1f} s"

    def _node(self, chance: random.Random) -> tuple[list[Run], str]:
        pods = self._pods(names.WORKER, "worker") + self._pods(names.SERVING, "vllm")
        if not pods or self._is_pending("node"):
            return [], ""
        node = next(node for node in NODES if node == pods[0]["spec"].get("nodeName"))
        seconds, dies = chance.uniform(2.0, 25.0), chance.random() < 0.5
        self.world.kubelet.node_lost(node, dies=dies)
        self._later(seconds, "node", lambda: self.world.kubelet.node_back(node))
        return self.working(), f"{node} for {seconds:.1f} s, its pods {'with it' if dies else 'go on'}"

    def _cut(self, chance: random.Random) -> tuple[list[Run], str]:
        self.world.proxy.cut_all()
        return self.working(), "all to the API server"

    def _api(self, chance: random.Random) -> tuple[list[Run], str]:
        seconds, name = chance.uniform(1.0, 6.0), chance.choice(("conflict", *_PASSING))

        async def fail(call: Call, forward: Forward) -> Answer:
            # A conflict is the answer to a write, and of a Lease it means that another operator leads.
            if name == "conflict" and (not call.is_write or call.resource == "leases"):
                return await forward()
            return await API_FAULTS[name](call, forward)

        self._for_a_while(self.world.proxy.rules, fail, seconds)
        return self.working(), f"{name} for {seconds:.1f} s"

    def _api_share(self, chance: random.Random) -> tuple[list[Run], str]:
        seconds = chance.uniform(5.0, 20.0)

        async def fail(call: Call, forward: Forward) -> Answer:
            if chance.random() >= _SHARE:
                return await forward()
            return await API_FAULTS[chance.choice(_PASSING)](call, forward)

        self._for_a_while(self.world.proxy.rules, fail, seconds)
        return self.working(), f"{_SHARE:.0%} of all calls for {seconds:.1f} s"

    def _store(self, kind: str, chance: random.Random) -> tuple[list[Run], str]:
        seconds = chance.uniform(2.0, 8.0)
        halves = HalfUploads(self.world)

        async def gone(call: Call, forward: Forward) -> Answer:
            raise CutError

        async def slow_down(call: Call, forward: Forward) -> Answer:
            return store_refusal(503, "SlowDown") if chance.random() < 0.5 else await forward()

        async def slow(call: Call, forward: Forward) -> Answer:
            await asyncio.sleep(0.5)
            return await forward()

        async def cut(call: Call, forward: Forward) -> Answer:
            if call.verb != "put" or chance.random() >= _SHARE:
                return await forward()
            if chance.random() < 0.5:
                await forward()
            raise CutError

        rules: tuple[Rule, ...] = (gone, slow_down, slow, cut, halves)
        rule = rules[STORE.index(kind)]
        self._for_a_while(self.world.s3_proxy.rules, rule, seconds)
        if rule is halves:
            self._later(seconds, "halves", lambda: self.problems.extend(halves.visible))
        return self.working(), f"for {seconds:.1f} s"

    def _for_a_while(self, rules: list[Rule], rule: Rule, seconds: float) -> None:
        until = time.monotonic() + seconds

        async def act(call: Call, forward: Forward) -> Answer:
            # The test's thread may be late.
            return await (rule(call, forward) if time.monotonic() < until else forward())

        rules.insert(0, act)  # the outermost: others count what the server has answered
        self._later(seconds, "rule", lambda: rules.remove(act))
