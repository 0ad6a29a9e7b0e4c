"""Kubernetes objects against the API's own types, as the official client knows them, without a server."""

from __future__ import annotations

from typing import Any

from kubernetes import client
from pydantic import ValidationError


def complaints(document: dict[str, Any]) -> list[str]:
    """What the API server would refuse or drop: unknown fields, missing ones, wrong types, each with its path."""
    version = document["apiVersion"].rsplit("/", 1)[-1].capitalize()
    model = getattr(client, f"{version}{document['kind']}")
    try:
        model.model_validate(document)
    except ValidationError as error:
        return [f"{document['kind']}.{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
    return []
