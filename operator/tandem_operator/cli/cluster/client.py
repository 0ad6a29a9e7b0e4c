"""`Cluster`: the few requests that the command line makes, with errors that tell what to do."""

from __future__ import annotations

import contextlib
import difflib
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, cast

from tandem_api.errors import TandemError
from tandem_api.v1alpha1.run import GROUP, VERSION
from tandem_operator.cli.cluster.failures import RUNS, ExpiredError, NoSuchObjectError, Request, explain

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

#: An object as the API server has it.
Resource = dict[str, Any]

#: Seconds to connect, and to wait for an answer.
_TIMEOUT = (5.0, 30.0)
#: A watch ends by itself after this, so that a connection that died silently is noticed: soon after it.
_WATCH_SECONDS = 50
#: A log may say nothing for long; the connection's death is noticed after this.
_QUIET_SECONDS = 300.0
_PAGE = 500


class Cluster:
    """One API server, as one user."""

    def __init__(self, api_client: ApiClient, server: str, namespace: str) -> None:
        """`namespace`: the one that is meant where none is named."""
        from kubernetes.client import CoreV1Api, CustomObjectsApi

        self.server = server
        self.namespace = namespace
        self._custom = CustomObjectsApi(api_client)
        self._core = CoreV1Api(api_client)

    def get(self, namespace: str, name: str) -> Resource:
        """One run. Raises NoSuchObjectError that lists similar names."""
        try:
            with self._asking("get", RUNS, namespace, name):
                return cast(Resource, self._custom.get_namespaced_custom_object(*_path(namespace), name, **_options()))
        except NoSuchObjectError as error:
            raise NoSuchObjectError(f"{error}{self._similar(namespace, name)}") from error

    def runs(self, namespace: str | None) -> list[Resource]:
        """All runs of a namespace, or of all namespaces."""
        items: list[Resource] = []
        following: str | None = None
        while True:
            with self._asking("list", RUNS, namespace):
                if namespace is None:
                    page = self._custom.list_cluster_custom_object(
                        GROUP, VERSION, RUNS, limit=_PAGE, _continue=following, **_options()
                    )
                else:
                    page = self._custom.list_namespaced_custom_object(
                        *_path(namespace), limit=_PAGE, _continue=following, **_options()
                    )
            found = cast(Resource, page)
            items += found.get("items") or []
            following = found.get("metadata", {}).get("continue") or None
            if following is None:
                return items

    def create(self, namespace: str, resource: Resource) -> Resource:
        """A new run. Fields that the installed CRD does not know are refused, not dropped. Raises
        AlreadyExistsError."""
        with self._asking("create", RUNS, namespace, resource["metadata"]["name"]):
            created = self._custom.create_namespaced_custom_object(
                *_path(namespace), resource, field_manager="tandem", field_validation="Strict", **_options()
            )
        return cast(Resource, created)

    def patch(self, namespace: str, name: str, changes: Resource) -> Resource:
        """Change the named fields of a run and leave the others (a JSON merge patch)."""
        with self._asking("patch", RUNS, namespace, name):
            patched = self._custom.patch_namespaced_custom_object(
                *_path(namespace),
                name,
                changes,
                field_manager="tandem",
                _content_type="application/merge-patch+json",
                **_options(),
            )
        return cast(Resource, patched)

    def delete(self, namespace: str, name: str, uid: str) -> None:
        """Delete the run with that uid, and no other of its name."""
        from kubernetes.client import V1DeleteOptions, V1Preconditions

        options = V1DeleteOptions(preconditions=V1Preconditions(uid=uid), propagation_policy="Background")
        with self._asking("delete", RUNS, namespace, name):
            self._custom.delete_namespaced_custom_object(*_path(namespace), name, body=options, **_options())

    def watch(self, namespace: str, name: str) -> Iterator[Resource | None]:
        """The run as it is, and again after each change; None: it is not there. Ends after a while, or when the server
        has forgotten where we are: call it again."""
        from kubernetes.watch import Watch

        chosen = f"metadata.name={name}"
        with self._asking("list", RUNS, namespace, name):
            page = cast(
                Resource,
                self._custom.list_namespaced_custom_object(*_path(namespace), field_selector=chosen, **_options()),
            )
        items = page.get("items") or []
        yield items[0] if items else None
        stream: Iterable[Any] = Watch().stream(
            self._custom.list_namespaced_custom_object,
            *_path(namespace),
            field_selector=chosen,
            resource_version=page["metadata"]["resourceVersion"],
            timeout_seconds=_WATCH_SECONDS,
            _request_timeout=(_TIMEOUT[0], _WATCH_SECONDS + 10.0),
        )
        with contextlib.suppress(ExpiredError), self._asking("watch", RUNS, namespace, name):
            for event in stream:
                if event is not None:
                    yield None if event["type"] == "DELETED" else event["raw_object"]

    def pods(self, namespace: str, labels: dict[str, str]) -> list[Resource]:
        """All pods with these labels."""
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        with self._asking("list", "pods", namespace):
            answer = self._core.list_namespaced_pod(
                namespace, label_selector=selector, _preload_content=False, **_options()
            )
            return cast(list[Resource], _json(answer).get("items") or [])

    def pod(self, namespace: str, name: str) -> Resource | None:
        """One pod; None: it is not there."""
        try:
            with self._asking("get", "pods", namespace, name):
                return _json(self._core.read_namespaced_pod(name, namespace, _preload_content=False, **_options()))
        except NoSuchObjectError:
            return None

    def log(
        self,
        namespace: str,
        pod: str,
        container: str,
        *,
        follow: bool = False,
        previous: bool = False,
        since_seconds: int | None = None,
    ) -> Iterator[str]:
        """A container's log, line by line, each with the time before it; with `follow` until the container ends."""
        with self._asking("get", "pods/log", namespace, pod):
            answer: Any = self._core.read_namespaced_pod_log(
                pod,
                namespace,
                container=container,
                follow=follow,
                previous=previous,
                timestamps=True,
                since_seconds=since_seconds,
                _preload_content=False,
                _request_timeout=(_TIMEOUT[0], _QUIET_SECONDS),
            )
            try:
                yield from _lines(answer.stream(amt=None, decode_content=False))
            finally:
                answer.close()

    @contextlib.contextmanager
    def _asking(self, verb: str, resource: str, namespace: str | None, name: str = "") -> Iterator[None]:
        """Turns what the client raises into our errors."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except (ApiException, HTTPError) as error:
            raise explain(Request(self.server, verb, resource, namespace, name), error) from error

    def _similar(self, namespace: str, name: str) -> str:
        """A hint for a mistyped name; nothing where listing is not allowed."""
        try:
            names = sorted(str(item["metadata"]["name"]) for item in self.runs(namespace))
        except TandemError:
            return ""
        if not names:
            return "; there are no runs in it (tandem list -A shows those of all namespaces)"
        close = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
        return f"; did you mean {', '.join(close)}?" if close else f"; there are: {', '.join(names[:10])}"


def _path(namespace: str) -> tuple[str, str, str, str]:
    return GROUP, VERSION, namespace, RUNS


def _options() -> dict[str, Any]:
    return {"_request_timeout": _TIMEOUT}


def _json(answer: Any) -> Resource:
    with contextlib.closing(answer):
        return cast(Resource, json.loads(answer.data))


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    """Whole lines as they come; the last one also without its end."""
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.decode(errors="replace")
    if rest:
        yield rest.decode(errors="replace")
