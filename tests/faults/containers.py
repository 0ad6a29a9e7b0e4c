"""One container of a pod on the scripted kubelet: what its status says, and what its probes say of it."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tests.faults.probes import answers
from tests.faults.zygote import Forked

Object = dict[str, Any]


@dataclass
class Container:
    """One container, as it is."""

    spec: Object
    process: Forked | None = None
    started: str = ""
    ended: Object | None = None
    """The `terminated` state of its last end."""
    is_starting: bool = False
    """Its process is being forked, by a thread that cannot be stopped."""
    is_running: bool = False
    is_ready: bool = False
    waits: tuple[str, str] = ("ContainerCreating", "")
    restarts: int = 0
    killed_for: str = ""
    """The reason that its end gets."""

    @property
    def name(self) -> str:
        return str(self.spec["name"])

    @property
    def status(self) -> Object:
        """As in `containerStatuses`."""
        state: Object = {"waiting": {"reason": self.waits[0], "message": self.waits[1]}}
        last: Object = {}
        if self.is_running:
            state = {"running": {"startedAt": self.started}}
            last = {"terminated": self.ended} if self.ended is not None else {}
        elif self.ended is not None and self.waits[0] != "CrashLoopBackOff":
            state = {"terminated": self.ended}
        elif self.ended is not None:
            last = {"terminated": self.ended}
        image = self.spec["image"]
        return {"name": self.name, "image": image, "imageID": image, "ready": self.is_ready, "started": self.is_running,
                "restartCount": self.restarts, "state": state, "lastState": last}  # fmt: skip

    def has_started(self, process: Forked) -> None:
        """It is that process now."""
        self.process, self.started, self.is_running, self.killed_for = process, stamp(), True, ""

    def has_ended(self, code: int | None, message: str) -> None:
        """Its process has ended with that code, minus the signal's number if one ended it."""
        self.is_running = self.is_ready = False
        number = code if code is not None and code >= 0 else 128 - (code or 0)
        reason = self.killed_for or ("Completed" if number == 0 else "Error")
        times = {"startedAt": self.started, "finishedAt": stamp()}
        self.ended = {"exitCode": number, "reason": reason, "message": message, **times}


class Probes:
    """What the probes of a pod's containers have said so far."""

    def __init__(self, address: str) -> None:
        self._address = address
        self._failures: dict[tuple[str, str], int] = {}
        self._next_look: dict[str, float] = {}

    async def is_ready(self, one: Container) -> bool:
        """Whether it is ready now. Asked more often than its spec says."""
        return one.is_running and await self._passes(one, "readinessProbe", was_well=one.is_ready)

    async def is_alive(self, one: Container) -> bool:
        """Whether it may go on. Asked as often as its spec says, however often this is called."""
        probe, now = one.spec.get("livenessProbe"), asyncio.get_running_loop().time()
        if probe is None or not one.is_running or now < self._next_look.get(one.name, 0.0):
            return True
        self._next_look[one.name] = now + probe.get("periodSeconds", 10)
        return await self._passes(one, "livenessProbe", was_well=True)

    def forget(self, one: Container) -> None:
        """It is killed, and starts anew."""
        for key in [key for key in self._failures if key[0] == one.name]:
            del self._failures[key]

    async def _passes(self, one: Container, kind: str, *, was_well: bool) -> bool:
        probe = one.spec.get(kind)
        if probe is None:
            return True
        key, get = (one.name, kind), probe["httpGet"]
        if await answers(self._address, get["port"], get["path"], probe.get("timeoutSeconds", 1)):
            self._failures[key] = 0
            return True
        self._failures[key] = self._failures.get(key, 0) + 1
        return was_well and self._failures[key] < probe.get("failureThreshold", 3)


def stamp() -> str:
    """Now, in Kubernetes' form."""
    return f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
