"""`tandem`: the commands and their options. What they do is imported only when one is called."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from tandem_operator.cli.cluster import commands as cluster_commands
from tandem_operator.cli.errors import EXIT_USAGE, fail, reported
from tandem_operator.cli.options import (
    CLUSTER_PANEL,
    Context,
    Kubeconfig,
    Manifest,
    ManifestNamespace,
    Namespace,
    OutputFormat,
)

app = typer.Typer(
    name="tandem",
    help="Optimizes the prompts and the weights of a language-model program together.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

_LOCAL_PANEL = "With --local"


@app.command()
def run(
    file: Manifest,
    local: Annotated[
        bool, typer.Option("--local", help="On this machine, with child processes, instead of on a cluster.")
    ] = False,
    workdir: Annotated[
        Path | None,
        typer.Option(help="The run's folder. Default: runs/NAME.", show_default=False, rich_help_panel=_LOCAL_PANEL),
    ] = None,
    serving_port: Annotated[
        int | None,
        typer.Option(
            min=1024,
            max=65535,
            help="The model server's port. Default: a free one.",
            show_default=False,
            rich_help_panel=_LOCAL_PANEL,
        ),
    ] = None,
    namespace: ManifestNamespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Run a manifest to its end: on a cluster (`submit` and `watch`), or here with --local.

    Ctrl-C stops a local run, and the same command goes on where it was; on a cluster it stops the watching only.

    Exit codes: 0 done, 1 failed, 2 bad command or manifest, 130 interrupted.
    """
    where = {"--namespace": namespace, "--context": context, "--kubeconfig": kubeconfig}
    here = {"--workdir": workdir, "--serving-port": serving_port}
    for option, value in (where if local else here).items():
        if value is not None:
            fix = f"drop {option} or --local" if local else f"drop {option} or add --local"
            raise fail(f"{option} belongs to runs {'on a cluster' if local else 'on this machine'}: {fix}", EXIT_USAGE)
    if not local:
        raise typer.Exit(cluster_commands.submit_file(file, namespace, context, kubeconfig, wait=True))
    with reported():
        from tandem_operator.cli.run import run_local

        code = run_local(file, workdir, serving_port)
    raise typer.Exit(code)


@app.command()
def status(
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="A run's folder, its name under runs/, or its name on a cluster.", show_default=False
        ),
    ],
    output: OutputFormat = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show where a run is and what it found so far.

    A run of that name in a folder comes first, unless one of the cluster's options is given.
    """
    with reported():
        from tandem_operator.cli.cluster.access import Access
        from tandem_operator.cli.cluster.status import show_status_anywhere

        access = Access(namespace, context, kubeconfig)
        show_status_anywhere(name, access, output.value if output is not None else None)


@app.command()
def report(
    run: Annotated[str, typer.Argument(help="The run's folder, or its name under runs/.", show_default=False)],
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the browser, too.")] = False,
) -> None:
    """Print the path of a local run's report."""
    with reported():
        from tandem_operator.cli.show import show_report

        show_report(run, open_it=open_it)


@app.command()
def ui(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="A run's folder, its name under runs/, or its name on a cluster.", show_default=False
        ),
    ],
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The page's port. Default: a free one.", show_default=False)
    ] = 0,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the browser, too.")] = False,
    s3_endpoint: Annotated[
        str | None,
        typer.Option(
            help="Where a cluster's bucket is from here, if elsewhere than its manifest says.",
            show_default=False,
            rich_help_panel=CLUSTER_PANEL,
        ),
    ] = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Show a run in the browser while it goes on, and afterwards: scores, prompts, examples, loss, logs.

    Read-only, on this machine only, for whoever has the address with its token. Ctrl-C ends it.
    """
    with reported():
        from tandem_operator.cli.cluster.access import Access
        from tandem_operator.ui.command import serve

        code = serve(run, Access(namespace, context, kubeconfig), s3_endpoint, port, open_it=open_it)
    raise typer.Exit(code)


@app.command()
def validate(
    file: Manifest,
    schema_only: Annotated[
        bool, typer.Option("--schema-only", help="Do not look whether the files that it names exist.")
    ] = False,
    for_cluster: Annotated[
        bool, typer.Option("--cluster", help="Check what a cluster needs instead of the files on this machine.")
    ] = False,
) -> None:
    """Show everything that is wrong with a manifest, each error with its line and field."""
    with reported():
        from tandem_operator.cli.show import validate_manifest

        validate_manifest(file, schema_only=schema_only, for_cluster=for_cluster)


cluster_commands.add_to(app)


@app.command()
def version() -> None:
    """Print Tandem's version."""
    from importlib import metadata

    try:
        typer.echo(f"tandem {metadata.version('tandem')}")
    except metadata.PackageNotFoundError:
        typer.echo("tandem (not installed: run from its sources)")


def main() -> None:
    """The entry point."""
    app()


if __name__ == "__main__":
    main()
