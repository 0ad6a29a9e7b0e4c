"""`tandem events`: what was told of a run, the oldest first."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tandem_api.errors import ConfigurationError
from tandem_operator.cli.cluster.access import Access, connect
from tandem_operator.cli.cluster.client import Cluster, Resource, events_path, of_run
from tandem_operator.cli.cluster.following import follow
from tandem_operator.cli.cluster.output import print_objects
from tandem_operator.cli.errors import EXIT_DONE, EXIT_INTERRUPTED
from tandem_operator.cli.terminal import console
from tandem_operator.cli.text import age

_UNLIMITED = 10_000
#: (name, width): rows that come later stand below the earlier ones.
_COLUMNS = (("LAST SEEN", 9), ("TYPE", 7), ("REASON", 17))
_WIDE_COLUMNS = (("FIRST SEEN", 10), ("COUNT", 5), ("SOURCE", 15))


def show_events(name: str, access: Access, *, output: str | None, watch: bool) -> int:
    """Print the events of a run, also of one that is gone. Returns the exit code."""
    if watch and output not in (None, "wide"):
        raise ConfigurationError(f"--watch goes on with rows of a table; drop it, or -o {output}")
    cluster = connect(access.kubeconfig, access.context)
    namespace = access.namespace or cluster.namespace
    found = sorted(cluster.events(namespace, name), key=_order)
    if not found:
        cluster.get(namespace, name)  # An error for a name that is no run's.
    if output not in (None, "wide"):
        print_objects(found, str(output), "event")
        return EXIT_DONE
    if not found:
        typer.echo(f"there are no events of {name} in namespace {namespace}: a cluster forgets them, mostly after an "
                   "hour", err=True)  # fmt: skip
    is_wide = output == "wide"
    if found:
        _print(found, is_wide=is_wide)
    if not watch:
        return EXIT_DONE
    try:
        _go_on(cluster, namespace, name, found, is_wide=is_wide)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    return EXIT_DONE


def _go_on(cluster: Cluster, namespace: str, name: str, found: Sequence[Resource], *, is_wide: bool) -> None:
    with_names = not found
    chosen: dict[str, Any] = {"fieldSelector": of_run(name)}
    for event in follow(cluster, events_path(namespace), "events", namespace, found, **chosen):
        _print([event], is_wide=is_wide, with_names=with_names)
        with_names = False


def _print(found: Sequence[Resource], *, is_wide: bool, with_names: bool = True) -> None:
    out = Console(highlight=False, width=_UNLIMITED) if is_wide else console()
    out.print(event_table(found, datetime.now(UTC), is_wide=is_wide, with_names=with_names))


def event_table(found: Sequence[Resource], now: datetime, *, is_wide: bool, with_names: bool = True) -> Table:
    """One row for each event; the message is wrapped, and with `is_wide` it is not."""
    table = Table(
        box=None, padding=(0, 2, 0, 0), pad_edge=False, header_style="bold", show_header=with_names, expand=False
    )
    for title, width in (*_COLUMNS, *(_WIDE_COLUMNS if is_wide else ())):
        table.add_column(title, min_width=width, max_width=None if is_wide else max(width, 20), overflow="fold")
    table.add_column("MESSAGE", overflow="fold")
    for event in found:
        table.add_row(*_cells(event, now, is_wide=is_wide))
    return table


def _order(event: Resource) -> tuple[str, int]:
    """By the second, and within one as they were stored."""
    version = str(event["metadata"].get("resourceVersion") or "")
    return last_seen(event), int(version) if version.isdecimal() else 0


def last_seen(event: Resource) -> str:
    """When it was told last, as RFC 3339 in UTC: the texts sort as the times do."""
    series = event.get("series") or {}
    moments = (event.get("lastTimestamp"), series.get("lastObservedTime"), event.get("eventTime"), _first_seen(event))
    return next(str(moment) for moment in moments if moment)


def _first_seen(event: Resource) -> str:
    return str(event.get("firstTimestamp") or event.get("eventTime") or event["metadata"].get("creationTimestamp"))


def _cells(event: Resource, now: datetime, *, is_wide: bool) -> list[Text]:
    count = int(event.get("count") or (event.get("series") or {}).get("count") or 1)
    kind = str(event.get("type") or "")
    seen = age(last_seen(event), now)
    first = age(_first_seen(event), now)
    source = str((event.get("source") or {}).get("component") or event.get("reportingComponent") or "")
    often = f" (x{count} over {first})" if count > 1 and not is_wide else ""
    return [
        Text(seen),
        Text(kind, style="yellow" if kind == "Warning" else ""),
        Text(str(event.get("reason") or "")),
        *([Text(first), Text(str(count)), Text(source)] if is_wide else []),
        Text(f"{' '.join(str(event.get('message') or '').split())}{often}"),
    ]
