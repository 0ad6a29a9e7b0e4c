"""An HTTP proxy in front of the API server or an object store: it counts, records, and does what its rules say.

A rule is a coroutine function `rule(call, forward)`. It may do something before it forwards, or instead, or after, and
returns the answer that the client gets:

    async def kill_before_the_first_job(call: Call, forward: Forward) -> Answer:
        if call.verb == "create" and call.resource == "jobs":
            operator.kill()
            raise CutError
        return await forward()

Rules are asked in their order; the first one is the outermost. They run in the proxy's thread and must not block it for
long. The answer to a watch has `events` instead of a body: an iterator that a rule may replace by one of its own.
"""

from __future__ import annotations

import asyncio
import json
import re
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any, Final, Self
from urllib.parse import parse_qs

import aiohttp
from aiohttp import web
from yarl import URL

from tandem_operator.platforms.local.machine import LOOPBACK, free_port

Object = dict[str, Any]

_VERBS: Final = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}
_API_PATH: Final = re.compile(
    r"^/(?:api|apis/(?P<group>[^/]+))/(?P<version>[^/]+)(?:/namespaces/(?P<namespace>[^/]+))?"
    r"/(?P<resource>[^/]+)(?:/(?P<name>[^/]+))?(?:/(?P<subresource>[^/]+))?$"
)
#: Of one connection only, or made anew.
_HOP: Final = frozenset(
    {"connection", "keep-alive", "transfer-encoding", "te", "trailer", "upgrade", "content-length", "expect", "date"}
)


class CutError(Exception):
    """Close the connection without an answer."""


@dataclass(frozen=True)
class Call:
    """One request."""

    method: str
    path: str
    """As it was sent, with the query."""
    agent: str
    body: bytes = b""
    verb: str = ""
    """get, list, watch, create, update, patch, delete; of an object store the method in lower case."""
    group: str = ""
    resource: str = ""
    """The plural; of an object store the bucket."""
    namespace: str = ""
    name: str = ""
    """Of a created object, too; of an object store the key."""
    subresource: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    """Of calls to an object store."""

    @property
    def is_write(self) -> bool:
        """Whether it changes something."""
        return self.method in ("POST", "PUT", "PATCH", "DELETE")

    @property
    def target(self) -> str:
        """The resource with its subresource: optimizationruns/status."""
        return f"{self.resource}/{self.subresource}" if self.subresource else self.resource

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    def __str__(self) -> str:
        return f"{self.verb} {self.target} {self.name}".rstrip()


@dataclass(frozen=True)
class Answer:
    """What the server answers, or a rule in its place."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    events: AsyncIterator[Object] | None = None
    """Of a watch."""
    cut_at: int | None = None
    """Send only so many bytes of the body and close the connection."""

    @property
    def json(self) -> Any:
        """The body."""
        return json.loads(self.body)

    def with_json(self, document: Any) -> Answer:
        """The same answer with another body."""
        return replace(self, body=json.dumps(document).encode())


Forward = Callable[[], Awaitable[Answer]]
Rule = Callable[[Call, Forward], Coroutine[Any, Any, Answer]]


def refusal(status: int, reason: str = "", message: str = "refused by a test", **headers: str) -> Answer:
    """An answer in the API server's form; `headers` with underscores, such as Retry_After="1"."""
    document = {
        "apiVersion": "v1",
        "kind": "Status",
        "status": "Failure",
        "code": status,
        "reason": reason,
        "message": message,
    }
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(status, json.dumps(document).encode(), {"Content-Type": "application/json", **named})


class FaultProxy:
    """`with FaultProxy(server_url) as proxy: ... proxy.url`. `rules` may be changed at any time."""

    def __init__(self, upstream: str, rules: list[Rule] | None = None, *, is_kubernetes: bool = True) -> None:
        self.upstream = upstream.rstrip("/")
        self.rules: list[Rule] = rules if rules is not None else []
        self.is_kubernetes = is_kubernetes
        self.port = free_port()
        self.counts: Counter[tuple[str, str, str]] = Counter()
        """Requests by verb, resource with subresource, and user agent."""
        self.calls: list[Call] | None = []
        """Every request so far; None: they are not kept."""
        self._is_started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)
        self._blocking = ThreadPoolExecutor(8, thread_name_prefix="rule")

    @property
    def url(self) -> str:
        """Where clients go."""
        return f"http://{LOOPBACK}:{self.port}"

    @property
    def writes(self) -> list[Call]:
        """What was recorded of changes."""
        return [call for call in self.calls or () if call.is_write]

    def count(self, verb: str = "", target: str = "") -> int:
        """How many requests of this kind there were."""
        return sum(n for (v, t, _), n in self.counts.items() if verb in ("", v) and target in ("", t))

    async def in_thread(self, work: Callable[[], Any]) -> Any:
        """For a rule that has to block: do it in another thread."""
        return await asyncio.get_running_loop().run_in_executor(self._blocking, work)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._is_started.wait(30), "the proxy did not start"
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(30)
        self._blocking.shutdown(wait=False)

    def cut_all(self) -> None:
        """Close every connection that is open, watches too."""
        self._loop.call_soon_threadsafe(self._abort_all)

    def _abort_all(self) -> None:
        for transport in list(self._transports):
            transport.abort()

    def _run(self) -> None:
        asyncio.run(self._serve())

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        self._transports: set[asyncio.Transport] = set()
        # A connection a request: no fault of one reaches the next.
        connector = aiohttp.TCPConnector(ssl=False, limit=0, keepalive_timeout=30)
        self._session = aiohttp.ClientSession(
            connector=connector, auto_decompress=False, timeout=aiohttp.ClientTimeout(total=None, sock_connect=10)
        )
        server = web.Server(self._handle, access_log=None)
        runner = web.ServerRunner(server, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, LOOPBACK, self.port, backlog=1024).start()
        self._is_started.set()
        await self._stop.wait()
        self._abort_all()
        await runner.cleanup()
        await self._session.close()

    async def _handle(self, request: web.BaseRequest) -> web.StreamResponse:
        transport = request.transport
        assert isinstance(transport, asyncio.Transport)
        self._transports.add(transport)
        try:
            return await self._answer(request)
        except (CutError, aiohttp.ClientError, ConnectionError):
            transport.abort()
            raise asyncio.CancelledError from None
        finally:
            self._transports.discard(transport)

    async def _answer(self, request: web.BaseRequest) -> web.StreamResponse:
        body = await request.read()
        call = parse(request.method, request.raw_path, request.headers.get("User-Agent", ""), body,
                     is_kubernetes=self.is_kubernetes)  # fmt: skip
        if not self.is_kubernetes:
            call = replace(call, headers=dict(request.headers))
        self.counts[call.verb, call.target, call.agent] += 1
        if self.calls is not None:
            self.calls.append(call)
        upstream: list[aiohttp.ClientResponse] = []

        async def forward() -> Answer:
            return await self._forward(request, call, upstream)

        handle: Forward = forward
        for rule in reversed(list(self.rules)):
            handle = _bound(rule, call, handle)
        try:
            answer = await handle()
            if answer.events is not None:
                return await self._stream(request, answer)
            return await self._reply(request, answer)
        finally:
            for response in upstream:
                response.close() if call.verb == "watch" else response.release()

    async def _forward(self, request: web.BaseRequest, call: Call, opened: list[aiohttp.ClientResponse]) -> Answer:
        headers = {name: value for name, value in request.headers.items() if name.lower() not in _HOP}
        response = await self._session.request(
            call.method,
            URL(self.upstream + call.path, encoded=True),
            # The Host header is part of what a client of an object store has signed: it is passed on as it is.
            headers=headers,
            data=call.body or None,
            skip_auto_headers=("User-Agent", "Accept", "Accept-Encoding", "Content-Type"),
            allow_redirects=False,
        )
        opened.append(response)
        kept = {name: value for name, value in response.headers.items() if name.lower() not in _HOP}
        if call.verb == "watch" and response.status == 200:
            return Answer(200, headers=kept, events=_events(response))
        body = await response.read()
        if call.method == "HEAD":
            kept["Content-Length"] = response.headers.get("Content-Length", "0")
        return Answer(response.status, body, kept)

    async def _reply(self, request: web.BaseRequest, answer: Answer) -> web.StreamResponse:
        if answer.cut_at is None:
            headers = dict(answer.headers)
            if request.method != "HEAD":
                return web.Response(status=answer.status, body=answer.body, headers=headers)
            return web.Response(status=answer.status, headers=headers)
        headers = {**answer.headers, "Content-Length": str(len(answer.body))}
        response = web.StreamResponse(status=answer.status, headers=headers)
        await response.prepare(request)
        await response.write(answer.body[: answer.cut_at])
        raise CutError

    async def _stream(self, request: web.BaseRequest, answer: Answer) -> web.StreamResponse:
        response = web.StreamResponse(status=answer.status, headers=answer.headers)
        response.enable_chunked_encoding()
        await response.prepare(request)
        assert answer.events is not None
        async for event in answer.events:
            await response.write(json.dumps(event).encode() + b"\n")
        await response.write_eof()
        return response


def _bound(rule: Rule, call: Call, handle: Forward) -> Forward:
    return lambda: rule(call, handle)


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[Object]:
    rest = b""
    async for part in response.content.iter_any():
        rest += part
        *lines, rest = rest.split(b"\n")
        for line in lines:
            if line.strip():
                yield json.loads(line)


def parse(method: str, path: str, agent: str, body: bytes, *, is_kubernetes: bool = True) -> Call:
    """What a request is about."""
    plain, _, query = path.partition("?")
    if not is_kubernetes:
        _, bucket, *key = (*plain.split("/", 2), "") if plain.count("/") < 2 else plain.split("/", 2)
        return Call(method, path, agent, body, verb=method.lower(), resource=bucket, name="".join(key))
    match = _API_PATH.match(plain)
    if match is None:
        return Call(method, path, agent, body, verb=method.lower(), resource=plain)
    found = {name: value or "" for name, value in match.groupdict().items() if name != "version"}
    if method == "GET":
        watches = parse_qs(query).get("watch", ["false"])[0] in ("true", "1", "True")
        verb = "watch" if watches else "get" if found["name"] else "list"
    else:
        verb = _VERBS.get(method, method.lower())
    if verb == "create" and not found["name"] and body[:1] == b"{":
        metadata = json.loads(body).get("metadata") or {}
        found["name"] = metadata.get("name") or metadata.get("generateName") or ""
    return Call(method, path, agent, body, verb=verb, **found)
