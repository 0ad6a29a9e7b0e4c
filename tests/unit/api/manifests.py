"""Manifests for the tests of the resource."""

from __future__ import annotations

from typing import Any

from tandem_api.v1alpha1.crd import schema_of
from tandem_api.v1alpha1.prompt_optimizers import TYPES

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


#: A value for those fields of prompt optimizers whose schema does not say one.
_VALUES: dict[str, Any] = {"threshold": "0.5", "temperature": "1", "class": "SIMBA", "teacher": {"entrypoint": "a:b"}}


def optimizer(kind: str, *names: str) -> dict[str, Any]:
    """A valid promptOptimizer of that type with these fields, or with what is required only."""
    schema = schema_of(TYPES[kind])
    return {"type": kind, **{name: value_of(name) for name in (*schema.get("required", ()), *names)}}


def value_of(name: str) -> Any:
    """A value of that field of prompt optimizers, as every type that has it takes it."""
    if name in _VALUES:
        return _VALUES[name]
    field = next(schema_of(model)["properties"][name] for model in TYPES.values() if name in names_of(model))
    made = {"integer": field.get("minimum"), "boolean": True, "object": {}}
    return field["enum"][0] if "enum" in field else made[field["type"]]


def names_of(model: Any) -> list[str]:
    """The names of a model's fields, as they are written."""
    return [field.alias for field in model.model_fields.values()]
