"""HTTP probes as a kubelet makes them."""

from __future__ import annotations

import asyncio


async def answers(address: str, port: int, path: str, seconds: float) -> bool:
    """Whether GET is answered with a status from 200 to 399 in time."""
    try:
        return await asyncio.wait_for(_status(address, port, path), seconds) in range(200, 400)
    except (OSError, TimeoutError, ValueError):
        return False


async def _status(address: str, port: int, path: str) -> int:
    reader, writer = await asyncio.open_connection(address, port)
    try:
        writer.write(f"GET {path} HTTP/1.1\r\nHost: {address}:{port}\r\nConnection: close\r\n\r\n".encode())
        line = await reader.readline()
        return int(line.split(b" ", 2)[1]) if line.startswith(b"HTTP/") else 0
    finally:
        writer.close()
