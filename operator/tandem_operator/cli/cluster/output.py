"""Objects printed for other programs, as kubectl prints them: `-o json|yaml|name`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import typer
import yaml

from tandem_operator.cli.cluster.client import Resource

_RUN = "optimizationrun.tandem.dev"


def print_document(document: Any, output: str) -> None:
    """As `yaml` or `json`."""
    if output == "json":
        typer.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        typer.echo(yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120), nl=False)


def print_object(resource: Resource, output: str, kind: str = _RUN) -> None:
    """One object, as `yaml`, `json` or `name`."""
    if output == "name":
        typer.echo(f"{kind}/{resource['metadata']['name']}")
    else:
        print_document(without_bookkeeping(resource), output)


def print_objects(items: Sequence[Resource], output: str, kind: str = _RUN) -> None:
    """Several, as a list, or a name each."""
    if output == "name":
        for item in items:
            print_object(item, output, kind)
    else:
        print_document({"apiVersion": "v1", "kind": "List", "items": list(map(without_bookkeeping, items))}, output)


def without_bookkeeping(resource: Resource) -> Resource:
    """The object as kubectl prints it."""
    metadata = {key: value for key, value in resource.get("metadata", {}).items() if key != "managedFields"}
    return {**resource, "metadata": metadata}
