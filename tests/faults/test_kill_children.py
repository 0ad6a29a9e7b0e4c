"""Workers killed (-9) around each of their writes to the object store, the adapter sidecar around each of its calls.

The stages of a real run are repeated, request by request and without an operator: a worker that is killed is started
again at once, as its next attempt. It ends as the undisturbed one did, with the same objects, and no call is paid for
twice beyond a batch. Every write is hit right before, then right after it was carried out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import urllib3
from tests.engine.model import answer
from tests.engine.worker import CONFIG
from tests.faults.proxy import Answer, Call, CutError, FaultProxy, Forward
from tests.faults.stages import LONG_LEASE
from tests.faults.world import BATCH, World, is_full
from tests.faults.zygote import Forked, Start, Zygote
from tests.scripted_lm.server import ScriptedServer
from tests.unit.trainer.adapters.fake_vllm import metrics

from tandem_api.adapters import DESIRED_KEY, ENV_ADAPTERS_DIR, ENV_DESIRED_ADAPTERS, DesiredAdapter, DesiredAdapters
from tandem_api.contract import ENV_CACHE, ENV_CONFIGMAPS, ENV_REQUEST, ENV_TERMINATION
from tandem_operator.platforms.local.machine import LOOPBACK, free_port

Object = dict[str, Any]

#: Starts of one stage's worker: more than it has kill points.
MOST_STARTS: Final = 60
#: For one worker, or one change of a sidecar, on a slow machine.
SECONDS: Final = 120.0
#: The part of a ledger file's name that no two processes share.
_WRITER: Final = re.compile(r"/\d{20}-[0-9a-f]{8}-")


@dataclass
class Killer:
    """A rule that kills a process right before, the next time right after, each of its writes; then they pass."""

    proxy: FaultProxy
    sign: Callable[[Call], str | None]
    """What tells one write from another; None: it is none."""
    process: Forked | None = None
    seen: dict[str, int] = field(default_factory=dict)
    kills: int = 0

    async def __call__(self, call: Call, forward: Forward) -> Answer:
        write, process = self.sign(call), self.process
        if write is None or process is None:
            return await forward()
        self.seen[write] = self.seen.get(write, 0) + 1
        if self.seen[write] > 2:
            return await forward()
        if self.seen[write] == 2:
            await forward()
        self.kills += 1
        await self.proxy.in_thread(process.kill)
        raise CutError


def _write(call: Call) -> str | None:
    return f"{call.verb} {_WRITER.sub('/', call.name)}" if call.is_write else None


@dataclass
class Workers:
    """A run's stages once more, under another uid and without an operator."""

    world: World
    zygote: Zygote
    uid: str
    new: str
    killer: Killer
    server: ScriptedServer

    @property
    def folder(self) -> Path:
        return self.world.folder / "workers"

    def repeat(self, request: Object) -> int:
        """One stage, with as many workers as it takes; how many were killed."""
        before = self.killer.kills
        for number in range(1, MOST_STARTS + 1):
            name = f"{request['index']}-{request['stage']}-{number}"
            path = self.folder / f"{name}.json"
            path.write_text(json.dumps({**request, "attempt": number}).replace(self.uid, self.new))
            self.killer.process = process = self.zygote.fork(self._start(name, path))
            code = process.wait(SECONDS)
            said = (self.folder / f"{name}.log").read_text()[-2000:]
            assert code in (0, -9), f"{name} ended with {code}: {said}"
            if code == 0:
                return self.killer.kills - before
        raise AssertionError(f"{request['stage']} did not end in {MOST_STARTS} starts: {self.killer.seen}")

    def _start(self, name: str, request: Path) -> Start:
        environment = {
            **self.world.ground.storage.credentials,
            "AWS_ENDPOINT_URL": self.world.s3_proxy.url,
            "AWS_REGION": self.world.s3["region"],
            "HF_HUB_OFFLINE": "1",
            "NO_PROXY": "*",
            "TANDEM_TEST_ADDRESS": LOOPBACK,
            ENV_REQUEST: str(request),
            ENV_TERMINATION: str(self.folder / f"{name}.end"),
            ENV_CONFIGMAPS: str(self.folder / "configmaps"),
            ENV_CACHE: str(self.folder / "cache"),
        }
        return Start("tests.faults.children:worker", (), environment, self.folder, self.folder / f"{name}.log")


def requests_of(world: World) -> list[Object]:
    """What each stage of the run was asked to do, in order."""
    uid = world.run()["metadata"]["uid"]
    found = {}
    for key in world.store.list(f"{world.namespace}/run/{uid}/"):
        if key.endswith("/request.json"):
            request = json.loads(world.object(key))
            found[request["index"], request["stage"]] = request
    order = [(step["index"], stage["name"]) for step in world.status()["steps"] for stage in step["stages"]]
    return [found[place] for place in order]


@pytest.mark.timeout(1800)
def test_a_worker_killed_before_and_after_each_of_its_writes_ends_as_the_undisturbed_one(
    make_world: Callable[..., World], record_cases: Callable[[str, int, int], None]
) -> None:
    world = make_world(lease=LONG_LEASE)
    world.operator.start()
    world.apply_run(strategy="p -> w" if is_full() else "p")
    world.wait_finished(seconds=600)
    world.operator.kill()
    calm, wanted = world.objects(), world.calls()
    uid = world.run()["metadata"]["uid"]
    new = f"{uid[:-12]}{'0' * 12}"
    requests = requests_of(world)
    adapters = {r["endpoint"]["model"] for r in requests if r.get("endpoint")}
    killer = Killer(world.s3_proxy, _write)
    world.s3_proxy.rules.append(killer)
    configmap = world.api.get("ConfigMap", world.namespace, "data")
    assert configmap is not None and world.kubelet.zygote is not None

    with ScriptedServer(answer, models=sorted({"base", *adapters}), latency=0.05) as server:
        workers = Workers(world, world.kubelet.zygote, uid, new, killer, server)
        (workers.folder / "configmaps/data").mkdir(parents=True)
        for name, text in configmap["data"].items():
            (workers.folder / "configmaps/data" / name).write_text(text)
        kills = {}
        for request in requests:
            if request.get("endpoint"):
                request["endpoint"]["url"] = server.url
            before = server.stats()["repeats"]
            hit = kills[f"{request['index']}-{request['stage']}"] = workers.repeat(request)
            assert server.stats()["repeats"] - before <= BATCH * hit, request["stage"]
        asked = {bare(call) for call in server.requests}
        repeats = server.stats()["repeats"]
    total = sum(kills.values())
    print(f"{total} kill points of workers: {kills}; {repeats} of {len(asked)} calls paid twice")
    assert all(hit >= 4 for hit in kills.values()), kills  # request.json and result.json at the least
    found = world.objects(uid=new)
    # The attempt's number, and the server's address, are in the requests.
    differing = {key for key in calm.keys() | found.keys() if calm.get(key) != found.get(key)}
    assert {key for key in differing if not key.endswith("/request.json")} == set()
    assert asked == {bare(json.loads(call)) for call in wanted}
    record_cases("worker killed around a write", total, total)


def bare(call: Object) -> str:
    return json.dumps({key: value for key, value in call.items() if key != "nth"}, sort_keys=True)


# --- the adapter sidecar ----------------------------------------------------------------------------------------------


def _load(call: Call) -> str | None:
    asked = call.path.partition("?")[0]
    return f"{asked} {call.json['lora_name']}" if asked.endswith("_lora_adapter") else None


async def _tell_metrics(call: Call, forward: Forward) -> Answer:
    """The scripted server has none, and an adapter that may have a call is not unloaded."""
    return Answer(body=metrics().encode()) if call.path == "/metrics" else await forward()


@pytest.mark.timeout(900)
def test_a_sidecar_killed_before_and_after_each_load_and_unload_comes_to_what_is_wanted(
    world: World, record_cases: Callable[[str, int, int], None], tmp_path: Path
) -> None:
    wanted = [_adapter(world, tmp_path, name) for name in ("first", "second")]
    desired, folder, port = tmp_path / DESIRED_KEY, tmp_path / "adapters", free_port()
    assert world.kubelet.zygote is not None
    with ScriptedServer(answer) as server, FaultProxy(server.url, is_kubernetes=False) as proxy:
        killer = Killer(proxy, _load)
        proxy.rules += [killer, _tell_metrics]
        arguments = ("--max-rank", "8", "--host", LOOPBACK, "--port", str(port), "--vllm", proxy.url)
        environment = {
            **world.ground.storage.credentials,
            "AWS_ENDPOINT_URL": world.s3_proxy.url,
            "AWS_REGION": world.s3["region"],
            "NO_PROXY": "*",
            ENV_DESIRED_ADAPTERS: str(desired),
            ENV_ADAPTERS_DIR: str(folder),
        }
        log = tmp_path / "sidecar.log"
        start = Start("tandem_trainer.adapters.__main__:main", arguments, environment, tmp_path, log)

        def settled(names: set[str]) -> bool:
            if killer.process is None or killer.process.wait(0) is not None:
                killer.process = world.kubelet.zygote.fork(start)  # type: ignore[union-attr]
            return set(server.lm.adapters) == names and _is_ready(port)

        # Nothing, one adapter, the other one in its place, both, nothing.
        for adapters in ([], wanted[:1], wanted[1:], wanted, []):
            desired.write_text(DesiredAdapters(adapters=tuple(adapters)).text)
            killer.seen.clear()
            names = {adapter.name for adapter in adapters}
            try:
                world.wait(f"{sorted(names)} to be served", lambda names=names: settled(names), SECONDS)
            except AssertionError as error:
                raise AssertionError(f"{error}; {log.read_text()[-2000:]}") from None
        assert killer.process is not None
        killer.process.kill()
    print(f"{killer.kills} kill points of the sidecar")
    # Three loads and three unloads, before and after each.
    assert killer.kills >= 12
    record_cases("sidecar killed around a call", killer.kills, killer.kills)


def _adapter(world: World, tmp_path: Path, name: str) -> DesiredAdapter:
    source = tmp_path / name
    source.mkdir()
    (source / "adapter_config.json").write_text(json.dumps(CONFIG))
    (source / "adapter_model.safetensors").write_text(name)
    stored = world.store.put_folder(f"{world.namespace}/{name}/", source)
    return DesiredAdapter(name=name, uri=stored.uri, sha256=stored.sha256)


def _is_ready(port: int) -> bool:
    try:
        return urllib3.request("GET", f"http://{LOOPBACK}:{port}/readyz", timeout=5, retries=False).status == 200
    except urllib3.exceptions.HTTPError:
        return False
