"""The server: who may read, which address shows what. It has no way to change anything."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from importlib import resources
from urllib.parse import urlencode

from aiohttp import web

from tandem_api.canonical import sha256_hex
from tandem_api.errors import TandemError
from tandem_api.pages import style
from tandem_operator.ui import access, pages
from tandem_operator.ui.access import Token
from tandem_operator.ui.model import Live

_LOG = logging.getLogger(__name__)
LOOPBACK = "127.0.0.1"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Server:
    """Shows one run, from `start` to `stop`."""

    def __init__(self, live: Live, token: Token) -> None:
        self._live = live
        self._token = token
        self._runner: web.AppRunner | None = None
        self._port = 0

    async def start(self, port: int) -> str:
        """Listen on the loopback interface; the address with the token. Port 0: a free one. Raises OSError."""
        app = web.Application(middlewares=[self._guarded])
        for path, page in pages.PAGES.items():
            app.router.add_get(path, self._page(page))
        app.router.add_get("/report", self._report)
        app.router.add_get("/style.css", self._style)
        app.router.add_get("/live.js", self._script)
        self._runner = web.AppRunner(app, access_log=None, handle_signals=False, shutdown_timeout=1.0)
        await self._runner.setup()
        await web.TCPSite(self._runner, LOOPBACK, port).start()
        self._port = int(self._runner.addresses[0][1])
        return f"http://{LOOPBACK}:{self._port}/?token={self._token.value}"

    async def stop(self) -> None:
        """Close it."""
        if self._runner is not None:
            await self._runner.cleanup()

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            response = await self._judged(request, handler)
        except web.HTTPException as error:
            response = web.Response(status=error.status, text=f"{error.status}: {error.reason}\n")
        except TandemError as error:
            response = web.Response(status=502, text=f"{error}\n")
        except Exception:
            _LOG.exception("a page could not be made: %s", request.rel_url.path)
            response = web.Response(status=500, text="this page could not be made; the terminal says why\n")
        for name, value in access.HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    async def _judged(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        if not access.is_ourselves(request.headers.get("Host")):
            return _refused("this server answers to 127.0.0.1 and localhost only")
        if self._token.is_it(request.query.get("token")):
            # Into a cookie, and out of the address: it would stay in the history.
            query = urlencode([(name, value) for name, value in request.query.items() if name != "token"])
            # One slash: with two it would be the address of another site.
            where = f"/{request.rel_url.raw_path.lstrip('/')}{'?' if query else ''}{query}"
            answer = web.Response(status=303, headers={"Location": where})
            answer.set_cookie(
                access.cookie_name(self._port), self._token.value, httponly=True, samesite="Lax", path="/"
            )
            return answer
        if not self._token.is_it(request.cookies.get(access.cookie_name(self._port))):
            return _refused("open the whole address that `tandem ui` has printed, with its token")
        if request.method not in ("GET", "HEAD"):
            return web.Response(status=405, headers={"Allow": "GET, HEAD"}, text="this page only shows\n")
        return await handler(request)

    def _page(self, page: pages.Page) -> Handler:
        async def show(request: web.Request) -> web.StreamResponse:
            asked = pages.Asked(dict(request.match_info), dict(request.query))
            html = await asyncio.to_thread(self._render, page, asked)
            if html is None:
                return web.Response(status=404, text="there is no such thing in this run\n")
            etag = sha256_hex(html.encode())[:32]
            if request.headers.get("If-None-Match") == f'"{etag}"':
                return web.Response(status=304, headers={"ETag": f'"{etag}"'})
            return web.Response(text=html, content_type="text/html", headers={"ETag": f'"{etag}"'})

        return show

    def _render(self, page: pages.Page, asked: pages.Asked) -> str | None:
        with self._live.lock:
            return page(self._live.source, self._live.seen(), asked)

    async def _report(self, _: web.Request) -> web.StreamResponse:
        html = await asyncio.to_thread(self._find_report)
        if html is None:
            return web.Response(status=404, text="there is no report yet: it is written at the end of the run\n")
        headers = {"Content-Security-Policy": access.REPORT_POLICY}
        return web.Response(body=html, content_type="text/html", charset="utf-8", headers=headers)

    def _find_report(self) -> bytes | None:
        with self._live.lock:
            mirror = self._live.seen().mirror
            return self._live.source.report() or mirror.get(f"{mirror.layout.result}report.html")

    async def _style(self, _: web.Request) -> web.StreamResponse:
        own = resources.files(__package__).joinpath("ui.css").read_text(encoding="utf-8")
        return web.Response(text=style() + own, content_type="text/css")

    async def _script(self, _: web.Request) -> web.StreamResponse:
        text = resources.files(__package__).joinpath("live.js").read_text(encoding="utf-8")
        return web.Response(text=text, content_type="text/javascript")


def _refused(why: str) -> web.Response:
    return web.Response(status=403, text=f"not allowed: {why}\n")
