"""MLflow's REST API in memory, as far as faults need it that a real server cannot be made to have. What is logged of a
run is tested against a real one: tests/engine/test_mlflow.py."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

Answer = tuple[int, bytes]


class FakeMLflow:
    """One experiment's runs. `script` may answer in its place: it gets method, path and body."""

    def __init__(self) -> None:
        self.uri = ""
        self.versions: list[dict[str, Any]] = []
        self.runs: list[dict[str, Any]] = []
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        """Method, path and headers."""
        self.script: Any = lambda method, path, body: None

    def answer(self, method: str, path: str, body: dict[str, Any]) -> Answer:
        scripted = self.script(method, path, body)
        if scripted is not None:
            return scripted  # type: ignore[no-any-return]
        return 200, json.dumps(self._answer(path.rpartition("/2.0/mlflow/")[2], body)).encode()

    def _answer(self, call: str, body: dict[str, Any]) -> dict[str, Any]:
        found = [run for run in self.runs if run["info"]["run_id"] == body.get("run_id")]
        match call:
            case "experiments/get-by-name":
                return {"experiment": {"experiment_id": "7", "lifecycle_stage": "active"}}
            case "runs/search":
                return {"runs": [run for run in self.runs if run["info"]["lifecycle_stage"] == "active"]}
            case "runs/create":
                info = {
                    "run_id": f"run{len(self.runs)}",
                    "status": "RUNNING",
                    "start_time": body["start_time"],
                    "artifact_uri": "mlflow-artifacts:/7/x/artifacts",
                    "lifecycle_stage": "active",
                }
                self.runs.append({"info": info, "data": {"tags": list(body["tags"]), "params": [], "metrics": []}})
                return {"run": self.runs[-1]}
            case "runs/log-batch":
                for kind in ("tags", "params", "metrics"):
                    found[0]["data"][kind] += body.get(kind, [])
            case "runs/delete-tag":
                found[0]["data"]["tags"] = [one for one in found[0]["data"]["tags"] if one["key"] != body["key"]]
            case "runs/update":
                found[0]["info"] |= {"status": body["status"], "end_time": body.get("end_time")}
            case "runs/delete":
                found[0]["info"]["lifecycle_stage"] = "deleted"
            case "metrics/get-history":
                return {"metrics": [one for one in found[0]["data"]["metrics"] if one["key"] == body["metric_key"]]}
            case "model-versions/search":
                return {"model_versions": self.versions}
            case "model-versions/create":
                self.versions.append({**body, "version": str(len(self.versions) + 1)})
                return {"model_version": self.versions[-1]}
        return {}


@contextmanager
def serving(fake: FakeMLflow) -> Iterator[FakeMLflow]:
    """The fake behind a port of its own."""

    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            parts = urlsplit(self.path)
            body: dict[str, Any] = {key: values[0] for key, values in parse_qs(parts.query).items()}
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if data and self.command == "POST":
                body |= json.loads(data)
            fake.requests.append((self.command, parts.path, dict(self.headers)))
            status, answer = fake.answer(self.command, parts.path, body)
            self.send_response(status)
            if 300 <= status < 400:
                self.send_header("Location", answer.decode())
            self.send_header("Content-Length", str(len(answer)))
            self.end_headers()
            self.wfile.write(answer)

        do_GET = do_POST = do_PUT = _any

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    fake.uri = f"http://127.0.0.1:{server.server_port}"
    try:
        yield fake
    finally:
        server.shutdown()
        server.server_close()
