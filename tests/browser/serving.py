"""The live page's server in a thread, over any source."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from tandem_operator.ui.access import Token
from tandem_operator.ui.model import Live
from tandem_operator.ui.server import Server
from tandem_operator.ui.sources import Source


@contextmanager
def served(source: Source) -> Iterator[str]:
    """The address with the token."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = Server(Live(source), Token.new())
    try:
        yield asyncio.run_coroutine_threadsafe(server.start(0), loop).result(30)
    finally:
        asyncio.run_coroutine_threadsafe(server.stop(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
