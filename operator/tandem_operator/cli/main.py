"""`tandem`: the commands and their options. What they do is imported only when one is called."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tandem_operator.cli.errors import EXIT_USAGE, fail, reported

app = typer.Typer(
    name="tandem",
    help="Optimizes the prompts and the weights of a language-model program together.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

Manifest = Annotated[Path, typer.Option("--file", "-f", help="The manifest of an OptimizationRun.", show_default=False)]
Run = Annotated[str, typer.Argument(help="The run's folder, or its name under runs/.", show_default=False)]


class Output(StrEnum):
    """How a resource is printed."""

    YAML = "yaml"
    JSON = "json"


@app.command()
def run(
    file: Manifest,
    local: Annotated[bool, typer.Option("--local", help="On this machine, with child processes.")] = False,
    workdir: Annotated[
        Path | None, typer.Option(help="The run's folder. Default: runs/NAME.", show_default=False)
    ] = None,
    serving_port: Annotated[
        int | None,
        typer.Option(min=1024, max=65535, help="The model server's port. Default: a free one.", show_default=False),
    ] = None,
) -> None:
    """Run a manifest to its end. Ctrl-C stops it; the same command goes on where it was.

    Exit codes: 0 done, 1 failed, 2 bad command or manifest, 130 interrupted.
    """
    if not local:
        raise fail(
            "only runs on this machine are possible yet: add --local. Clusters come with the operator", EXIT_USAGE
        )
    with reported():
        from tandem_operator.cli.run import run_local

        code = run_local(file, workdir, serving_port)
    raise typer.Exit(code)


@app.command()
def status(
    run: Run,
    output: Annotated[
        Output | None, typer.Option("--output", "-o", help="The whole resource instead.", show_default=False)
    ] = None,
) -> None:
    """Show where a run is and what it found so far."""
    with reported():
        from tandem_operator.cli.show import show_status

        show_status(run, output.value if output is not None else None)


@app.command()
def report(
    run: Run,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the browser, too.")] = False,
) -> None:
    """Print the path of a run's report."""
    with reported():
        from tandem_operator.cli.show import show_report

        show_report(run, open_it=open_it)


@app.command()
def validate(
    file: Manifest,
    schema_only: Annotated[
        bool, typer.Option("--schema-only", help="Do not look whether the files that it names exist.")
    ] = False,
) -> None:
    """Show everything that is wrong with a manifest, each error with its line and field."""
    with reported():
        from tandem_operator.cli.show import validate_manifest

        validate_manifest(file, schema_only=schema_only)


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
