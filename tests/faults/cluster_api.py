"""The kubelet's way to the API server: asynchronous, as administrator, patient with servers that are away."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from typing import Any, Self

import aiohttp
from tests.faults.api import MERGE, ApiError, path_of

Object = dict[str, Any]


class ClusterApi:
    """`async with ClusterApi(url, token) as api: ...`."""

    def __init__(self, url: str, token: str) -> None:
        self._url = url
        self._headers = {"Authorization": f"Bearer {token}", "User-Agent": "kubelet"}

    async def __aenter__(self) -> Self:
        # The server's certificate is one of its own making.
        connector = aiohttp.TCPConnector(ssl=False, limit=64)
        self._session = aiohttp.ClientSession(self._url, connector=connector, headers=self._headers)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._session.close()

    async def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """An object, or None."""
        return await self._found("GET", path_of(kind, namespace, name))

    async def create(self, kind: str, namespace: str, body: Object, name: str = "", subresource: str = "") -> bool:
        """Create an object, or such a subresource of one; whether it was not there yet."""
        try:
            await self._call("POST", path_of(kind, namespace, name, subresource), body)
        except ApiError as error:
            if error.status != 409:
                raise
            return False
        return True

    async def patch(
        self, kind: str, namespace: str, name: str, patch: Object, *, subresource: str = ""
    ) -> Object | None:
        """A JSON merge patch; the object as it is then, or None when there is none."""
        return await self._found("PATCH", path_of(kind, namespace, name, subresource), patch)

    async def delete(self, kind: str, namespace: str, name: str, *, uid: str, grace: int | None = None) -> None:
        """Delete this very object, if it is there."""
        options: Object = {"preconditions": {"uid": uid}}
        if grace is not None:
            options["gracePeriodSeconds"] = grace
        try:
            await self._call("DELETE", path_of(kind, namespace, name), options)
        except ApiError as error:
            if error.status not in (404, 409):
                raise

    async def watch(self, kind: str) -> AsyncIterator[tuple[str, Object]]:
        """(ADDED, MODIFIED or DELETED, object) of all namespaces, for ever; after a gap what is missing is DELETED."""
        known: dict[str, Object] = {}
        while True:
            try:
                listed = await self._call("GET", path_of(kind))
                items = {item["metadata"]["uid"]: item for item in listed["items"]}
                for uid in [uid for uid in known if uid not in items]:
                    yield "DELETED", known.pop(uid)
                for uid, item in items.items():
                    yield ("MODIFIED" if uid in known else "ADDED"), item
                known = items
                version = listed["metadata"]["resourceVersion"]
                async for event in self._events(f"{path_of(kind)}?watch=1&resourceVersion={version}"):
                    if event["type"] == "ERROR":
                        break
                    thing = event["object"]
                    if event["type"] == "DELETED":
                        known.pop(thing["metadata"]["uid"], None)
                    else:
                        known[thing["metadata"]["uid"]] = thing
                    yield event["type"], thing
            except (aiohttp.ClientError, ApiError, TimeoutError):
                await asyncio.sleep(0.2)

    async def _events(self, path: str) -> AsyncIterator[Object]:
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
        async with self._session.get(path, timeout=timeout) as response:
            rest = b""
            async for part in response.content.iter_any():
                *lines, rest = (rest + part).split(b"\n")
                for line in lines:
                    if line:
                        yield json.loads(line)

    async def _found(self, method: str, path: str, body: Object | None = None) -> Object | None:
        try:
            return await self._call(method, path, body)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def _call(self, method: str, path: str, body: Object | None = None) -> Object:
        """One request, repeated for a while where the server cannot be reached. Raises ApiError."""
        content = MERGE if method == "PATCH" else "application/json"
        data = json.dumps(body).encode() if body is not None else None
        for attempt in range(50):
            try:
                async with self._session.request(
                    method, path, data=data, headers={"Content-Type": content}, timeout=aiohttp.ClientTimeout(total=30)
                ) as response:
                    text = await response.text()
                    if response.status < 400:
                        found: Object = json.loads(text)
                        return found
                    if response.status not in (429, 500, 503):
                        raise ApiError(response.status, text)
            except (aiohttp.ClientError, TimeoutError):
                if attempt == 49:
                    raise
            await asyncio.sleep(0.2)
        raise ApiError(503, f"{method} {path}: no good answer in 50 tries")
