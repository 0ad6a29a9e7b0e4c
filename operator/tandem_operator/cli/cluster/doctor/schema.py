"""The fields of OptimizationRuns: those of this version, and those that a cluster knows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from tandem_operator.cli.cluster.client import Resource


def own_definition() -> dict[str, Any]:
    from tandem_api.v1alpha1.crd import render_crd

    return render_crd()


def fields_of(definition: Resource) -> frozenset[str]:
    """`spec.storage.s3.bucket` and all others of v1alpha1, of spec and status."""
    versions = definition["spec"].get("versions") or []
    version: Resource = next((one for one in versions if one["name"] == "v1alpha1"), {})
    return frozenset(_paths(((version.get("schema") or {}).get("openAPIV3Schema")) or {}, ""))


def _paths(schema: Resource, before: str) -> Iterator[str]:
    for name, inner in (schema.get("properties") or {}).items():
        path = f"{before}.{name}".lstrip(".")
        yield path
        yield from _paths(inner, path)
    for key in ("items", "additionalProperties"):
        if isinstance(schema.get(key), dict):
            yield from _paths(schema[key], f"{before}[]")
