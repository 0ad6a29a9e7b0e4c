"""Commands about a run wherever it is: in a folder, or on a cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from tandem_api.errors import ConfigurationError, TandemError
from tandem_operator.cli.cluster.access import Access, connect
from tandem_operator.cli.cluster.failures import UnreachableError


def show_status_anywhere(name: str, access: Access, output: str | None) -> None:
    """`tandem status`."""

    def here() -> None:
        from tandem_operator.cli.show import show_status

        show_status(name, output)

    def on_the_cluster() -> None:
        # Only now: reading a folder needs no Kubernetes client.
        from tandem_operator.cli.cluster.show import show_cluster_run

        cluster = connect(access.kubeconfig, access.context)
        show_cluster_run(cluster, access.namespace or cluster.namespace, name, output)

    anywhere(name, access, here, on_the_cluster)


def show_report_anywhere(name: str, access: Access, *, out: Path | None, endpoint: str | None, open_it: bool) -> None:
    """`tandem report`."""
    from tandem_operator.cli.cluster.report import copy_report, fetch_report

    anywhere(
        name,
        access,
        lambda: copy_report(name, out=out, open_it=open_it),
        lambda: fetch_report(name, access, out=out, endpoint=endpoint, open_it=open_it),
    )


def anywhere(name: str, access: Access, here: Callable[[], None], on_the_cluster: Callable[[], None]) -> None:
    """The local run of that name, unless a cluster is named; the cluster's where there is none. The error tells both
    places."""
    absent: TandemError | None = None
    if not access.is_given:
        # Looking at a cluster's run needs nothing of what reads folders.
        from tandem_operator.cli.show import NoSuchRunError

        try:
            here()
            return
        except NoSuchRunError as error:
            if "/" in name or Path(name).suffix:
                raise
            absent = error
    try:
        on_the_cluster()
    except (ConfigurationError, UnreachableError) as error:
        if absent is None:
            raise
        raise type(error)(f"{absent}\nOn a cluster: {error}") from error
