"""A small API server in memory: discovery, lists and watches of a few kinds, and Leases with optimistic locking."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import yaml
from aiohttp import web

Object = dict[str, Any]

GROUPS = {
    "tandem.dev/v1alpha1": ("OptimizationRun", "optimizationruns"),
    "batch/v1": ("Job", "jobs"),
    "apps/v1": ("Deployment", "deployments"),
    "apiextensions.k8s.io/v1": ("CustomResourceDefinition", "customresourcedefinitions"),
}


class ApiServer:
    """Runs in a thread of its own, on a free port of this machine."""

    def __init__(self) -> None:
        self.requests: list[tuple[str, str, dict[str, str]]] = []
        self.leases: dict[str, Object] = {}
        self.tokens: set[str] | None = None
        """Bearer tokens that are accepted; None: anybody is."""
        self.has_definition = True
        self.is_mute = False
        """Whether watches say nothing any more."""
        self._objects: dict[tuple[str, str, str], Object] = {}
        self._events: list[tuple[int, str, Object]] = []
        self._specs: list[str] = []
        self._version = 100
        self._generation = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.url = asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    def close(self) -> None:
        asyncio.run_coroutine_threadsafe(self._runner.cleanup(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def kubeconfig(self, folder: Path, token: str = "secret-token") -> Path:
        path = folder / "kubeconfig"
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "test",
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "clusters": [{"name": "test", "cluster": {"server": self.url}}],
            "users": [{"name": "test", "user": {"token": token}}],
        }
        path.write_text(yaml.safe_dump(document))
        return path

    def put(
        self, plural: str, name: str, namespace: str = "team", labels: dict[str, str] | None = None, spec: str = "{}"
    ) -> str:
        """Create or change an object; its new version. `spec` is JSON, which is not looked into."""
        with_this = (plural, namespace, name)
        kind = "ADDED" if with_this not in self._objects else "MODIFIED"
        self._version += 1
        metadata = {"name": name, "namespace": namespace, "uid": f"{plural}-{name}", "labels": labels or {}}
        metadata["resourceVersion"] = str(self._version)
        self._specs.append(spec)
        self._objects[with_this] = {"metadata": metadata, "spec": f"@{len(self._specs) - 1}@"}
        self._events.append((self._version, kind, {"plural": plural, **self._objects[with_this]}))
        return str(self._version)

    def delete(self, plural: str, name: str, namespace: str = "team") -> None:
        found = self._objects.pop((plural, namespace, name))
        self._version += 1
        gone = {"metadata": {**found["metadata"], "resourceVersion": str(self._version)}}
        self._events.append((self._version, "DELETED", {"plural": plural, **gone}))

    def drop_watches(self) -> None:
        """End all streams that are open, as the server does after a while."""
        self._generation += 1

    def writes(self) -> list[tuple[str, str]]:
        return [(method, path) for method, path, _ in self.requests if method != "GET"]

    async def _start(self) -> str:
        app = web.Application()
        app.router.add_get("/api", self._answer({"versions": ["v1"]}))
        app.router.add_get("/api/v1", self._answer({"resources": [_resource("Pod", "pods"), _NAMESPACE]}))
        app.router.add_get("/apis", self._groups)
        for version, (kind, plural) in GROUPS.items():
            app.router.add_get(f"/apis/{version}", self._answer({"resources": [_resource(kind, plural)]}))
        leases = "/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases"
        app.router.add_get(leases + "/{name}", self._get_lease)
        app.router.add_post(leases, self._post_lease)
        app.router.add_put(leases + "/{name}", self._put_lease)
        for prefix in ("/api/v1", "/apis/{group}/{version}"):
            app.router.add_get(prefix + "/{plural}", self._collection)
            app.router.add_get(prefix + "/namespaces/{namespace}/{plural}", self._collection)
        app.middlewares.append(self._recorded)
        self._runner = web.AppRunner(app, shutdown_timeout=0.2)
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        return f"http://127.0.0.1:{self._runner.addresses[0][1]}"

    @web.middleware
    async def _recorded(self, request: web.Request, handler: Any) -> web.StreamResponse:
        self.requests.append((request.method, request.path, dict(request.query)))
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if self.tokens is not None and token not in self.tokens:
            return _status(401, "Unauthorized")
        response: web.StreamResponse = await handler(request)
        return response

    def _answer(self, body: Object) -> Any:
        async def handler(_: web.Request) -> web.Response:
            return web.json_response(body)

        return handler

    async def _groups(self, _: web.Request) -> web.Response:
        groups = []
        for path in GROUPS:
            name, version = path.split("/")
            groups.append({"name": name, "versions": [{"version": version}], "preferredVersion": {"version": version}})
        return web.json_response({"groups": groups})

    async def _collection(self, request: web.Request) -> web.StreamResponse:
        plural, namespace = request.match_info["plural"], request.match_info.get("namespace")
        if plural == "optimizationruns" and not self.has_definition:
            return _status(404, "NotFound")
        if request.query.get("watch") == "true":
            return await self._watch(request, plural, namespace, int(request.query["resourceVersion"]))
        items = [o for (p, n, _), o in sorted(self._objects.items()) if p == plural and namespace in (None, n)]
        # As Kubernetes 1.20 writes a list of nothing, if only metadata was asked for.
        nothing = None if "as=PartialObjectMetadataList" in request.headers.get("Accept", "") else []
        listed = {"items": items or nothing, "metadata": {"resourceVersion": str(self._version)}}
        return web.json_response(text=self._text(listed))

    async def _watch(self, request: web.Request, plural: str, namespace: str | None, since: int) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        generation = self._generation
        while generation == self._generation and request.transport is not None and not request.transport.is_closing():
            for version, kind, event in [] if self.is_mute else list(self._events):
                if (
                    version > since
                    and event["plural"] == plural
                    and namespace in (None, event["metadata"]["namespace"])
                ):
                    since = version
                    thing = {key: value for key, value in event.items() if key != "plural"}
                    await response.write(self._text({"type": kind, "object": thing}).encode() + b"\n")
            await asyncio.sleep(0.02)
        return response

    def _text(self, document: Object) -> str:
        text = json.dumps(document)
        for number, spec in enumerate(self._specs):
            text = text.replace(f'"@{number}@"', spec)
        return text

    async def _get_lease(self, request: web.Request) -> web.Response:
        found = self.leases.get(request.match_info["name"])
        return web.json_response(found) if found else _status(404, "NotFound")

    async def _post_lease(self, request: web.Request) -> web.Response:
        body = await request.json()
        if body["metadata"]["name"] in self.leases:
            return _status(409, "AlreadyExists")
        return self._store_lease(body)

    async def _put_lease(self, request: web.Request) -> web.Response:
        body = await request.json()
        stored = self.leases[body["metadata"]["name"]]
        if body["metadata"]["resourceVersion"] != stored["metadata"]["resourceVersion"]:
            return _status(409, "Conflict")
        return self._store_lease(body)

    def _store_lease(self, body: Object) -> web.Response:
        for field in ("renewTime", "acquireTime"):
            # As strict as the real one about MicroTime.
            assert "." in body["spec"][field], body
        self._version += 1
        body["metadata"]["resourceVersion"] = str(self._version)
        self.leases[body["metadata"]["name"]] = body
        return web.json_response(body)


def _resource(kind: str, plural: str) -> Object:
    verbs = ["get", "list", "watch", "patch"]
    return {"kind": kind, "name": plural, "singularName": kind.lower(), "namespaced": True, "verbs": verbs}


_NAMESPACE = {**_resource("Namespace", "namespaces"), "namespaced": False}


def _status(code: int, reason: str) -> web.Response:
    body = {"kind": "Status", "code": code, "reason": reason, "message": f"{reason} for a test"}
    return web.json_response(body, status=code)
