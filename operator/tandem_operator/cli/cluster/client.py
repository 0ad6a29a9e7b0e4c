"""`Cluster`: the few requests that the command line makes, with errors that tell what to do."""

from __future__ import annotations

import contextlib
import difflib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast
from urllib.parse import quote

from tandem_api.errors import ConfigurationError, TandemError
from tandem_operator.cli.cluster.api import MERGE_PATCH, Api
from tandem_operator.cli.cluster.failures import RUNS, ExpiredError, NoSuchObjectError, Request, explain
from tandem_operator.cli.invocation import program

if TYPE_CHECKING:
    from kubernetes.client import ApiClient

#: An object as the API server has it.
Resource = dict[str, Any]

#: Where runs are, said here so that looking at one does not import the models of all of it.
RUNS_API = "/apis/tandem.dev/v1alpha1"
#: A watch ends by itself after this, so that a connection that died silently is noticed: soon after it.
_WATCH_SECONDS = 50
#: A log may say nothing for long; the connection's death is noticed after this.
_QUIET_SECONDS = 300.0
_PAGE = 500
_GONE = 410


@dataclass(frozen=True)
class Tail:
    """The end of a log: its last lines, of which no more than so many bytes, from the first of them on."""

    lines: int
    max_bytes: int


class Cluster:
    """One API server, as one user."""

    def __init__(self, api_client: ApiClient, server: str, namespace: str) -> None:
        """`namespace`: the one that is meant where none is named."""
        self.server = server
        self.namespace = namespace
        self.api = Api(api_client)

    def get(self, namespace: str, name: str) -> Resource:
        """One run. Raises NoSuchObjectError that lists similar names."""
        _require_name(name)
        try:
            with self.asking("get", RUNS, namespace, name):
                return cast(Resource, self.api.get(runs_path(namespace, name)))
        except NoSuchObjectError as error:
            raise NoSuchObjectError(f"{error}{self._similar(namespace, name)}") from error

    def runs(self, namespace: str | None, selector: str | None = None) -> list[Resource]:
        """The runs of a namespace, or of all namespaces; `selector`: labels that they must have."""
        return self._pages(runs_path(namespace), RUNS, namespace, labelSelector=selector)

    def create(self, namespace: str, resource: Resource, *, dry_run: bool = False) -> Resource:
        """A new run. Fields that the installed CRD does not know are refused, not dropped. With `dry_run` the server
        checks everything and stores nothing. Raises AlreadyExistsError."""
        query = {"fieldManager": "tandem", "fieldValidation": "Strict", "dryRun": "All" if dry_run else None}
        with self.asking("create", RUNS, namespace, resource["metadata"]["name"]):
            return cast(Resource, self.api.send("POST", runs_path(namespace), resource, query))

    def patch(self, namespace: str, name: str, changes: Resource) -> Resource:
        """Change the named fields of a run and leave the others (a JSON merge patch)."""
        with self.asking("patch", RUNS, namespace, name):
            query = {"fieldManager": "tandem"}
            return cast(Resource, self.api.send("PATCH", runs_path(namespace, name), changes, query, MERGE_PATCH))

    def delete(self, namespace: str, name: str, uid: str) -> None:
        """Delete the run with that uid, and no other of its name."""
        options = {
            "apiVersion": "v1",
            "kind": "DeleteOptions",
            "preconditions": {"uid": uid},
            "propagationPolicy": "Background",
        }
        with self.asking("delete", RUNS, namespace, name):
            self.api.send("DELETE", runs_path(namespace, name), options)

    def watch(self, namespace: str, name: str) -> Iterator[Resource | None]:
        """The run as it is, and again after each change; None: it is not there. Ends after a while, or when the server
        has forgotten where we are: call it again."""
        chosen = {"fieldSelector": f"metadata.name={name}"}
        with self.asking("list", RUNS, namespace, name):
            page = self.api.get(runs_path(namespace), chosen)
        items = page.get("items") or []
        yield items[0] if items else None
        for kind, item in self.changes(runs_path(namespace), RUNS, namespace, page, **chosen):
            yield None if kind == "DELETED" else item

    def changes(
        self, path: str, resource: str, namespace: str | None, page: Resource, **query: Any
    ) -> Iterator[tuple[str, Resource]]:
        """The kind of each change (ADDED, MODIFIED, DELETED) since that list, and the object after it; for a while."""
        query |= {
            "watch": "true",
            "resourceVersion": page["metadata"]["resourceVersion"],
            "timeoutSeconds": _WATCH_SECONDS,
        }
        with contextlib.suppress(ExpiredError), self.asking("watch", resource, namespace):
            for line in self.api.lines(path, query, quiet_seconds=_WATCH_SECONDS + 10.0, accept="application/json"):
                event = json.loads(line)
                if event["type"] == "ERROR":
                    self._end_of_watch(event["object"])
                    return
                yield event["type"], event["object"]

    def events(self, namespace: str, name: str) -> list[Resource]:
        """What was told of a run of that name."""
        _require_name(name)
        return self._pages(events_path(namespace), "events", namespace, fieldSelector=of_run(name))

    def pods(self, namespace: str, labels: dict[str, str]) -> list[Resource]:
        """All pods with these labels."""
        selector = ",".join(f"{key}={value}" for key, value in labels.items())
        return self._pages(f"/api/v1/namespaces/{quote(namespace)}/pods", "pods", namespace, labelSelector=selector)

    def pod(self, namespace: str, name: str) -> Resource | None:
        """One pod; None: it is not there."""
        try:
            with self.asking("get", "pods", namespace, name):
                return cast(Resource, self.api.get(f"/api/v1/namespaces/{quote(namespace)}/pods/{quote(name)}"))
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
        tail: Tail | None = None,
        quiet_seconds: float = _QUIET_SECONDS,
    ) -> Iterator[str]:
        """A container's log, line by line, each with the time before it; with `follow` until the container ends.

        `tail`: only its end; None: all of it.
        """
        query = {
            "container": container,
            "follow": "true" if follow else None,
            "previous": "true" if previous else None,
            "timestamps": "true",
            "sinceSeconds": since_seconds,
            "tailLines": tail.lines if tail is not None else None,
            "limitBytes": tail.max_bytes if tail is not None else None,
        }
        path = f"/api/v1/namespaces/{quote(namespace)}/pods/{quote(pod)}/log"
        with self.asking("get", "pods/log", namespace, pod):
            yield from self.api.lines(path, query, quiet_seconds=quiet_seconds)

    @contextlib.contextmanager
    def asking(self, verb: str, resource: str, namespace: str | None, name: str = "") -> Iterator[None]:
        """Turns what the client raises into our errors."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            yield
        except (ApiException, HTTPError) as error:
            raise explain(Request(self.server, verb, resource, namespace, name), error) from error
        except json.JSONDecodeError as error:
            raise TandemError(f"{self.server} answers with what is no API server's: {error.doc[:80]!r}") from error

    def _pages(self, path: str, resource: str, namespace: str | None, **query: Any) -> list[Resource]:
        items: list[Resource] = []
        following: str | None = None
        while True:
            with self.asking("list", resource, namespace):
                page = self.api.get(path, {"limit": _PAGE, "continue": following, **query})
            items += page.get("items") or []
            following = page.get("metadata", {}).get("continue") or None
            if following is None:
                return items

    @staticmethod
    def _end_of_watch(status: Resource) -> None:
        """Raises ApiException unless the server has only forgotten where we are."""
        from kubernetes.client import ApiException

        if status.get("code") != _GONE:
            raise ApiException(status=status.get("code"), reason=status.get("message"), body=json.dumps(status))

    def _similar(self, namespace: str, name: str) -> str:
        """A hint for a mistyped name; nothing where listing is not allowed."""
        try:
            names = sorted(str(item["metadata"]["name"]) for item in self.runs(namespace))
        except TandemError:
            return ""
        if not names:
            return f"; there are no runs in it ({program()} list -A shows those of all namespaces)"
        close = difflib.get_close_matches(name, names, n=5, cutoff=0.5)
        return f"; did you mean {', '.join(close)}?" if close else f"; there are: {', '.join(names[:10])}"


def _require_name(name: str) -> None:
    """Raises ConfigurationError for what would be another path of the API server's."""
    if name in ("", ".", "..") or "/" in name:
        folder = f"; {program()} status {name} shows a run in a folder" if name else ""
        raise ConfigurationError(f"found {name!r}; write the name of a run on a cluster, such as reviews{folder}")


def events_path(namespace: str) -> str:
    """Where the events of a namespace are."""
    return f"/api/v1/namespaces/{quote(namespace)}/events"


def of_run(name: str) -> str:
    """The field selector of a run's events."""
    return f"involvedObject.kind=OptimizationRun,involvedObject.name={name}"


def runs_path(namespace: str | None, name: str = "") -> str:
    """Where the runs of a namespace are, or of all, or one of them."""
    place = f"/namespaces/{quote(namespace)}" if namespace is not None else ""
    return f"{RUNS_API}{place}/{RUNS}" + (f"/{quote(name)}" if name else "")
