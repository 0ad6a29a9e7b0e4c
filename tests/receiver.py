"""A real HTTP receiver of CloudEvents that can be told to fail, and verifies as the documentation says."""

from __future__ import annotations

import importlib.util
import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

#: What it answers to the n-th request (from 0): a status; or seconds to wait before the connection is closed.
Behaviour = Callable[[int], int | float]


@dataclass
class Request:
    """What was posted."""

    path: str
    headers: dict[str, str]
    body: bytes
    accepted: bool

    @property
    def event(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found


@dataclass
class Receiver:
    """`with Receiver() as receiver: ... receiver.url`; `down()` and `up()` close and open its port."""

    behaviour: Behaviour = lambda n: 204
    requests: list[Request] = field(default_factory=list)
    port: int = 0

    def __enter__(self) -> Self:
        self.ending = threading.Event()
        self.up()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.ending.set()
        self.down()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hooks/tandem"

    @property
    def events(self) -> list[dict[str, Any]]:
        """What it has taken, in order, each once."""
        found: dict[str, dict[str, Any]] = {}
        for request in list(self.requests):
            if request.accepted:
                found.setdefault(request.event["id"], request.event)
        return list(found.values())

    def up(self) -> None:
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                answer = receiver.behaviour(len(receiver.requests))
                headers = {name.lower(): value for name, value in self.headers.items()}
                accepted = isinstance(answer, int) and 200 <= answer < 300
                receiver.requests.append(Request(self.path, headers, body, accepted))
                if isinstance(answer, float):
                    receiver.ending.wait(answer)
                    self.close_connection = True
                    return
                self.send_response(answer)
                if 300 <= answer < 400:
                    self.send_header("Location", receiver.url + "/elsewhere")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", self.port), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()

    def down(self) -> None:
        self._server.shutdown()
        self._server.server_close()


def _verify() -> Any:
    """What the documentation gives to receivers."""
    path = Path(__file__).parents[1] / "examples/pipelines/verify.py"
    spec = importlib.util.spec_from_file_location("verify", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


VERIFY = _verify()


def is_signed(request: Request, key: str) -> bool:
    """Whether a receiver with this key takes the request for genuine."""
    return bool(VERIFY.is_genuine(request.headers, request.body, key))
