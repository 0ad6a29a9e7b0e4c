"""Addresses of pods and Services on the loopback interface, and what forwards a Service's connections to its pods."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import random
import socket
from collections.abc import Callable, Iterable
from typing import Final

_LOCK_PORT: Final = 7999


class Addresses:
    """65,000 addresses 127.x.y.z that nobody else on this machine uses, as long as it lives."""

    def __init__(self) -> None:
        for second in random.sample(range(16, 251), 235):
            lock = socket.socket()
            try:
                lock.bind((f"127.{second}.0.1", _LOCK_PORT))
            except OSError:
                lock.close()
                continue
            self._lock, self._second = lock, second
            break
        else:
            raise RuntimeError("all of 127.16.0.0 to 127.250.255.255 is in use")
        self._numbers = itertools.cycle(range(256, 65_000))

    def take(self) -> str:
        """The next one."""
        number = next(self._numbers)
        return f"127.{self._second}.{number // 256}.{number % 256}"

    def close(self) -> None:
        """Give all of them back."""
        self._lock.close()


class Forwarder:
    """One Service's port. Without a pod that is ready nobody listens there, as with a real Service."""

    def __init__(self, address: str, port: int, pods: Callable[[], Iterable[str]]) -> None:
        """`pods`: the addresses of those that are ready now."""
        self.address = address
        self._port = port
        self._pods = pods
        self._server: asyncio.Server | None = None
        self._turn = 0
        self._connections: set[asyncio.Task[None]] = set()
        self._updating = asyncio.Lock()

    async def update(self) -> None:
        """Listen if there is a pod to forward to, and else stop."""
        async with self._updating:  # several pods may change at once
            is_ready = any(True for _ in self._pods())
            if is_ready and self._server is None:
                self._server = await asyncio.start_server(self._forward, self.address, self._port, backlog=1024)
            elif not is_ready and self._server is not None:
                self._server.close()
                self._server = None

    async def stop(self) -> None:
        """Close it and every connection."""
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            pods = sorted(self._pods())
            if pods:
                self._turn += 1
                there_reader, there_writer = await asyncio.open_connection(pods[self._turn % len(pods)], self._port)
                try:
                    await asyncio.gather(_pipe(reader, there_writer), _pipe(there_reader, writer))
                finally:
                    there_writer.close()
        except OSError:
            pass
        finally:
            writer.close()
            self._connections.discard(task)


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
            await writer.drain()
    # The other direction ends with this one: HTTP has no use for half a connection.
    writer.close()
