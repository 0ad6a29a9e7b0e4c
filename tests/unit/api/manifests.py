"""Manifests for the tests of the resource."""

from __future__ import annotations

from typing import Any

BASE: dict[str, Any] = {
    "program": {"inline": {"signature": "review -> sentiment"}},
    "metric": {"builtin": "exact-match", "field": "sentiment"},
    "data": {"train": {"uri": "file:train.jsonl"}, "inputs": ["review"]},
    "model": {"uri": "hf://org/name"},
}


def document(**spec: Any) -> dict[str, Any]:
    """A valid manifest; keyword arguments replace fields of its spec, and None removes one."""
    fields = {name: value for name, value in {**BASE, **spec}.items() if value is not None}
    return {
        "apiVersion": "tandem.dev/v1alpha1",
        "kind": "OptimizationRun",
        "metadata": {"name": "reviews"},
        "spec": fields,
    }
