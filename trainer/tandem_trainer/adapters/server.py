"""The sidecar's HTTP side: /readyz and /healthz for the kubelet, /status for the operator, /metrics for Prometheus."""

from __future__ import annotations

from typing import Final

from aiohttp import web
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from tandem_trainer.adapters.loop import Sidecar

#: A loop that has not gone round for this long is given up.
STALE_SECONDS: Final = 60.0


def application(sidecar: Sidecar) -> web.Application:
    """The routes. All of them may be asked at any time; none of them changes anything."""

    async def readyz(request: web.Request) -> web.Response:
        found = await sidecar.report()
        return _json(found.model_dump_json(), 200 if found.ready else 503)

    async def status(request: web.Request) -> web.Response:
        return _json((await sidecar.report()).model_dump_json(), 200)

    async def healthz(request: web.Request) -> web.Response:
        seconds = sidecar.seconds_since_tick
        if seconds < STALE_SECONDS:
            return web.Response(text="ok")
        return web.Response(text=f"the loop has not gone round for {seconds:.0f} s", status=503)

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    app = web.Application()
    app.add_routes([web.get("/readyz", readyz), web.get("/status", status), web.get("/healthz", healthz)])
    app.add_routes([web.get("/metrics", metrics)])
    return app


def _json(text: str, status: int) -> web.Response:
    return web.Response(text=text, status=status, content_type="application/json")
