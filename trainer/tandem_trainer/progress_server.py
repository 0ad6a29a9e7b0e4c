"""What a worker is doing now, over HTTP: /progress (JSON) for the operator, /metrics for Prometheus, /healthz.

The server runs in threads of its own, beside the stage, and ends with the process.
"""

from __future__ import annotations

import socketserver
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from tandem_api.contract import Progress

#: On a cluster the pod's own address, which only network policies keep from others.
ADDRESS = "0.0.0.0"  # noqa: S104
#: How long a client may take over its request.
REQUEST_SECONDS = 10


class ProgressServer(socketserver.ThreadingTCPServer):
    """Answers with what `latest` returns. Not an HTTPServer, which would ask the DNS for this machine's name first."""

    allow_reuse_address = True
    daemon_threads = True

    def __init__(self, port: int, labels: dict[str, str], latest: Callable[[], Progress]) -> None:
        """Listen on `port`; `labels` are those of every series. Raises OSError or OverflowError when that is not
        possible."""
        super().__init__((ADDRESS, port), _Handler)
        self.latest = latest
        self.registry = CollectorRegistry()
        self.registry.register(_Metrics(labels, latest))

    def start(self) -> None:
        """Answer from now on, in a thread."""
        threading.Thread(target=self.serve_forever, name="progress", daemon=True).start()

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that goes away in the middle is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: ProgressServer
    timeout = REQUEST_SECONDS

    def do_GET(self) -> None:
        path = self.path.partition("?")[0]
        if path == "/progress":
            self._answer("application/json", self.server.latest().model_dump_json(exclude_none=True).encode())
        elif path == "/metrics":
            self._answer(CONTENT_TYPE_LATEST, generate_latest(self.server.registry))
        elif path == "/healthz":
            self._answer("text/plain", b"ok\n")
        else:
            self.send_error(404)

    def _answer(self, content_type: str, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Requests are not logged: they come every few seconds."""


class _Metrics(Collector):
    def __init__(self, labels: dict[str, str], latest: Callable[[], Progress]) -> None:
        self._labels = labels
        self._latest = latest

    def collect(self) -> Iterator[Metric]:
        progress = self._latest()
        gauges: dict[str, tuple[str, float | None]] = {
            "units_done": ("Units of work (examples, rows, optimizer steps) that are done.", progress.done),
            "units_planned": ("Units of work of the whole stage.", progress.total),
            "eta_seconds": ("Time until the stage's expected end.", progress.eta_seconds),
            "score": ("The score so far, from 0 to 1.", progress.score),
            "loss": ("The training loss.", progress.loss),
        }
        for name, (text, value) in gauges.items():
            if value is not None:
                yield self._family(GaugeMetricFamily, name, text, value)
        usage = progress.usage
        yield self._family(CounterMetricFamily, "lm_calls", "LM calls of all attempts of the stage.", usage.calls)
        tokens = CounterMetricFamily(
            "tandem_worker_tokens", "Tokens of all attempts of the stage.", labels=[*self._labels, "type"]
        )
        tokens.add_metric([*self._labels.values(), "prompt"], usage.prompt_tokens)
        tokens.add_metric([*self._labels.values(), "completion"], usage.completion_tokens)
        yield tokens

    def _family(
        self, made: type[GaugeMetricFamily | CounterMetricFamily], name: str, text: str, value: float
    ) -> GaugeMetricFamily | CounterMetricFamily:
        family = made(f"tandem_worker_{name}", text, labels=[*self._labels])
        family.add_metric([*self._labels.values()], value)
        return family
