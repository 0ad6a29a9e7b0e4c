"""`tandem status`: a run in a folder or on a cluster, wherever it is."""

from __future__ import annotations

from pathlib import Path

from tandem_api.errors import TandemError
from tandem_operator.cli.cluster.access import Access, connect
from tandem_operator.cli.show import NoSuchRunError, show_status


def show_status_anywhere(name: str, access: Access, output: str | None) -> None:
    """The local run of that name, unless a cluster is named; the cluster's where there is none. The error tells both
    places."""
    absent: NoSuchRunError | None = None
    if not access.is_given:
        try:
            show_status(name, output)
            return
        except NoSuchRunError as error:
            if "/" in name or Path(name).suffix:
                raise
            absent = error
    # Only now: reading a folder needs no Kubernetes client.
    from tandem_operator.cli.cluster.show import show_cluster_run

    try:
        cluster = connect(access.kubeconfig, access.context)
        show_cluster_run(cluster, access.namespace or cluster.namespace, name, output)
    except TandemError as error:
        if absent is None:
            raise
        raise type(error)(f"{absent}\nOn a cluster: {error}") from error
