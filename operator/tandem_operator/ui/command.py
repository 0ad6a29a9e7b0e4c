"""`tandem ui`: finds the run, serves it until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import html
import logging
import signal
import tempfile
import webbrowser
from collections.abc import Iterator
from pathlib import Path

import typer

from tandem_api.errors import TandemError
from tandem_operator.cli.cluster.access import Access, connect
from tandem_operator.cli.errors import EXIT_DONE
from tandem_operator.cli.show import NoSuchRunError, find_run
from tandem_operator.ui.access import Token
from tandem_operator.ui.model import Live
from tandem_operator.ui.server import Server
from tandem_operator.ui.sources import Folder, InCluster, Source

_REDIRECT = """<!DOCTYPE html>
<meta charset="utf-8">
<meta http-equiv="refresh" content="0; url={address}">
<title>tandem ui</title>
<p><a href="{address}">The run's page</a>
"""


def serve(name: str, access: Access, endpoint: str | None, port: int, *, open_it: bool) -> int:
    """Print the address and answer until Ctrl-C or SIGTERM. Returns the exit code."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    live = Live(find(name, access, endpoint))
    asyncio.run(_serve(Server(live, Token.new()), live.source.where, port, open_it=open_it))
    return EXIT_DONE


def find(name: str, access: Access, endpoint: str | None) -> Source:
    """The run in that folder, or of that name under `runs/`, unless a cluster is named; else the cluster's.

    Raises TandemError that tells both places.
    """
    absent: NoSuchRunError | None = None
    if not access.is_given:
        try:
            return Folder(find_run(name)[0])
        except NoSuchRunError as error:
            if "/" in name:
                raise
            absent = error
    try:
        cluster = connect(access.kubeconfig, access.context)
        source = InCluster(cluster, access.namespace or cluster.namespace, name, endpoint)
        source.read()
    except TandemError as error:
        if absent is None:
            raise
        raise type(error)(f"{absent}\nOn a cluster: {error}") from error
    return source


async def _serve(server: Server, where: str, port: int, *, open_it: bool) -> None:
    ended = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, ended.set)
    address = await server.start(port)
    typer.echo(f"{where} is shown at\n  {address}\nfor whoever has this address, on this machine. Ctrl-C ends it.")
    try:
        with _in_browser(address) if open_it else contextlib.nullcontext():
            await ended.wait()
    finally:
        await server.stop()


@contextlib.contextmanager
def _in_browser(address: str) -> Iterator[None]:
    """Open the address by a file that leads there, which only this user may read and which is removed at the end: every
    user of the machine may read the browser's command line."""
    with tempfile.NamedTemporaryFile("w", encoding="utf-8", prefix="tandem-ui-", suffix=".html") as file:
        file.write(_REDIRECT.format(address=html.escape(address)))
        file.flush()
        with contextlib.suppress(webbrowser.Error):
            webbrowser.open(Path(file.name).as_uri())
        yield
