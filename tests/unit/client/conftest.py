"""The command line's fake cluster, for the client; no test may reach one of the person who runs it."""

from __future__ import annotations

from tests.unit.operator.cli.conftest import cluster, no_cluster

__all__ = ["cluster", "no_cluster"]
