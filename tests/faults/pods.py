"""The life of one pod on the scripted kubelet: placed, started, probed, ended; its status told to the API server."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import signal
import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tests.faults import instant
from tests.faults.api import ApiError
from tests.faults.children import ENV_ADDRESS, ENV_LOG
from tests.faults.cluster_api import ClusterApi
from tests.faults.containers import Container, Probes, stamp
from tests.faults.volumes import MissingError, PodFiles, Sources, read_sources
from tests.faults.zygote import ROOT, Forked, Start

from tandem_operator.platforms.kubernetes import names

if TYPE_CHECKING:
    from tests.faults.kubelet import Kubelet

Object = dict[str, Any]

#: Before the first, second, ... new start of a container; from the second on it says CrashLoopBackOff.
_BACK_OFF: Final = (0.0, 1.0, 2.0, 4.0)
_MESSAGE_BYTES: Final = 4096
_RENEW_SECONDS: Final = 10.0


class PodLife:
    """One pod, from its first event to its last. Everything runs in the kubelet's loop."""

    def __init__(self, kubelet: Kubelet, pod: Object) -> None:
        self.pod = pod
        self.address = ""
        self.is_ready = False
        self._kubelet = kubelet
        self._containers = [Container(spec) for spec in pod["spec"]["containers"]]
        self._is_deleted = asyncio.Event()
        self._is_wanted = True
        """Whether containers that end may be started again."""
        self._verdict: tuple[str, str] | None = None
        self._since: dict[str, tuple[str, str]] = {}
        self._telling = asyncio.Lock()
        self._jobs: set[asyncio.Task[None]] = set()
        self._note_deletion()
        self._begin(self._live())

    # --- what others tell it -----------------------------------------------------------------------------------------

    async def changed(self, pod: Object) -> None:
        """The API server has another version of it."""
        self.pod = pod
        self._note_deletion()
        if any(one.process for one in self._containers) and not self._is_deleted.is_set():
            self._begin(self._renew_volumes())  # a kubelet does so when a pod changes

    async def gone(self) -> None:
        """The API server knows it no longer."""
        self._is_wanted = False
        while any(one.is_starting for one in self._containers):  # noqa: ASYNC110 - a thread is at it
            await asyncio.sleep(0.01)
        await self.vanish()
        for job in self._jobs:
            job.cancel()
        await asyncio.gather(*self._jobs, return_exceptions=True)
        await self._kubelet.readiness_changed()
        shutil.rmtree(self._folder, ignore_errors=True)

    @property
    def api(self) -> ClusterApi:
        return self._kubelet.api

    @property
    def deletion(self) -> asyncio.Event:
        """Set when it has been deleted."""
        return self._is_deleted

    @staticmethod
    def now() -> str:
        return stamp()

    def log(self, container: str) -> Path:
        """What a container says; it outlives the pod."""
        metadata = self.pod["metadata"]
        return self._kubelet.folder / metadata["namespace"] / f"{metadata['name']}-{container}.log"

    def process(self, container: str) -> Forked | None:
        """The container's process, the last one that there was."""
        return next((one.process for one in self._containers if one.name == container), None)

    async def kill(self, container: str, reason: str = "") -> None:
        """SIGKILL; the end gets that reason."""
        for one in self._containers:
            if one.name == container and one.process is not None:
                one.killed_for = reason
                one.process.send(signal.SIGKILL)

    async def evict(self, reason: str, message: str) -> None:
        """End it, and say why."""
        self._verdict = (reason, message)
        await self._end_containers()
        await self._tell()

    async def vanish(self) -> None:
        """Its processes end, and nobody hears of it."""
        self._is_wanted = False
        self.is_ready = False
        for one in self._containers:
            if one.process is not None:
                one.process.send(signal.SIGKILL)

    async def look_again(self) -> None:
        """Its node answers again."""
        self._is_wanted = not self._is_deleted.is_set()
        await self._tell()
        if self._phase() == "Running" and self._is_wanted and not any(one.is_running for one in self._containers):
            self._begin(self._work())

    def _note_deletion(self) -> None:
        if self.pod["metadata"].get("deletionTimestamp"):
            self._is_deleted.set()

    # --- its life ----------------------------------------------------------------------------------------------------

    async def _live(self) -> None:
        placing = asyncio.create_task(self._place())
        await self._or_deletion(placing)
        if not self._is_deleted.is_set() and self._phase() == "Pending":
            self.address = self._kubelet.take_address()
            script = self._kubelet.scripts.get(self.pod["metadata"]["namespace"])
            if script is not None:
                await instant.live(self, script)
            else:
                await self._or_deletion(asyncio.create_task(self._work()))
        await self._is_deleted.wait()
        await self._end()

    async def _place(self) -> None:
        """Find a node, as the scheduler does."""
        metadata = self.pod["metadata"]
        while not self.pod["spec"].get("nodeName"):
            node = self._kubelet.free_node()
            if node is None or self._kubelet.is_held(self.pod):
                await asyncio.sleep(0.05)
                continue
            body = {
                "apiVersion": "v1",
                "kind": "Binding",
                "metadata": {"name": metadata["name"], "uid": metadata["uid"]},
                "target": {"apiVersion": "v1", "kind": "Node", "name": node},
            }
            try:
                await self._kubelet.api.create("Pod", metadata["namespace"], body, metadata["name"], "binding")
            except ApiError as error:
                if error.status != 404:  # deleted meanwhile
                    raise
                return
            self.pod = {**self.pod, "spec": {**self.pod["spec"], "nodeName": node}}

    async def _work(self) -> None:
        await self._start_when_all_is_there()
        self._begin(self._probe())
        self._begin(self._renew_regularly())
        await asyncio.gather(*(self._run(one) for one in self._containers))
        await self._tell()

    async def _start_when_all_is_there(self) -> None:
        """Make the volumes; until that works, say what is missing."""
        while True:
            try:
                sources = await self._sources()
                self.files.write_volumes(sources)
                for one in self._containers:
                    self.files.environment(one.spec, sources)
                    self.files.write_root(one.spec)
            except MissingError as error:
                for one in self._containers:
                    one.waits = ("CreateContainerConfigError", str(error))
                await self._tell()
                await asyncio.sleep(0.5)
            else:
                return

    async def _run(self, one: Container) -> None:
        """Start a container, and start it again if its pod is one that lives on."""
        restarts = self.pod["spec"].get("restartPolicy", "Always") == "Always"
        while self._is_wanted:
            self.files.termination(one.spec).unlink(missing_ok=True)
            start = await self._start_of(one)
            one.is_starting = True
            try:
                process = await self._in_thread(self._kubelet.fork, start)
                one.has_started(process)
            finally:
                one.is_starting = False
            if not self._is_wanted:  # deleted while it was started
                process.send(signal.SIGKILL)
            await self._tell()
            code = await self._in_thread(process.wait)
            one.has_ended(code, self._last_words(one, code))
            if not (restarts and self._is_wanted):
                break
            one.restarts += 1
            pause = _BACK_OFF[min(one.restarts, len(_BACK_OFF)) - 1]
            one.waits = ("CrashLoopBackOff", "back-off restarting failed container") if pause else ("Restarting", "")
            await self._tell()
            await asyncio.sleep(pause)

    async def _start_of(self, one: Container) -> Start:
        metadata, files = self.pod["metadata"], self.files
        command = [*one.spec.get("command", []), *one.spec.get("args", [])][3:]  # after python3 -m MODULE
        run = (metadata.get("labels") or {}).get(names.RUN, "")
        environment = files.environment(one.spec, await self._sources()) | {
            "PYTHONPATH": str(ROOT),
            "HF_HUB_OFFLINE": "1",
            "NO_PROXY": "*",
            ENV_ADDRESS: self.address,
            ENV_LOG: str(self._kubelet.lm_log(metadata["namespace"], run)),
            **self._kubelet.environment,
        }
        arguments = tuple(files.local(one.spec, argument) for argument in command)
        target = f"tests.faults.children:{one.name}"
        return Start(target, arguments, environment, files.root(one.spec), self.log(one.name))

    def _last_words(self, one: Container, code: int | None) -> str:
        message = ""
        with contextlib.suppress(OSError):
            message = self.files.termination(one.spec).read_text(errors="replace")[:_MESSAGE_BYTES]
        if not message and code and one.spec.get("terminationMessagePolicy") == "FallbackToLogsOnError":
            with contextlib.suppress(OSError):
                message = self.log(one.name).read_text(errors="replace")[-2048:]
        return message

    async def _end(self) -> None:
        """It was deleted: ask, wait, kill, and let the API server forget it."""
        while self._kubelet.is_lost(self.pod):  # noqa: ASYNC110 - the lever is another thread's
            await asyncio.sleep(0.1)
        await self._end_containers()
        if any(one.process for one in self._containers):  # an instant one has told its end
            await self._tell()
        metadata = self.pod["metadata"]
        await self._kubelet.api.delete("Pod", metadata["namespace"], metadata["name"], uid=metadata["uid"], grace=0)

    async def _end_containers(self) -> None:
        self._is_wanted = self.is_ready = False
        grace = self.pod["metadata"].get("deletionGracePeriodSeconds")
        grace = self.pod["spec"].get("terminationGracePeriodSeconds", 30) if grace is None else grace
        await self._kubelet.readiness_changed()
        while any(one.is_starting for one in self._containers):  # noqa: ASYNC110 - a thread is at it
            await asyncio.sleep(0.01)
        running = [one for one in self._containers if one.process is not None and one.process.exit_code is None]
        for one in running:
            assert one.process is not None
            one.process.send(signal.SIGTERM)
        if running:
            await asyncio.gather(*(self._ended(one, float(grace)) for one in running))

    async def _ended(self, one: Container, grace: float) -> None:
        assert one.process is not None
        code = await self._in_thread(one.process.wait, grace)
        if code is None:
            await self._in_thread(one.process.kill)
        while one.is_running:  # noqa: ASYNC110 - whoever waits for it writes down its end
            await asyncio.sleep(0.01)

    # --- probes and volumes ------------------------------------------------------------------------------------------

    async def _probe(self) -> None:
        probes = Probes(self.address)
        while self._is_wanted:
            before = [one.is_ready for one in self._containers]
            for one in self._containers:
                one.is_ready = await probes.is_ready(one)
                if not await probes.is_alive(one) and one.process is not None:
                    probes.forget(one)
                    one.process.send(signal.SIGKILL)
            if [one.is_ready for one in self._containers] != before and self._is_wanted:
                await self._tell()
            await asyncio.sleep(self._kubelet.probe_seconds)

    async def _renew_regularly(self) -> None:
        while self._is_wanted:
            await asyncio.sleep(_RENEW_SECONDS)
            await self._renew_volumes()

    async def _renew_volumes(self) -> None:
        with contextlib.suppress(MissingError):  # what is mounted stays
            self.files.write_volumes(await self._sources())

    async def _sources(self) -> Sources:
        return await read_sources(self.pod, self._kubelet.api, self._kubelet.service_address)

    @property
    def files(self) -> PodFiles:
        namespace = self.pod["metadata"]["namespace"]
        return PodFiles(self.pod, self._folder, self._kubelet.folder / namespace / "claims")

    @property
    def _folder(self) -> Path:
        return self._kubelet.folder / "pods" / str(self.pod["metadata"]["uid"])

    # --- its status --------------------------------------------------------------------------------------------------

    def _phase(self) -> str:
        if self._verdict is not None:
            return "Failed"
        known = (self.pod.get("status") or {}).get("phase", "Pending")
        if known in ("Succeeded", "Failed"):
            return str(known)
        ended = [one.ended for one in self._containers if not one.is_running and one.ended is not None]
        is_over = self.pod["spec"].get("restartPolicy") == "Never" or not self._is_wanted
        if len(ended) == len(self._containers) and is_over:
            return "Succeeded" if all(end["exitCode"] == 0 for end in ended) else "Failed"
        return "Running" if any(one.is_running or one.ended for one in self._containers) else "Pending"

    async def _tell(self) -> None:
        """Write the status, unless the node is lost."""
        async with self._telling:
            if self._kubelet.is_lost(self.pod):
                return
            phase = self._phase()
            self.is_ready = phase == "Running" and self._is_wanted and all(one.is_ready for one in self._containers)
            await self.tell(phase, [one.status for one in self._containers])
        await self._kubelet.readiness_changed()

    async def tell(self, phase: str, containers: list[Object]) -> None:
        """Write this status."""
        metadata = self.pod["metadata"]
        ready = "True" if self.is_ready else "False"
        conditions = {"Initialized": "True", "Ready": ready, "ContainersReady": ready, "PodScheduled": "True"}
        for kind, value in conditions.items():
            if self._since.get(kind, ("", ""))[0] != value:
                self._since[kind] = (value, stamp())
        self._since.setdefault("start", ("", stamp()))
        status: Object = {
            "phase": phase,
            "podIP": self.address or None,
            "hostIP": "127.0.0.1",
            "startTime": self._since["start"][1],
            "conditions": [
                {"type": kind, "status": value, "lastTransitionTime": self._since[kind][1]}
                for kind, value in conditions.items()
            ],
            "containerStatuses": containers,
        }
        if self._verdict is not None:
            status |= {"reason": self._verdict[0], "message": self._verdict[1]}
        stored = await self._kubelet.api.patch(
            "Pod", metadata["namespace"], metadata["name"], {"metadata": {"uid": metadata["uid"]}, "status": status},
            subresource="status",
        )  # fmt: skip
        if stored is not None:
            self.pod = stored
            self._note_deletion()

    # --- tasks -------------------------------------------------------------------------------------------------------

    def _begin(self, work: Any) -> None:
        task = asyncio.create_task(self._guarded(work))
        self._jobs.add(task)
        task.add_done_callback(self._jobs.discard)

    async def _guarded(self, work: Any) -> None:
        try:
            await work
        except asyncio.CancelledError:
            raise
        except Exception:
            # A fault of the harness, not of what it tests: it must be seen.
            print(f"the kubelet failed with {self.pod['metadata']['name']}:", file=sys.stderr)
            traceback.print_exc()

    async def _or_deletion(self, work: asyncio.Task[None]) -> None:
        """Wait for the end of `work`; a deletion ends it, but for what it has started."""
        deletion = asyncio.create_task(self._is_deleted.wait())
        await asyncio.wait({work, deletion}, return_when=asyncio.FIRST_COMPLETED)
        deletion.cancel()
        if work.done():
            work.result()
        elif not any(one.process or one.is_starting for one in self._containers):
            work.cancel()
        else:
            self._begin(work)

    async def _in_thread(self, function: Any, *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._kubelet.threads, function, *arguments)
