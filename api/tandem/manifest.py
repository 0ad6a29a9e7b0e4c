"""A run from a manifest."""

from __future__ import annotations

from pathlib import Path

from tandem_api.v1alpha1 import OptimizationRun


def read_manifest(path: str | Path) -> OptimizationRun:
    """The run that a manifest describes, as it is written: relative `file:` addresses stay so (`run_local` takes the
    folder where they start). Raises ConfigurationError with everything that is wrong, by line and field."""
    from tandem_operator.cli.manifest import parse_as_written
    from tandem_operator.cli.manifest import read_manifest as read

    return parse_as_written(read(Path(path)))
