"""A run as the cluster has it, read for people."""

from __future__ import annotations

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


def objects(run: OptimizationRun) -> str | None:
    """Where the run's objects lie in S3."""
    storage = run.spec.storage
    if storage is None:
        return None
    metadata = run.metadata
    layout = RunLayout(storage.s3.prefix, metadata.namespace, metadata.name, metadata.uid)
    return f"s3://{storage.s3.bucket}/{layout.root}"
