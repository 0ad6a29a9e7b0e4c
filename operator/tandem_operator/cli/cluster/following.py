"""Objects as they are and as they change, for as long as somebody looks: what `--watch` prints."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import typer

from tandem_operator.cli.cluster.client import Cluster, Resource
from tandem_operator.cli.cluster.failures import UnreachableError
from tandem_operator.cli.cluster.patience import Patience

#: Between two watches, so that a server that ends each of them at once is not overrun.
_BETWEEN_SECONDS = 0.2


def follow(
    cluster: Cluster,
    path: str,
    resource: str,
    namespace: str | None,
    known: Iterable[Resource],
    sleep: Callable[[float], None] = time.sleep,
    **query: Any,
) -> Iterator[Resource]:
    """Each object of a list that is new or has changed since `known`, over lost connections, without end. Raises
    TandemError when no more will come."""
    versions = {_uid(item): _version(item) for item in known}
    patience = Patience()
    while True:
        try:
            for item in _session(cluster, path, resource, namespace, query):
                if item is None:
                    if patience.is_tried:
                        typer.echo("connected again", err=True)
                    patience.restored()
                elif versions.get(_uid(item)) != _version(item):
                    versions[_uid(item)] = _version(item)
                    yield item
            pause = _BETWEEN_SECONDS
        except UnreachableError as error:
            if not patience.is_tried:
                typer.echo(f"warning: connection lost, trying again: {error}", err=True)
            pause = patience.pause_after(error)
        sleep(pause)


def _session(
    cluster: Cluster, path: str, resource: str, namespace: str | None, query: dict[str, Any]
) -> Iterator[Resource | None]:
    """None: the connection is there."""
    with cluster.asking("list", resource, namespace):
        page: Resource = cluster.api.get(path, query)
    yield None
    yield from page.get("items") or []
    for kind, item in cluster.changes(path, resource, namespace, page, **query):
        if kind in ("ADDED", "MODIFIED"):
            yield item


def _uid(item: Resource) -> str:
    return str(item["metadata"]["uid"])


def _version(item: Resource) -> str:
    return str(item["metadata"]["resourceVersion"])
