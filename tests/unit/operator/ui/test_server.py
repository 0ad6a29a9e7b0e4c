"""Who may read, and that there is nothing else to do: real requests to a real server."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import aiohttp
import pytest
from tests.made_up_run import made_up

from tandem_api.errors import TandemError
from tandem_operator.ui.access import Token, cookie_name, is_ourselves
from tandem_operator.ui.model import Live
from tandem_operator.ui.server import Server
from tandem_operator.ui.sources import Source

PATHS = ("/", "/steps/3/search", "/steps/3/trials/0", "/steps/2/training", "/steps/2/traces/examples", "/logs",
         "/report", "/style.css", "/live.js", "/nothing")  # fmt: skip


def serve(test: Callable[[aiohttp.ClientSession, str, str], Awaitable[None]], source: Source | None = None) -> None:
    """Run `test` with a client without cookies, the server's root and its token."""

    async def main() -> None:
        server = Server(Live(source or made_up()), Token.new())
        address = await server.start(0)
        root, _, token = address.partition("/?token=")
        try:
            async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as client:
                await test(client, root, token)
        finally:
            await server.stop()

    asyncio.run(main())


def cookie(root: str, token: str) -> dict[str, str]:
    return {"Cookie": f"{cookie_name(int(root.rpartition(':')[2]))}={token}"}


@pytest.mark.parametrize("path", PATHS)
def test_nothing_is_told_without_the_token(path: str) -> None:
    async def test(client: aiohttp.ClientSession, root: str, token: str) -> None:
        other = Token.new().value
        for headers in ({}, cookie(root, ""), cookie(root, token[:-1]), cookie(root, other), cookie(root, f"{token}é")):
            async with client.get(root + path, headers=headers, allow_redirects=False) as answer:
                assert answer.status == 403
                assert "reviews" not in await answer.text()
        for query in ("", token[:-1], other, "%ff"):
            async with client.get(f"{root}{path}?token={query}", allow_redirects=False) as answer:
                assert answer.status == 403

    serve(test)


def test_the_token_becomes_a_cookie_and_leaves_the_address() -> None:
    async def test(client: aiohttp.ClientSession, root: str, token: str) -> None:
        path = f"/steps/3/search?q=a%20b&token={token}"
        async with client.get(root + path, allow_redirects=False) as answer:
            assert (answer.status, answer.headers["Location"]) == (303, "/steps/3/search?q=a+b")
            given = answer.headers["Set-Cookie"]
            assert "HttpOnly" in given and "SameSite=Lax" in given
        async with client.get(root, headers={"Cookie": given.partition(";")[0]}) as answer:
            assert answer.status == 200 and "reviews" in await answer.text()
            assert token not in await answer.text()

    serve(test)


def test_a_path_of_another_site_is_no_way_to_be_sent_there() -> None:
    async def test(client: aiohttp.ClientSession, root: str, token: str) -> None:
        async with client.get(f"{root}//evil.example/?token={token}", allow_redirects=False) as answer:
            assert answer.headers["Location"] == "/evil.example/"

    serve(test)


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost.", "", "[::2]"]
)
def test_another_name_for_this_machine_is_refused(host: str) -> None:
    async def test(client: aiohttp.ClientSession, root: str, token: str) -> None:
        for path in ("/", f"/?token={token}"):
            headers = {"Host": host, **cookie(root, token)}
            async with client.get(root + path, headers=headers, allow_redirects=False) as answer:
                assert answer.status in (400, 403) and "Set-Cookie" not in answer.headers

    serve(test)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost:8888", "LOCALHOST:1", "[::1]:9000", "[::1]"])
def test_a_tunnels_other_port_is_welcome(host: str) -> None:
    assert is_ourselves(host)


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_it_only_shows(method: str) -> None:
    async def test(client: aiohttp.ClientSession, root: str, token: str) -> None:
        async with client.request(method, root, headers=cookie(root, token)) as answer:
            assert answer.status == 405

    serve(test)


def test_every_answer_forbids_all_but_our_own_style_and_script() -> None:
    async def test(client: aiohttp.ClientSession, root: str, token: str) -> None:
        for path in PATHS:
            for headers in (cookie(root, token), {}):
                async with client.get(root + path, headers=headers) as answer:
                    policy = answer.headers["Content-Security-Policy"]
                    assert policy.startswith("default-src 'none'") and "script-src 'unsafe" not in policy
                    assert answer.headers["X-Content-Type-Options"] == "nosniff"
                    assert answer.headers["Cache-Control"] == "no-store"
                    assert answer.headers["Referrer-Policy"] == "no-referrer"

    serve(test)


@pytest.mark.parametrize(
    "path",
    [
        "/logs/..%2f..%2fetc%2fpasswd", "/logs/%2e%2e%2fstatus.yaml", "/logs/nothing", "/steps/9/search",
        "/steps/x/search", "/steps/2/search", "/steps/3/trials/99", "/steps/3/trials/..",
        "/steps/2/..%2f..%2f/examples",
        "/steps/2/traces/examples/0000000000000000", "/steps/%00/search", "/..%2f..%2fetc%2fpasswd",
    ],
)  # fmt: skip
def test_what_is_not_there_is_not_found(path: str) -> None:
    async def test(client: aiohttp.ClientSession, root: str, token: str) -> None:
        from yarl import URL

        async with client.get(URL(root + path, encoded=True), headers=cookie(root, token)) as answer:
            assert answer.status == 404

    serve(test)


def test_a_page_that_has_not_changed_is_not_sent_again() -> None:
    run = made_up(made_up().run.status.model_copy(update={"steps": (), "started": None}))

    async def test(client: aiohttp.ClientSession, root: str, token: str) -> None:
        ours = cookie(root, token)
        async with client.get(root, headers=ours) as answer:
            etag = answer.headers["ETag"]
        async with client.get(root, headers={**ours, "If-None-Match": etag}) as answer:
            assert answer.status == 304 and await answer.read() == b""

    serve(test, run)


def test_a_page_that_cannot_be_made_tells_the_reader_nothing_of_the_machine(caplog: pytest.LogCaptureFixture) -> None:
    run = made_up()

    def fail() -> Any:
        raise RuntimeError("/home/somebody/secret")

    run.logs = fail  # type: ignore[method-assign]

    async def test(client: aiohttp.ClientSession, root: str, token: str) -> None:
        async with client.get(f"{root}/logs", headers=cookie(root, token)) as answer:
            assert answer.status == 500 and "secret" not in await answer.text()

    serve(test, run)
    assert "secret" in caplog.text


def test_a_status_that_cannot_be_read_is_told_and_the_last_one_is_shown() -> None:
    run = made_up()
    live = Live(run)

    def fail() -> Any:
        raise TandemError("status.yaml is gone")

    run.read = fail  # type: ignore[method-assign]
    seen = live.seen()
    assert seen.run.metadata.name == "reviews" and "status.yaml is gone" in seen.problems[0]
