"""The commands that need a cluster, and their options. What they do is imported only when one is called."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tandem_operator.cli.errors import EXIT_DONE, EXIT_USAGE, fail, reported
from tandem_operator.cli.invocation import program
from tandem_operator.cli.options import (
    Context,
    DoctorOutput,
    Kubeconfig,
    ListFormat,
    Manifest,
    ManifestNamespace,
    Namespace,
    Output,
    OutputFormat,
    RunName,
    Watch,
)

PANEL = "On a cluster"


class Stage(StrEnum):
    """The stages of a step."""

    CHECK = "check"
    EVALUATE = "evaluate"
    OPTIMIZE = "optimize"
    TRACES = "traces"
    TRAIN = "train"
    SELECT_1 = "select-1"
    SELECT_2 = "select-2"
    SELECT_3 = "select-3"
    SELECT_4 = "select-4"
    SELECT_5 = "select-5"
    SELECT_6 = "select-6"
    SELECT_7 = "select-7"
    SELECT_8 = "select-8"


def add_to(app: typer.Typer) -> None:
    """Register the commands."""
    for command, name in (
        (submit, "submit"),
        (list_runs, "list"),
        (watch, "watch"),
        (logs, "logs"),
        (events, "events"),
        (cancel, "cancel"),
        (suspend, "suspend"),
        (resume, "resume"),
        (doctor, "doctor"),
    ):
        app.command(name, rich_help_panel=PANEL)(command)


def submit(
    file: Manifest,
    wait: Annotated[bool, typer.Option("--wait", help="Watch it to its end, as `tandem run` does.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Let the cluster check everything, and create nothing.")
    ] = False,
    output: OutputFormat = None,
    namespace: ManifestNamespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Create the run of a manifest. The same again is no error.

    Exit codes: 0 created or there already, 1 the cluster failed, 2 bad command or manifest; with --wait as `watch`.
    """
    for option, is_given in (("-o", output is not None), ("--dry-run", dry_run)):
        if wait and is_given:
            raise fail(f"--wait shows the run until it ends: drop it, or {option}", EXIT_USAGE)
    code = submit_file(file, namespace, context, kubeconfig, wait=wait, dry_run=dry_run, output=output)
    raise typer.Exit(code)


def submit_file(
    file: Path,
    namespace: str | None,
    context: str | None,
    kubeconfig: Path | None,
    *,
    wait: bool,
    dry_run: bool = False,
    output: Output | None = None,
) -> int:
    """Create the run, and watch it if wanted. Returns the exit code."""
    with reported():
        from tandem_operator.cli.cluster.access import Access
        from tandem_operator.cli.cluster.output import print_object
        from tandem_operator.cli.cluster.submit import submit as submit_run

        access = Access(namespace, context, kubeconfig)
        done = submit_run(file, access, dry_run=dry_run)
        if output is not None:
            print_object(done.resource, output.value)
            return EXIT_DONE
        said = "is submitted to" if done.is_new else "exists already, with the same spec, in"
        said = "would be accepted in" if dry_run and done.is_new else said
        typer.echo(f"{done.name} {said} namespace {done.namespace}")
        if wait:
            from tandem_operator.cli.cluster.watch import watch_run

            return watch_run(done.cluster, done.namespace, done.name, access)
        if not dry_run:
            typer.echo(f"to watch it: {program()} watch {done.name}{access.at(done.namespace).arguments}")
    return EXIT_DONE


def list_runs(
    everywhere: Annotated[bool, typer.Option("--all-namespaces", "-A", help="The runs of all namespaces.")] = False,
    selector: Annotated[
        str | None,
        typer.Option("--selector", "-l", help="Labels that they must have: team=a,stage!=test.", show_default=False),
    ] = None,
    watch: Watch = False,
    output: ListFormat = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """List the runs of a namespace, with where each is and its best score."""
    with reported():
        from tandem_operator.cli.cluster.access import Access
        from tandem_operator.cli.cluster.listing import show_list

        access = Access(namespace, context, kubeconfig)
        form = output.value if output is not None else None
        code = show_list(access, everywhere=everywhere, selector=selector, output=form, watch=watch)
    raise typer.Exit(code)


def watch(name: RunName, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Show a run until it ends. Ctrl-C stops the watching only.

    Exit codes: 0 the run succeeded, 1 it failed (or was deleted, or the cluster is out of reach), 2 bad command,
    130 stopped watching.
    """
    with reported():
        from tandem_operator.cli.cluster.access import Access, connect
        from tandem_operator.cli.cluster.watch import watch_run

        cluster = connect(kubeconfig, context)
        code = watch_run(cluster, namespace or cluster.namespace, name, Access(namespace, context, kubeconfig))
    raise typer.Exit(code)


def logs(
    name: RunName,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on with what comes, also from the next stages' workers.")
    ] = False,
    step: Annotated[
        int | None, typer.Option(min=0, help="Of this step; 0 is the baseline.", show_default=False)
    ] = None,
    stage: Annotated[Stage | None, typer.Option(help="Of this stage.", show_default=False)] = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="Of this attempt.", show_default=False)] = None,
    serving: Annotated[bool, typer.Option("--serving", help="The model server's log instead.")] = False,
    previous: Annotated[
        bool, typer.Option("--previous", help="From before the container's last restart: why it crashed.")
    ] = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print the log of a run's current worker, or of another one, or of the model server."""
    with reported():
        from tandem_operator.cli.cluster.access import Access
        from tandem_operator.cli.cluster.logs import Wanted, show_logs
        from tandem_operator.cli.cluster.pods import Choice

        choice = Choice(step, stage.value if stage is not None else None, attempt)
        access = Access(namespace, context, kubeconfig)
        code = show_logs(name, access, Wanted(choice, serving=serving, previous=previous), follow=follow)
    raise typer.Exit(code)


def events(
    name: RunName,
    watch: Watch = False,
    output: ListFormat = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print what was told of a run, the oldest first: steps, failed attempts, what it waits for."""
    with reported():
        from tandem_operator.cli.cluster.access import Access
        from tandem_operator.cli.cluster.events import show_events

        form = output.value if output is not None else None
        code = show_events(name, Access(namespace, context, kubeconfig), output=form, watch=watch)
    raise typer.Exit(code)


def cancel(
    name: RunName,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Delete a run and release all that it holds, after a question.

    Its objects in S3 are kept or removed as spec.storage.deletionPolicy says (default: kept).
    """
    with reported():
        from tandem_operator.cli.cluster.access import Access
        from tandem_operator.cli.cluster.change import cancel as cancel_run

        code = cancel_run(name, Access(namespace, context, kubeconfig), is_confirmed=yes)
    raise typer.Exit(code)


def suspend(name: RunName, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Stop a run's serving and training, and keep everything, until `resume`."""
    raise typer.Exit(_set_suspend(name, namespace, context, kubeconfig, suspend=True))


def resume(name: RunName, namespace: Namespace = None, context: Context = None, kubeconfig: Kubeconfig = None) -> None:
    """Let a suspended run go on where it was."""
    raise typer.Exit(_set_suspend(name, namespace, context, kubeconfig, suspend=False))


def _set_suspend(
    name: str, namespace: str | None, context: str | None, kubeconfig: Path | None, *, suspend: bool
) -> int:
    with reported():
        from tandem_operator.cli.cluster.access import Access
        from tandem_operator.cli.cluster.change import set_suspend

        return set_suspend(name, Access(namespace, context, kubeconfig), suspend=suspend)


def doctor(
    file: Annotated[
        Path | None,
        typer.Option("--file", "-f", help="Check also what this manifest needs.", show_default=False),
    ] = None,
    operator_namespace: Annotated[
        str | None,
        typer.Option(help="Where the operator is. Default: wherever it is found.", show_default=False),
    ] = None,
    output: Annotated[
        DoctorOutput | None, typer.Option("--output", "-o", help="The findings as JSON.", show_default=False)
    ] = None,
    namespace: ManifestNamespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Check a cluster, and say what to fix: definition, operator, rights, GPUs, images, DNS, quotas, storage.

    Nothing is created or changed. Exit codes: 0 nothing failed, 1 something did, 2 bad command or manifest.
    """
    with reported():
        from tandem_operator.cli.cluster.access import Access
        from tandem_operator.cli.cluster.doctor.command import examine

        access = Access(namespace, context, kubeconfig)
        code = examine(access, file, operator_namespace, as_json=output is not None)
    raise typer.Exit(code)
