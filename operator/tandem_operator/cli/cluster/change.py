"""`tandem cancel`, `tandem suspend`, `tandem resume`."""

from __future__ import annotations

import typer

from tandem_api.v1alpha1 import OptimizationRun
from tandem_operator.cli.cluster.access import Access, connect
from tandem_operator.cli.cluster.resource import has_ended, objects, read
from tandem_operator.cli.errors import EXIT_DONE, EXIT_FAILED
from tandem_operator.cli.invocation import program


def cancel(name: str, access: Access, *, is_confirmed: bool) -> int:
    """Delete a run, after a question unless that is answered already. Returns the exit code."""
    cluster = connect(access.kubeconfig, access.context)
    namespace = access.namespace or cluster.namespace
    resource = cluster.get(namespace, name)
    if resource["metadata"].get("deletionTimestamp"):
        typer.echo(f"{name} in namespace {namespace} is being deleted already")
        return EXIT_DONE
    run = read(resource)
    if not is_confirmed:
        typer.echo(f"{name} in namespace {namespace} is at {run.status.phase}. {_fate(run)}", err=True)
        try:
            is_confirmed = typer.confirm("Delete it?", err=True)
        except typer.Abort:
            typer.echo(err=True)
        if not is_confirmed:
            typer.echo("nothing was deleted (--yes deletes without a question)", err=True)
            return EXIT_FAILED
    cluster.delete(namespace, name, run.metadata.uid)
    waits = run.spec.storage is not None and run.spec.storage.deletion_policy == "Delete"
    typer.echo(f"{name} in namespace {namespace} {'is being deleted' if waits else 'is deleted'}. {_fate(run)}")
    return EXIT_DONE


def set_suspend(name: str, access: Access, *, suspend: bool) -> int:
    """Hold a run, or let it go on. Returns the exit code."""
    cluster = connect(access.kubeconfig, access.context)
    namespace = access.namespace or cluster.namespace
    run = read(cluster.get(namespace, name))
    if has_ended(run):
        typer.echo(f"{name} has ended ({run.status.phase}); there is nothing to {'suspend' if suspend else 'resume'}")
        return EXIT_FAILED
    if run.spec.suspend == suspend:
        typer.echo(f"{name} {'is suspended already' if suspend else 'is not suspended'}")
        return EXIT_DONE
    cluster.patch(namespace, name, {"spec": {"suspend": suspend}})
    if suspend:
        typer.echo(f"{name} stops serving and training and keeps everything")
        typer.echo(f"to go on: {program()} resume {name} -n {namespace}")
    else:
        typer.echo(f"{name} goes on\nto watch it: {program()} watch {name} -n {namespace}")
    return EXIT_DONE


def _fate(run: OptimizationRun) -> str:
    """What becomes of the run's objects in S3."""
    storage, where = run.spec.storage, objects(run)
    if storage is None or where is None:
        return "It has no objects in S3."
    if storage.deletion_policy == "Delete":
        return f"Its objects in {where} are removed with it (spec.storage.deletionPolicy: Delete)."
    return f"Its objects in {where} are kept (spec.storage.deletionPolicy: Retain)."
