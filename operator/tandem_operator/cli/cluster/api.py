"""Requests to an API server on plain values: paths and JSON.

Of the Kubernetes client only the connection is used, with the kubeconfig's certificates, tokens and proxy: its classes
for each kind of object take a second to import, which is longer than most commands take.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

#: Seconds to connect, and to wait for an answer.
TIMEOUT = (5.0, 30.0)
MERGE_PATCH = "application/merge-patch+json"


class Api:
    """One API server, as one user. Errors are the client's ApiException, and urllib3's HTTPError."""

    def __init__(self, api_client: ApiClient) -> None:
        self._client = api_client

    def get(
        self,
        path: str,
        query: dict[str, Any] | None = None,
        *,
        timeout: tuple[float, float] = TIMEOUT,
        accept: str = "application/json",
    ) -> Any:
        """The JSON that is there. Parts of the query that are None are left out."""
        return self._json(self._request("GET", path, query, timeout=timeout, accept=accept))

    def send(
        self,
        method: str,
        path: str,
        body: dict[str, Any],
        query: dict[str, Any] | None = None,
        content_type: str = "application/json",
    ) -> Any:
        """The answer's JSON."""
        return self._json(self._request(method, path, query, body, content_type))

    def lines(
        self, path: str, query: dict[str, Any] | None = None, *, quiet_seconds: float, accept: str = "*/*"
    ) -> Iterator[str]:
        """What comes, line by line, until the server ends it; `quiet_seconds`: how long nothing may come."""
        answer = self._request("GET", path, query, timeout=(TIMEOUT[0], quiet_seconds), accept=accept).response
        try:
            yield from _lines(answer.stream(amt=None, decode_content=False))
        finally:
            answer.close()

    def _request(
        self,
        method: str,
        path: str,
        query: dict[str, Any] | None,
        body: dict[str, Any] | None = None,
        content_type: str | None = None,
        *,
        timeout: tuple[float, float] = TIMEOUT,
        accept: str = "application/json",
    ) -> Any:
        from kubernetes.client import ApiException

        headers = {"Accept": accept, **({"Content-Type": content_type} if content_type is not None else {})}
        request = self._client.param_serialize(
            method,
            path,
            query_params=[(key, value) for key, value in (query or {}).items() if value is not None],
            header_params=headers,
            body=body,
            auth_settings=["BearerToken"],
        )
        answer = self._client.call_api(*request, _request_timeout=timeout)
        if not 200 <= answer.status <= 299:
            raise ApiException.from_response(http_resp=answer, body=answer.read().decode(errors="replace"), data=None)
        return answer

    @staticmethod
    def _json(answer: Any) -> Any:
        with contextlib.closing(answer.response):
            return json.loads(answer.read())


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Whole lines as they come; the last one also without its end."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")
