"""`tandem status` of a run on a cluster."""

from __future__ import annotations

from rich.console import Console

from tandem_operator.cli.cluster.client import Cluster, Resource
from tandem_operator.cli.cluster.output import print_object
from tandem_operator.cli.cluster.resource import read
from tandem_operator.cli.tables import print_run
from tandem_operator.cli.terminal import console


def show_cluster_run(cluster: Cluster, namespace: str, name: str, output: str | None) -> None:
    """Print a run's state, or its whole resource as yaml or json, or its name."""
    resource = cluster.get(namespace, name)
    if output is not None:
        print_object(resource, output)
        return
    run = read(resource)
    out = console()
    print_run(out, run)
    _print_end(out, resource)
    if run.status.result is not None:
        out.print(f"result      {run.status.result.uri}", markup=False, soft_wrap=True)


def _print_end(out: Console, resource: Resource) -> None:
    if resource["metadata"].get("deletionTimestamp"):
        out.print("deletion    asked for; the run goes when what it holds outside of the cluster is settled")
