"""A run as the cluster has it, read for people."""

from __future__ import annotations

from datetime import UTC, datetime

from tandem_api.conditions import SUCCEEDED, find
from tandem_api.errors import TandemError
from tandem_api.layout import RunLayout
from tandem_api.v1alpha1 import OptimizationRun
from tandem_api.v1alpha1.run import ManifestError, parse_run
from tandem_operator.cli.cluster.client import Resource


def read(resource: Resource) -> OptimizationRun:
    """The run. Raises TandemError when it is one of another version of Tandem."""
    try:
        return parse_run(resource)
    except ManifestError as error:
        name = resource.get("metadata", {}).get("name")
        raise TandemError(
            f"this version of tandem does not understand the run {name!r} (tandem status {name} -o yaml shows it):\n"
            f"{error}"
        ) from error


def without_bookkeeping(resource: Resource) -> Resource:
    """The resource as kubectl prints it."""
    metadata = {key: value for key, value in resource.get("metadata", {}).items() if key != "managedFields"}
    return {**resource, "metadata": metadata}


def has_ended(run: OptimizationRun) -> bool:
    """For better or worse."""
    succeeded = find(run.status.conditions, SUCCEEDED)
    return succeeded is not None and succeeded.status != "Unknown"


def objects(run: OptimizationRun) -> str | None:
    """Where the run's objects lie in S3."""
    storage = run.spec.storage
    if storage is None:
        return None
    metadata = run.metadata
    layout = RunLayout(storage.s3.prefix, metadata.namespace, metadata.name, metadata.uid)
    return f"s3://{storage.s3.bucket}/{layout.root}"


def age(created: str | None, now: datetime) -> str:
    """`42s`, `5m`, `3h`, `2d`, as kubectl prints it; `created` is a resource's creationTimestamp."""
    if not created:
        return ""
    seconds = int((now - datetime.fromisoformat(created).astimezone(UTC)).total_seconds())
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "m"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{max(0, seconds) // size}{unit}"
    return f"{seconds // 86_400}d"
