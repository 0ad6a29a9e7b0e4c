"""Who hears of each call to the API server: its verb as Kubernetes names it, how it was answered, how long it took."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import urlsplit

from kubernetes.client import rest

#: (verb, HTTP status or `none` where no answer came, seconds).
Hear = Callable[[str, str, float], None]
NO_ANSWER: Final = "none"

#: What follows the group and version in a path: the resource and, for one object, its name.
_PLACE: Final = re.compile(
    r"(/api/v1|/apis/[^/]+/[^/]+)(/namespaces/[^/]+(?=/))?/(?P<resource>[^/]+)(/(?P<name>[^/]+))?"
)
_WRITES: Final = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


class HeardRest(rest.RESTClientObject):  # type: ignore[misc]
    """The library's HTTP client, which tells of each call."""

    def __init__(self, configuration: Any, hear: Hear) -> None:
        super().__init__(configuration)
        self._hear = hear

    def request(self, method: str, url: str, headers: dict[str, str] | None = None, **more: Any) -> Any:
        """As the library's."""
        verb, code, began = verb_of(method, url, headers or {}), NO_ANSWER, time.perf_counter()
        try:
            answer = super().request(method, url, headers=headers, **more)
            code = str(answer.status)
            return answer
        except rest.ApiException as error:
            code = str(error.status or NO_ANSWER)
            raise
        finally:
            self._hear(verb, code, time.perf_counter() - began)


def verb_of(method: str, url: str, headers: dict[str, str]) -> str:
    """get, list, watch, create, update, patch, apply or delete."""
    parts = urlsplit(url)
    if method in _WRITES:
        is_apply = method == "PATCH" and "apply-patch" in str(headers.get("Content-Type", ""))
        return "apply" if is_apply else _WRITES[method]
    place = _PLACE.search(parts.path)
    if place is None or place["name"] is not None:
        return "get"
    return "watch" if re.search(r"(^|&)watch=(true|1)", parts.query, re.IGNORECASE) else "list"
