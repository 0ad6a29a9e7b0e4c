"""A scripted kubelet, scheduler and kube-proxy: pods of the real API server as processes of this machine.

Containers are known by their names (`worker`, `vllm`, `adapters`, `cleanup`) and forked from a zygote. Each pod has a
loopback address of its own, each Service one that forwards to the pods that are ready. There are two nodes; pods go to
the first one that is there.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeVar

from tests.faults.cluster_api import ClusterApi
from tests.faults.pods import PodLife, stamp
from tests.faults.services import Addresses, Forwarder
from tests.faults.zygote import Forked, Start, Zygote

from tandem_operator.platforms.kubernetes import names

Object = dict[str, Any]

NODES: Final = ("sim", "spare")
_HEARTBEAT_SECONDS: Final = 2.0
_T = TypeVar("_T")


@dataclass(frozen=True)
class Ending:
    """How a worker of the instant mode ends."""

    code: int = 0
    message: str = ""
    seconds: float = 0.0
    """After its start."""
    may_end: Callable[[], bool] = lambda: True
    """And not before this is so."""


#: The instant mode: how the `worker` or `cleanup` container of a pod ends, given its request; None: it goes on.
Script = Callable[[Object, str], Ending | None]


class Kubelet:
    """`with Kubelet(plane.url, plane.token, zygote, folder) as kubelet: ...`."""

    def __init__(self, url: str, token: str, zygote: Zygote | None, folder: Path) -> None:
        self.zygote = zygote
        self.folder = folder
        self.scripts: dict[str, Script] = {}
        """By namespace: its pods are instant ones. No process is started for them at all: servers are ready at once,
        and workers end as the script says."""
        self.probe_seconds = 0.25
        """Between two looks at a container's readiness; a pod spec's own periods are longer."""
        self.environment: dict[str, str] = {}
        """More of it for every container that starts from now on."""
        self._held: list[Callable[[Object], bool]] = []
        self._lost: set[str] = set()
        self._url, self._token = url, token
        self._lives: dict[str, PodLife] = {}
        self._forwarders: dict[tuple[str, str], Forwarder] = {}
        self._service_addresses: dict[tuple[str, str], str] = {}
        self._is_started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._main()), name="kubelet", daemon=True)
        # One thread waits for each container.
        self.threads = ThreadPoolExecutor(512, thread_name_prefix="container")

    # --- levers for tests: from any thread ---------------------------------------------------------------------------

    def pods(self, namespace: str = "", component: str = "", run: str = "") -> list[Object]:
        """The pods as the kubelet knows them, the oldest first."""
        found = [life.pod for life in list(self._lives.values())]
        return [
            pod
            for pod in found
            if namespace in ("", pod["metadata"]["namespace"])
            and component in ("", (pod["metadata"].get("labels") or {}).get(names.COMPONENT))
            and run in ("", (pod["metadata"].get("labels") or {}).get(names.RUN))
        ]

    def pid(self, pod: Object, container: str) -> int | None:
        """The process of a container, if it runs."""
        life = self._lives.get(pod["metadata"]["uid"])
        process = life.process(container) if life is not None else None
        return process.pid if process is not None and process.exit_code is None else None

    def kill(self, pod: Object, container: str) -> None:
        """kill -9 of a container's process, as it happens."""
        self._do(self._life(pod).kill(container))

    def oom_kill(self, pod: Object, container: str = "worker") -> None:
        """The kernel's out-of-memory killer: exit code 137, reason OOMKilled."""
        self._do(self._life(pod).kill(container, reason="OOMKilled"))

    def evict(self, pod: Object, message: str = "The node was low on resource: memory.") -> None:
        """The node has too little of something: the pod ends as Failed, Evicted."""
        self._do(self._life(pod).evict("Evicted", message))

    def preempt(self, pod: Object) -> None:
        """The scheduler needs the place: the pod is deleted, its containers get SIGTERM and their grace."""
        metadata = pod["metadata"]
        self._do(self._api.delete("Pod", metadata["namespace"], metadata["name"], uid=metadata["uid"]))

    def shut_down(self, pod: Object) -> None:
        """The node goes away in good order: SIGTERM and the grace, then the pod is Failed with reason Terminated."""
        self._do(self._life(pod).evict("Terminated", "Pod was terminated in response to imminent node shutdown."))

    def node_lost(self, node: str = NODES[0], *, dies: bool = True) -> None:
        """A node is not heard of any more; its containers end (`dies`) or go on."""
        self._lost.add(node)
        if dies:
            for life in self._on(node):
                self._do(life.vanish())

    def node_back(self, node: str = NODES[0]) -> None:
        """It answers again, and sees what has become of its pods."""
        self._lost.discard(node)
        for life in self._on(node):
            self._do(life.look_again())

    def hold(self, holds: Callable[[Object], bool]) -> Callable[[], None]:
        """Leave the pods for which `holds` Pending; returns what lets go of them."""
        self._held.append(holds)
        return lambda: self._held.remove(holds)

    def hold_component(self, component: str) -> Callable[[], None]:
        """The same for all pods of a kind: worker, serving, cleanup."""
        return self.hold(lambda pod: (pod["metadata"].get("labels") or {}).get(names.COMPONENT) == component)

    def _on(self, node: str) -> list[PodLife]:
        return [life for life in list(self._lives.values()) if life.pod["spec"].get("nodeName") == node]

    def _life(self, pod: Object) -> PodLife:
        return self._lives[pod["metadata"]["uid"]]

    def _do(self, work: Coroutine[Any, Any, _T]) -> _T:
        done: Future[_T] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return done.result(60)

    # --- what pods ask of their kubelet: in its loop -----------------------------------------------------------------

    @property
    def api(self) -> ClusterApi:
        return self._api

    def is_held(self, pod: Object) -> bool:
        return any(holds(pod) for holds in list(self._held))

    def is_lost(self, pod: Object) -> bool:
        return pod["spec"].get("nodeName") in self._lost

    def fork(self, start: Start) -> Forked:
        assert self.zygote is not None, "pods that are not instant need a zygote"
        return self.zygote.fork(start)

    def lm_log(self, namespace: str, run: str) -> Path:
        """Where the calls that a run's servers got are written down, one JSON a line."""
        return self.folder / namespace / f"{run}-calls.jsonl"

    def free_node(self) -> str | None:
        return next((node for node in NODES if node not in self._lost), None)

    def take_address(self) -> str:
        return self._addresses.take()

    def service_address(self, namespace: str, service: str) -> str:
        """The address that stands for a Service; from now on its connections are forwarded."""
        key = (namespace, service)
        if key not in self._forwarders:
            address = self._service_addresses.setdefault(key, self._addresses.take())
            self._forwarders[key] = Forwarder(address, names.VLLM_PORT, lambda: self._ready(*key))
        return self._service_addresses[key]

    async def readiness_changed(self) -> None:
        for forwarder in list(self._forwarders.values()):
            await forwarder.update()

    def _ready(self, namespace: str, service: str) -> list[str]:
        """Pods behind a Service; both the one address and the headless one are for a run's servers."""
        run = service.rpartition("-")[0]
        return [
            life.address
            for life in list(self._lives.values())
            if life.is_ready
            and life.pod["metadata"]["namespace"] == namespace
            and life.pod["metadata"]["labels"].get(names.RUN) == run
            and life.pod["metadata"]["labels"].get(names.COMPONENT) == names.SERVING
        ]

    # --- its life ----------------------------------------------------------------------------------------------------

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._is_started.wait(60), "the kubelet did not start"
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(60)
        self.threads.shutdown(wait=False)

    async def _main(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._addresses = Addresses()
        async with ClusterApi(self._url, self._token) as self._api:
            for node in NODES:
                await self._register(node)
            jobs = [asyncio.create_task(self._beat()), asyncio.create_task(self._watch())]
            self._is_started.set()
            await self._stop.wait()
            for job in jobs:
                job.cancel()
            await asyncio.gather(*jobs, return_exceptions=True)
            await asyncio.gather(*(life.vanish() for life in self._lives.values()), return_exceptions=True)
            for forwarder in self._forwarders.values():
                await forwarder.stop()
        self._addresses.close()

    async def _register(self, node: str) -> None:
        body = {
            "apiVersion": "v1",
            "kind": "Node",
            "metadata": {"name": node, "labels": {"kubernetes.io/hostname": node}},
        }
        await self._api.create("Node", "", body)
        await self._report(node)

    async def _report(self, node: str) -> None:
        now = stamp()
        ready = {"type": "Ready", "status": "True", "reason": "KubeletReady", "lastHeartbeatTime": now,
                 "lastTransitionTime": now}  # fmt: skip
        capacity = {"cpu": "1000", "memory": "1000Gi", "pods": "10000", "nvidia.com/gpu": "1000"}
        status = {"conditions": [ready], "capacity": capacity, "allocatable": capacity}
        await self._api.patch("Node", "", node, {"status": status}, subresource="status")

    async def _beat(self) -> None:
        while True:
            for node in NODES:
                if node not in self._lost:
                    with contextlib.suppress(Exception):  # the next one tells as much
                        await self._report(node)
            await asyncio.sleep(_HEARTBEAT_SECONDS)

    async def _watch(self) -> None:
        async for kind, pod in self._api.watch("Pod"):
            uid = pod["metadata"]["uid"]
            life = self._lives.get(uid)
            if kind == "DELETED":
                if life is not None:
                    del self._lives[uid]
                    await life.gone()
            elif life is None:
                self._lives[uid] = PodLife(self, pod)
            else:
                await life.changed(pod)
