"""`tandem list`, and `tandem status` of a run on a cluster."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import typer
import yaml
from rich.console import Console
from rich.table import Table
from rich.text import Text

from tandem_api.errors import ConfigurationError
from tandem_operator.cli.cluster.access import Access, connect
from tandem_operator.cli.cluster.client import Cluster, Resource
from tandem_operator.cli.cluster.resource import age, read, without_bookkeeping
from tandem_operator.cli.narration import short
from tandem_operator.cli.show import console, print_run

_GAP = 2
#: What is left of a strategy when the terminal is narrow.
_SHORTEST_STRATEGY = 10


def show_list(access: Access, *, everywhere: bool, output: str | None) -> None:
    """Print the runs of a namespace, or of all."""
    if everywhere and access.namespace is not None:
        raise ConfigurationError("-n and -A exclude each other: one namespace, or all")
    cluster = connect(access.kubeconfig, access.context)
    namespace = None if everywhere else access.namespace or cluster.namespace
    items = [without_bookkeeping(item) for item in cluster.runs(namespace)]
    if output is not None:
        print_document({"apiVersion": "v1", "kind": "List", "items": items}, output)
        return
    if not items:
        where = f"in namespace {namespace}" if namespace is not None else "in any namespace"
        typer.echo(f"there are no runs {where}", err=True)
        return
    out = console()
    out.print(run_table(items, out.width, datetime.now(UTC), with_namespace=everywhere))


def show_cluster_run(cluster: Cluster, namespace: str, name: str, output: str | None) -> None:
    """Print a run's state, or its whole resource as yaml or json."""
    resource = cluster.get(namespace, name)
    if output is not None:
        print_document(without_bookkeeping(resource), output)
        return
    run = read(resource)
    out = console()
    print_run(out, run)
    _print_end(out, resource)
    if run.status.result is not None:
        out.print(f"result      {run.status.result.uri}", markup=False, soft_wrap=True)


def print_document(document: Any, output: str) -> None:
    """As `yaml` or `json`, to be read by other programs."""
    if output == "json":
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        typer.echo(yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120), nl=False)


def run_table(items: Sequence[Resource], width: int, now: datetime, *, with_namespace: bool) -> Table:
    """The CRD's printer columns. Names are never cut; a strategy is, where the lines would be too long."""
    names = ["NAME", "STRATEGY", "STEP", "STAGE", "BEST", "SUCCEEDED", "AGE"]
    names = ["NAMESPACE", *names] if with_namespace else names
    rows = [_cells(item, now, with_namespace) for item in items]
    widths = [max(len(cell) for cell in column) for column in zip(names, *rows, strict=True)]
    strategy = names.index("STRATEGY")
    spare = width - sum(widths) - _GAP * (len(widths) - 1) + widths[strategy]
    table = Table(box=None, padding=(0, _GAP, 0, 0), pad_edge=False, header_style="bold", collapse_padding=True)
    for index, name in enumerate(names):
        if index == strategy:
            table.add_column(name, no_wrap=True, overflow="ellipsis", max_width=max(_SHORTEST_STRATEGY, spare))
        else:
            table.add_column(name, no_wrap=name not in ("NAME", "NAMESPACE"), overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))
    return table


def _cells(item: Resource, now: datetime, with_namespace: bool) -> list[str]:
    """Read without a schema, so that one run of another version does not hide all others."""
    metadata, status = item.get("metadata") or {}, item.get("status") or {}
    step, best = status.get("step") or {}, status.get("best") or {}
    succeeded: dict[str, Any] = next((c for c in status.get("conditions") or [] if c.get("type") == "Succeeded"), {})
    return [
        *([str(metadata.get("namespace", ""))] if with_namespace else []),
        str(metadata.get("name", "")),
        str(status.get("strategy") or ""),
        str(step.get("index", "")),
        str(step.get("stage") or ""),
        short(best["score"]) if best.get("score") else "",
        str(succeeded.get("status", "")),
        age(metadata.get("creationTimestamp"), now),
    ]


def _print_end(out: Console, resource: Resource) -> None:
    if resource["metadata"].get("deletionTimestamp"):
        out.print("deletion    asked for; the run goes when what it holds outside of the cluster is settled")
