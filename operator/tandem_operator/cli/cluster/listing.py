"""`tandem list`: the runs of a namespace or of all, and with `--watch` how they go on."""

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
from tandem_operator.cli.cluster.client import Cluster, Resource, runs_path
from tandem_operator.cli.cluster.failures import RUNS
from tandem_operator.cli.cluster.following import follow
from tandem_operator.cli.cluster.output import print_objects
from tandem_operator.cli.errors import EXIT_DONE, EXIT_INTERRUPTED
from tandem_operator.cli.terminal import console
from tandem_operator.cli.text import age, short

_GAP = 2
#: What is left of a strategy when the terminal is narrow.
_SHORTEST_STRATEGY = 10
#: As wide as any terminal: with `-o wide` lines are as long as they are.
_UNLIMITED = 10_000
#: What may still come, when rows follow that nobody has seen yet.
_ROOM = {"STEP": 4, "STAGE": 8, "BEST": 5, "SUCCEEDED": 9, "TEST": 5, "AGE": 4}


def show_list(access: Access, *, everywhere: bool, selector: str | None, output: str | None, watch: bool) -> int:
    """Print the runs of a namespace, or of all. Returns the exit code."""
    if everywhere and access.namespace is not None:
        raise ConfigurationError("-n and -A exclude each other: one namespace, or all")
    if watch and output not in (None, "wide"):
        raise ConfigurationError(f"--watch goes on with rows of a table; drop it, or -o {output}")
    cluster = connect(access.kubeconfig, access.context)
    namespace = None if everywhere else access.namespace or cluster.namespace
    items = cluster.runs(namespace, selector)
    if output not in (None, "wide"):
        print_objects(items, str(output))
        return EXIT_DONE
    if not items:
        where = f"in namespace {namespace}" if namespace is not None else "in any namespace"
        typer.echo(f"there are no runs {where}{f' with {selector}' if selector else ''}", err=True)
    rows = Rows(wide=output == "wide", with_namespace=everywhere)
    if items:
        rows.print(items, with_room=watch)
    if not watch:
        return EXIT_DONE
    try:
        return _go_on(cluster, namespace, selector, items, rows)
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def _go_on(cluster: Cluster, namespace: str | None, selector: str | None, items: Sequence[Resource], rows: Rows) -> int:
    for item in follow(cluster, runs_path(namespace), RUNS, namespace, items, labelSelector=selector):
        rows.print([item], with_room=True)
    return EXIT_DONE


class Rows:
    """A table that may grow: later rows stand below earlier ones."""

    def __init__(self, *, wide: bool, with_namespace: bool) -> None:
        self._wide = wide
        self._with_namespace = with_namespace
        self._widths: list[int] = []

    def print(self, items: Sequence[Resource], *, with_room: bool = False) -> None:
        """These runs; the columns' names before the first of them."""
        # With `-o wide` a line is as long as it is, as kubectl's are.
        out = Console(highlight=False, width=_UNLIMITED) if self._wide else console()
        names = columns(wide=self._wide, with_namespace=self._with_namespace)
        rows = [cells(item, datetime.now(UTC), names) for item in items]
        is_first = not self._widths
        if is_first:
            least = [_ROOM.get(name, 0) if with_room else 0 for name in names]
            self._widths = [
                max(room, *(len(cell) for cell in column))
                for room, column in zip(least, zip(names, *rows, strict=True), strict=True)
            ]
        out.print(run_table(names, rows, self._widths, out.width, with_names=is_first))


def columns(*, wide: bool, with_namespace: bool) -> list[str]:
    """The CRD's printer columns, with `wide` those that kubectl shows with `-o wide`, too."""
    more = ["TEST", "REASON", "PHASE"] if wide else []
    first = ["NAMESPACE"] if with_namespace else []
    return [*first, "NAME", "STRATEGY", "STEP", "STAGE", "BEST", "SUCCEEDED", *more, "AGE"]


def run_table(
    names: Sequence[str],
    rows: Sequence[Sequence[str]],
    widths: Sequence[int],
    width: int,
    *,
    with_names: bool = True,
) -> Table:
    """Names of runs are never cut; a strategy is, where the lines would be too long."""
    strategy = names.index("STRATEGY")
    spare = width - sum(widths) - _GAP * (len(widths) - 1) + widths[strategy]
    table = Table(
        box=None,
        padding=(0, _GAP, 0, 0),
        pad_edge=False,
        header_style="bold",
        collapse_padding=True,
        show_header=with_names,
    )
    for index, (name, least) in enumerate(zip(names, widths, strict=True)):
        if index == strategy:
            most = max(_SHORTEST_STRATEGY, spare)
            table.add_column(name, no_wrap=True, overflow="ellipsis", min_width=min(least, most), max_width=most)
        elif name in ("NAME", "NAMESPACE"):
            table.add_column(name, overflow="fold", min_width=least if sum(widths) <= width else None)
        else:
            table.add_column(name, no_wrap=True, min_width=least)
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def cells(item: Resource, now: datetime, names: Sequence[str]) -> list[str]:
    """Read without a schema, so that one run of another version does not hide all others."""
    metadata, status = item.get("metadata") or {}, item.get("status") or {}
    step, best, test = status.get("step") or {}, status.get("best") or {}, status.get("test") or {}
    succeeded: dict[str, Any] = next((c for c in status.get("conditions") or [] if c.get("type") == "Succeeded"), {})
    known = {
        "NAMESPACE": metadata.get("namespace"),
        "NAME": metadata.get("name"),
        "STRATEGY": status.get("strategy"),
        "STEP": step.get("index"),
        "STAGE": step.get("stage"),
        "BEST": short(best["score"]) if best.get("score") else None,
        "SUCCEEDED": succeeded.get("status"),
        "TEST": short(test["score"]) if test.get("score") else None,
        "REASON": succeeded.get("reason"),
        "PHASE": status.get("phase"),
        "AGE": age(metadata.get("creationTimestamp"), now),
    }
    return ["" if known[name] is None else str(known[name]) for name in names]
