"""`tandem cancel`, `tandem suspend`, `tandem resume`."""

from __future__ import annotations

import typer

from tandem_operator.cli.cluster.access import Access, connect
from tandem_operator.cli.cluster.resource import Outline, outline
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
    run = outline(resource)
    if not is_confirmed:
        typer.echo(f"{name} in namespace {namespace} is at {run.phase}. {_fate(run)}", err=True)
        try:
            is_confirmed = typer.confirm("Delete it?", err=True)
        except typer.Abort:
            typer.echo(err=True)
        if not is_confirmed:
            typer.echo("nothing was deleted (--yes deletes without a question)", err=True)
            return EXIT_FAILED
    cluster.delete(namespace, name, run.uid)
    told = "is deleted" if run.leaves_objects else "is being deleted"
    typer.echo(f"{name} in namespace {namespace} {told}. {_fate(run)}")
    return EXIT_DONE


def set_suspend(name: str, access: Access, *, suspend: bool) -> int:
    """Hold a run, or let it go on. Returns the exit code."""
    cluster = connect(access.kubeconfig, access.context)
    namespace = access.namespace or cluster.namespace
    run = outline(cluster.get(namespace, name))
    if run.has_ended:
        typer.echo(f"{name} has ended ({run.phase}); there is nothing to {'suspend' if suspend else 'resume'}")
        return EXIT_FAILED
    if run.is_suspended == suspend:
        typer.echo(f"{name} {'is suspended already' if suspend else 'is not suspended'}")
        return EXIT_DONE
    cluster.patch(namespace, name, {"spec": {"suspend": suspend}})
    again = f"{name}{access.at(namespace).arguments}"
    if suspend:
        typer.echo(f"{name} stops serving and training and keeps everything")
        typer.echo(f"to go on: {program()} resume {again}")
    else:
        typer.echo(f"{name} goes on\nto watch it: {program()} watch {again}")
    return EXIT_DONE


def _fate(run: Outline) -> str:
    """What becomes of the run's objects in S3."""
    if run.objects is None:
        return "It has no objects in S3."
    if run.leaves_objects:
        return f"Its objects in {run.objects} are kept (spec.storage.deletionPolicy: Retain)."
    return f"Its objects in {run.objects} are removed with it (spec.storage.deletionPolicy: Delete)."
