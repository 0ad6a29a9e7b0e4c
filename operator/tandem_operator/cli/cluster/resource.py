"""A run as the cluster has it, read for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from tandem_api.conditions import SUCCEEDED, find
from tandem_api.errors import TandemError
from tandem_api.layout import RunLayout
from tandem_api.v1alpha1 import OptimizationRun
from tandem_api.v1alpha1.run import ManifestError, parse_run
from tandem_operator.cli.cluster.client import Resource
from tandem_operator.cli.invocation import program


def read(resource: Resource) -> OptimizationRun:
    """The run. Raises TandemError when it is one of another version of Tandem."""
    try:
        return parse_run(resource)
    except ManifestError as error:
        name = resource.get("metadata", {}).get("name")
        raise TandemError(
            f"this version of tandem does not understand the run {name!r} "
            f"({program()} status {name} -o yaml shows it):\n{error}"
        ) from error


def has_ended(run: OptimizationRun) -> bool:
    """For better or worse."""
    succeeded = find(run.status.conditions, SUCCEEDED)
    return succeeded is not None and succeeded.status != "Unknown"


@dataclass(frozen=True)
class Outline:
    """What can be told of any run without a schema: of one of another version, and of one that the operator refuses."""

    uid: str
    phase: str
    has_ended: bool
    """For better or worse."""
    is_suspended: bool
    """By its spec."""
    objects: str | None
    """Where its objects lie in S3; None: it has none."""
    leaves_objects: bool
    """Whether they stay when the run is deleted."""


def outline(resource: Resource) -> Outline:
    """The little that ending or holding a run takes."""
    metadata, spec, status = resource["metadata"], resource.get("spec") or {}, resource.get("status") or {}
    summary: dict[str, Any] = next((c for c in status.get("conditions") or [] if c.get("type") == SUCCEEDED), {})
    storage = spec.get("storage") or {}
    s3 = storage.get("s3") or {}
    layout = RunLayout(s3.get("prefix") or "", metadata["namespace"], metadata["name"], metadata["uid"])
    return Outline(
        uid=metadata["uid"],
        phase=status.get("phase") or "Pending",
        has_ended=summary.get("status") in ("True", "False"),
        is_suspended=spec.get("suspend") is True,
        objects=f"s3://{s3['bucket']}/{layout.root}" if s3.get("bucket") else None,
        leaves_objects=storage.get("deletionPolicy") != "Delete",
    )
