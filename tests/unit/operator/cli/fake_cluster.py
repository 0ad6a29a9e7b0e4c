"""An API server as far as the command line asks one: runs, their watch, pods and logs, over real HTTP."""

from __future__ import annotations

import copy
import json
import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import yaml

Answer = tuple[int, dict[str, Any] | str]
Event = tuple[int, str, dict[str, Any]]
LIST = "/apis/tandem.dev/v1alpha1/namespaces/default/optimizationruns"
TEXT = "text/plain"


@dataclass
class FakeCluster:
    """The cluster's content; tests change it through the methods, from any thread."""

    runs: dict[tuple[str, str], dict[str, Any]] = field(default_factory=dict)
    pods: list[dict[str, Any]] = field(default_factory=list)
    logs: dict[str, list[Iterator[str]]] = field(default_factory=dict)
    """By pod: what each reading of its log gives."""
    objects: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Whatever else there is, by its path: an object, or a list."""
    allowed: Callable[[dict[str, Any]], bool] = lambda attributes: True
    """Whether the user may do that, by the attributes of an access review."""
    refusals: dict[tuple[str, str], list[Answer]] = field(default_factory=dict)
    """By method and path: what is answered first instead of the truth; the last one again and again if `forever`."""
    forever: bool = False
    requests: list[tuple[str, str, dict[str, str], Any]] = field(default_factory=list)
    watch_plan: list[Callable[[FakeCluster], Iterator[dict[str, Any]]]] = field(default_factory=list)
    """What each watch does, in order; without one it gives the events that come."""
    version: int = 100
    events: list[Event] = field(default_factory=list)
    told: list[dict[str, Any]] = field(default_factory=list)
    """Event objects."""
    changed: threading.Condition = field(default_factory=threading.Condition)
    closed: bool = False

    def put(self, resource: dict[str, Any], namespace: str = "default") -> dict[str, Any]:
        """Store a run and tell the watches."""
        with self.changed:
            self.version += 1
            stored = copy.deepcopy(resource)
            metadata = stored["metadata"]
            metadata |= {"namespace": namespace, "resourceVersion": str(self.version)}
            metadata.setdefault("uid", f"uid-{metadata['name']}")
            metadata.setdefault("generation", 1)
            metadata.setdefault("creationTimestamp", "2026-11-21T12:00:00Z")
            metadata.setdefault("managedFields", [{"manager": "tandem"}])
            key = (namespace, metadata["name"])
            self.events.append((self.version, "MODIFIED" if key in self.runs else "ADDED", stored))
            self.runs[key] = stored
            self.changed.notify_all()
            return stored

    def remove(self, name: str, namespace: str = "default") -> None:
        """Delete a run and tell the watches."""
        with self.changed:
            self.version += 1
            self.events.append((self.version, "DELETED", self.runs.pop((namespace, name))))
            self.changed.notify_all()

    def refuse(self, method: str, path: str, *answers: Answer, forever: bool = False) -> None:
        """Answer so instead of truly."""
        self.refusals[method, path] = list(answers)
        self.forever = forever

    def asked(self, method: str) -> list[tuple[str, dict[str, str], Any]]:
        """The requests of that method: path, query and body."""
        return [(path, query, body) for verb, path, query, body in self.requests if verb == method]

    def watching(self, since: int) -> Iterator[dict[str, Any]]:
        """Events as they come."""
        while not self.closed:
            with self.changed:
                new = [event for event in self.events if event[0] > since]
                if not new:
                    self.changed.wait(0.05)
            for number, kind, stored in new:
                since = number
                yield {"type": kind, "object": stored}


def status_answer(code: int, reason: str, message: str, **details: Any) -> Answer:
    """The API server's Status object."""
    return code, {
        "kind": "Status",
        "apiVersion": "v1",
        "status": "Failure",
        "message": message,
        "reason": reason,
        "details": details,
        "code": code,
    }


def not_found(kind: str, name: str) -> Answer:
    return status_answer(404, "NotFound", f'{kind} "{name}" not found', name=name, group="tandem.dev", kind=kind)


class Handler(BaseHTTPRequestHandler):
    """Speaks for the cluster in `server.cluster`."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: Any) -> None:
        pass

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PATCH = do_DELETE = do_GET

    def _answer(self) -> None:
        cluster: FakeCluster = self.server.cluster  # type: ignore[attr-defined]
        url = urlsplit(self.path)
        query = {key: values[-1] for key, values in parse_qs(url.query).items()}
        length = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(length)) if length else None
        cluster.requests.append((self.command, url.path, query, body))
        refusals = cluster.refusals.get((self.command, url.path), [])
        if refusals:
            self._send(*(refusals[0] if cluster.forever else refusals.pop(0)))
        elif found := re.fullmatch(
            r"/apis/tandem\.dev/v1alpha1(?:/namespaces/([^/]+))?/optimizationruns(?:/([^/]+))?", url.path
        ):
            self._runs(cluster, found[1], found[2], query, body)
        elif url.path in cluster.objects and query.get("watch") != "true":
            self._send(200, cluster.objects[url.path])
        elif url.path.endswith("/selfsubjectaccessreviews"):
            attributes = body["spec"]["resourceAttributes"]
            self._send(201, {**body, "status": {"allowed": cluster.allowed(attributes)}})
        elif found := re.fullmatch(r"/api/v1/namespaces/([^/]+)/events", url.path):
            self._events(cluster, found[1], query)
        elif found := re.fullmatch(r"/api/v1/namespaces/([^/]+)/pods(?:/([^/]+))?(/log)?", url.path):
            self._pods(cluster, found[2], found[3], query)
        else:
            self._send(404, "404 page not found\n")

    def _runs(self, cluster: FakeCluster, namespace: str, name: str | None, query: dict[str, str], body: Any) -> None:
        stored = cluster.runs.get((namespace, name or ""))
        if self.command == "POST":
            key = body["metadata"]["name"]
            if (namespace, key) in cluster.runs:
                self._send(*status_answer(409, "AlreadyExists", f'"{key}" already exists', name=key))
            elif query.get("dryRun") == "All":
                self._send(201, body)
            else:
                self._send(201, cluster.put(body, namespace))
        elif query.get("watch") == "true":
            plan = cluster.watch_plan.pop(0) if cluster.watch_plan else None
            self._stream(
                json.dumps(event) + "\n"
                for event in (plan(cluster) if plan else cluster.watching(int(query["resourceVersion"])))
            )
        elif name is None:
            chosen = query.get("fieldSelector", "").removeprefix("metadata.name=")
            labels = dict(part.split("=") for part in query.get("labelSelector", "").split(",") if part)
            items = [
                run
                for (place, key), run in cluster.runs.items()
                if namespace in (None, place)
                and chosen in ("", key)
                and labels.items() <= (run["metadata"].get("labels") or {}).items()
            ]
            self._send(200, {"items": items, "metadata": {"resourceVersion": str(cluster.version)}})
        elif stored is None:
            self._send(*not_found("optimizationruns", name))
        elif self.command == "PATCH":
            assert self.headers["Content-Type"] == "application/merge-patch+json"
            stored = copy.deepcopy(stored)
            stored["spec"] |= body["spec"]
            self._send(200, cluster.put(stored, namespace))
        elif self.command == "DELETE":
            assert body["preconditions"]["uid"] == stored["metadata"]["uid"]
            cluster.remove(name, namespace)
            self._send(200, {"kind": "Status", "status": "Success"})
        else:
            self._send(200, stored)

    def _events(self, cluster: FakeCluster, namespace: str, query: dict[str, str]) -> None:
        wanted = dict(part.split("=") for part in query.get("fieldSelector", "").split(",") if part)
        name = wanted.get("involvedObject.name")
        if query.get("watch") == "true":
            plan = cluster.watch_plan.pop(0) if cluster.watch_plan else (lambda cluster: iter(()))
            self._stream(json.dumps(event) + "\n" for event in plan(cluster))
            return
        items = [
            event
            for event in cluster.told
            if event["metadata"]["namespace"] == namespace and name in (None, event["involvedObject"]["name"])
        ]
        self._send(200, {"items": items, "metadata": {"resourceVersion": str(cluster.version)}})

    def _pods(self, cluster: FakeCluster, name: str | None, log: str | None, query: dict[str, str]) -> None:
        if name is None:
            wanted = dict(part.split("=") for part in query["labelSelector"].split(","))
            items = [pod for pod in cluster.pods if wanted.items() <= pod["metadata"]["labels"].items()]
            self._send(200, {"items": items})
            return
        pod = next((pod for pod in cluster.pods if pod["metadata"]["name"] == name), None)
        if pod is None:
            self._send(*not_found("pods", name))
        elif log:
            readings = cluster.logs.get(name) or [iter(())]
            self._stream(readings.pop(0) if len(readings) > 1 else readings[0], TEXT)
        else:
            self._send(200, pod)

    def _send(self, code: int, answer: dict[str, Any] | str) -> None:
        data = (json.dumps(answer) if isinstance(answer, dict) else answer).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json" if isinstance(answer, dict) else TEXT)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _stream(self, parts: Iterator[str], kind: str = "application/json") -> None:
        """Chunked. A ConnectionAbortedError among the parts breaks the connection in the middle."""
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for part in parts:
                data = part.encode()
                self.wfile.write(b"%x\r\n%s\r\n" % (len(data), data))
                self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
        except (ConnectionAbortedError, BrokenPipeError, ConnectionResetError):
            self.close_connection = True


@contextmanager
def serving(cluster: FakeCluster) -> Iterator[str]:
    """Its address, as long as it runs."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.cluster = cluster  # type: ignore[attr-defined]
    thread = threading.Thread(target=lambda: server.serve_forever(poll_interval=0.01), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        cluster.closed = True
        server.shutdown()
        server.server_close()


def write_kubeconfig(path: Path, server: str, namespace: str | None = None, **user: Any) -> Path:
    """A kubeconfig with one context, `test`."""
    context = {"cluster": "test", "user": "test"} | ({"namespace": namespace} if namespace else {})
    path.write_text(
        yaml.safe_dump(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "test",
                "clusters": [{"name": "test", "cluster": {"server": server}}],
                "users": [{"name": "test", "user": user}],
                "contexts": [{"name": "test", "context": context}],
            }
        )
    )
    return path
