"""`tandem`: the commands and their options. What they do is imported only when one is called."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tandem_operator.cli.cluster import commands as cluster_commands
from tandem_operator.cli.errors import EXIT_USAGE, fail, reported
from tandem_operator.cli.invocation import TANDEM, program
from tandem_operator.cli.options import (
    AnyRunName,
    Context,
    Endpoint,
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
    # kubectl completes its plugins by a program of their own: `completion.kubectl_complete`.
    add_completion=program() == TANDEM,
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
    name: AnyRunName,
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
        from tandem_operator.cli.cluster.anywhere import show_status_anywhere

        access = Access(namespace, context, kubeconfig)
        show_status_anywhere(name, access, output.value if output is not None else None)


@app.command()
def report(
    name: AnyRunName,
    out: Annotated[
        Path | None,
        typer.Option(
            help="Write it to this file or folder; - for the standard output. Default on a cluster: "
            "NAME-report.html here.",
            show_default=False,
        ),
    ] = None,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the browser, too.")] = False,
    endpoint: Endpoint = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print where a run's report is; a cluster's is fetched from S3 with your own AWS credentials.

    A run of that name in a folder comes first, unless one of the cluster's options is given.
    """
    with reported():
        from tandem_operator.cli.cluster.access import Access
        from tandem_operator.cli.cluster.anywhere import show_report_anywhere

        access = Access(namespace, context, kubeconfig)
        show_report_anywhere(name, access, out=out, endpoint=endpoint, open_it=open_it)


@app.command()
def ui(
    name: AnyRunName,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="The page's port. Default: a free one.", show_default=False)
    ] = 0,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the browser, too.")] = False,
    endpoint: Endpoint = None,
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

        code = serve(name, Access(namespace, context, kubeconfig), endpoint, port, open_it=open_it)
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


class ExportFormat(StrEnum):
    """What serves the result."""

    VLLM = "vllm"
    KSERVE = "kserve"


@app.command()
def export(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN|DIR|BUNDLE",
            help="A run's name on a cluster, its folder on this machine, or a folder with its result.",
            show_default=False,
        ),
    ],
    kind: Annotated[
        ExportFormat, typer.Option("--format", help="A Deployment with a Service, or a KServe InferenceService.")
    ] = ExportFormat.VLLM,
    name: Annotated[str, typer.Option(help="Of the objects. Default: model-RUN.", show_default=False)] = "",
    into: Annotated[str, typer.Option(help="Their namespace. Default: the run's.", show_default=False)] = "",
    replicas: Annotated[int, typer.Option(min=1, help="Of the server.")] = 1,
    gpus: Annotated[int, typer.Option(min=0, help="Of each replica; 0: on CPUs, with the adapter merged.")] = 1,
    accelerator: Annotated[str, typer.Option(help="The resource that stands for a GPU.")] = "nvidia.com/gpu",
    cpu: Annotated[str, typer.Option(help="Of each replica.")] = "2",
    memory: Annotated[str, typer.Option(help="Of each replica.")] = "8Gi",
    image: Annotated[str, typer.Option(help="The trainer image. Default: the run's.", show_default=False)] = "",
    argument: Annotated[
        list[str] | None, typer.Option("--arg", help="One more for vLLM, such as --max-model-len=8192; repeat it.")
    ] = None,
    model: Annotated[
        str | None, typer.Option(help="The base model's URI. Default: the run's.", show_default=False)
    ] = None,
    credentials_secret: Annotated[
        str | None, typer.Option(help="With the bucket's key. Default: the run's.", show_default=False)
    ] = None,
    service_account: Annotated[
        str | None, typer.Option(help="That may read the bucket. Default: the run's.", show_default=False)
    ] = None,
    upload: Annotated[
        str | None,
        typer.Option(help="Of DIR and BUNDLE: s3://BUCKET/PREFIX/ to bring the adapter to.", show_default=False),
    ] = None,
    namespace: Namespace = None,
    context: Context = None,
    kubeconfig: Kubeconfig = None,
) -> None:
    """Print the manifest that serves a finished run's best program.

    tandem export reviews | kubectl apply -f -
    """
    with reported():
        from tandem_operator.cli.cluster.access import Access
        from tandem_operator.cli.export import Changes, print_export
        from tandem_operator.export.manifests import Options

        options = Options(
            image, name, into, replicas, gpus, accelerator, cpu=cpu, memory=memory, arguments=tuple(argument or ())
        )
        changes = Changes(model, credentials_secret, service_account, upload)
        print_export(run, Access(namespace, context, kubeconfig), changes, options, kind.value)


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
    """The entry point, of kubectl's plugin too."""
    app(prog_name=program())


if __name__ == "__main__":
    main()
