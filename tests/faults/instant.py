"""Pods without processes, for many runs at once: servers are ready at once, workers end as a script says."""

from __future__ import annotations

import asyncio
import contextlib
import json
from typing import TYPE_CHECKING, Any

from tandem_api.errors import EXIT_PREEMPTED
from tandem_operator.platforms.kubernetes import names

if TYPE_CHECKING:
    from tests.faults.kubelet import Script
    from tests.faults.pods import PodLife

Object = dict[str, Any]


async def live(life: PodLife, script: Script) -> None:
    """From the pod's start to its deletion, or a worker's end."""
    component = (life.pod["metadata"].get("labels") or {}).get(names.COMPONENT)
    if component == names.SERVING:
        await _serve(life)
    else:
        await _work(life, script)


async def _work(life: PodLife, script: Script) -> None:
    request = await _request(life)
    if life.deletion.is_set():
        return
    started = life.now()
    life.is_ready = True
    ending = script(life.pod, request)
    if ending is None or ending.seconds or not ending.may_end():
        await life.tell("Running", _containers(life, {"running": {"startedAt": started}}))
    if ending is None:
        return
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(life.deletion.wait(), ending.seconds)
    while not ending.may_end() and not life.deletion.is_set():  # noqa: ASYNC110 - the lever is another thread's
        await asyncio.sleep(0.05)
    life.is_ready = False
    code, message = (EXIT_PREEMPTED, "") if life.deletion.is_set() else (ending.code, ending.message)
    ended = {"exitCode": code, "reason": "Completed" if code == 0 else "Error", "message": message,
             "startedAt": started, "finishedAt": life.now()}  # fmt: skip
    phase = "Succeeded" if code == 0 else "Failed"
    await life.tell(phase, _containers(life, {"terminated": ended}))


async def _request(life: PodLife) -> str:
    """What the pod is asked to do, as soon as it is there; empty where it is not asked (a cleanup), or deleted."""
    names_of = [v["configMap"]["name"] for v in life.pod["spec"].get("volumes") or [] if v["name"] == "request"]
    for name in names_of:
        while not life.deletion.is_set():
            mounted = await life.api.get("ConfigMap", life.pod["metadata"]["namespace"], name)
            if mounted is not None:
                return str(mounted["data"]["request.json"])
            missing = {"reason": "CreateContainerConfigError", "message": f'configmap "{name}" not found'}
            await life.tell("Pending", _containers(life, {"waiting": missing}))
            await asyncio.sleep(0.5)
    return ""


async def _serve(life: PodLife) -> None:
    mounted: dict[str, Object] = {}

    async def models() -> Object:
        return {"data": [{"id": name, "root": "", "parent": None} for name in await _served(life, mounted)]}

    async def status() -> Object:
        return {"ready": True, "failed": []}

    servers = [
        await _listen(life.address, port, answer)
        for port, answer in ((names.VLLM_PORT, models), (names.ADAPTERS_PORT, status))
    ]
    try:
        life.is_ready = True
        await life.tell("Running", _containers(life, {"running": {"startedAt": life.now()}}))
        await life.deletion.wait()
    finally:
        for server in servers:
            server.close()


async def _served(life: PodLife, mounted: dict[str, Object]) -> list[str]:
    """What vLLM and its sidecar would serve: the model, and the adapters that are wanted now. `mounted`: by ConfigMap,
    what was mounted last; it stays when the ConfigMap goes."""
    spec, namespace = life.pod["spec"], life.pod["metadata"]["namespace"]
    command = spec["containers"][0]["command"]
    served = [command[command.index("--served-name") + 1]]
    for volume in spec.get("volumes") or []:
        if volume["name"] == "desired":
            name = volume["configMap"]["name"]
            mounted[name] = await life.api.get("ConfigMap", namespace, name) or mounted.get(name, {})
            for text in (mounted[name].get("data") or {}).values():
                served += [adapter["name"] for adapter in json.loads(text)["adapters"]]
    return served


async def _listen(address: str, port: int, answer: Any) -> asyncio.Server:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            body = json.dumps(await answer()).encode()
            head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
            await writer.drain()
        writer.close()

    return await asyncio.start_server(handle, address, port)


def _containers(life: PodLife, state: Object) -> list[Object]:
    return [
        {"name": spec["name"], "image": spec["image"], "imageID": spec["image"], "ready": life.is_ready,
         "started": True, "restartCount": 0, "state": state, "lastState": {}}
        for spec in life.pod["spec"]["containers"]
    ]  # fmt: skip
