"""The HTTP endpoints: /healthz and /readyz on one port, /metrics on another.

They have a thread and an event loop of their own, so that they answer also when the queue's loop does not turn.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import threading
from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from tandem_operator.app.health import Vitals, why_dead, why_unready

_LOG = logging.getLogger(__name__)


class Endpoints:
    """The servers, from `start` to `stop`."""

    def __init__(
        self, health_port: int, metrics_port: int, vitals: Callable[[], Vitals], registry: CollectorRegistry
    ) -> None:
        """`vitals` and the registry's collectors are called in the servers' thread. Port 0: a free one."""
        self._ports = (health_port, metrics_port)
        self._vitals = vitals
        self._registry = registry
        self._said: dict[str, list[str]] = {}
        self._loop = asyncio.new_event_loop()
        self._runners: list[web.AppRunner] = []
        self._thread = threading.Thread(target=self._loop.run_forever, name="endpoints", daemon=True)

    def start(self) -> tuple[int, int]:
        """Listen on all interfaces, IPv4 and IPv6; the ports. Raises OSError when one is taken."""
        self._thread.start()
        return asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(30)

    def stop(self) -> None:
        """Close the servers."""
        with contextlib.suppress(TimeoutError):
            asyncio.run_coroutine_threadsafe(self._close(), self._loop).result(2)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(2)

    async def _start(self) -> tuple[int, int]:
        health = web.Application()
        health.router.add_get("/healthz", self._healthz)
        health.router.add_get("/readyz", self._readyz)
        metrics = web.Application()
        metrics.router.add_get("/metrics", self._metrics)
        return await self._listen(health, self._ports[0]), await self._listen(metrics, self._ports[1])

    async def _listen(self, app: web.Application, port: int) -> int:
        runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await runner.setup()
        self._runners.append(runner)
        # Port 0 would be another port for each family: one address will do then.
        await web.TCPSite(runner, None if port else "127.0.0.1", port).start()
        return int(runner.addresses[0][1])

    async def _close(self) -> None:
        for runner in self._runners:
            await runner.cleanup()

    async def _healthz(self, _: web.Request) -> web.Response:
        return self._answer("alive", 500, why_dead(self._vitals()))

    async def _readyz(self, _: web.Request) -> web.Response:
        return self._answer("ready", 503, why_unready(self._vitals()))

    async def _metrics(self, _: web.Request) -> web.Response:
        # In another thread: that of a thousand runs takes long enough to keep probes waiting.
        body = await asyncio.get_running_loop().run_in_executor(None, generate_latest, self._registry)
        response = web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST}, zlib_executor_size=0)
        response.enable_compression()
        return response

    def _answer(self, what: str, status: int, problems: list[str]) -> web.Response:
        if bool(problems) != bool(self._said.get(what)):
            # The kubelet keeps the status only.
            _LOG.log(logging.WARNING if problems else logging.INFO, "%s: %s", what, "; ".join(problems) or "yes")
        self._said[what] = problems
        return web.Response(text="\n".join(problems or ["ok"]) + "\n", status=status if problems else 200)
