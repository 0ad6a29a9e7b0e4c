"""Commands that only look at folders and files: `status` of a local run, `report`, `validate`."""

from __future__ import annotations

import json
from pathlib import Path

import typer

from tandem_api.errors import ConfigurationError
from tandem_api.v1alpha1 import OptimizationRun
from tandem_operator.cli.errors import EXIT_FAILED, fail
from tandem_operator.cli.manifest import parse, parse_for_cluster, read_manifest
from tandem_operator.cli.tables import print_run
from tandem_operator.cli.terminal import console
from tandem_operator.platforms.local.workdir import Workdir

#: Where `tandem run` keeps runs unless it is told otherwise.
RUNS = Path("runs")


class NoSuchRunError(ConfigurationError):
    """No folder of that name holds a run."""


def find_run(name: str) -> tuple[Workdir, OptimizationRun]:
    """The folder of that path, or of that name under `runs/`, and its resource.

    Raises NoSuchRunError, or ConfigurationError for a folder that cannot be read.
    """
    tried = []
    for path in (Path(name), RUNS / name):
        workdir = Workdir(path.parent if path.name == "status.yaml" else path)
        run = workdir.read_run() if workdir.path.is_dir() else None
        if run is not None:
            return workdir, run
        tried.append(str(workdir.status))
    raise NoSuchRunError(f"there is no run {name!r}: neither {' nor '.join(tried)} exists")


def show_status(name: str, output: str | None) -> None:
    """Print a local run's state, or its whole resource as yaml or json, or its name."""
    workdir, run = find_run(name)
    if output == "name":
        typer.echo(f"optimizationrun.tandem.dev/{run.metadata.name}")
        return
    if output == "yaml":
        typer.echo(workdir.status.read_text(encoding="utf-8"), nl=False)
        return
    if output == "json":
        typer.echo(json.dumps(run.to_json(), indent=2, ensure_ascii=False))
        return
    out = console()
    print_run(out, run)
    report = report_path(workdir)
    if report.exists():
        out.print(f"report      {report}", markup=False, soft_wrap=True)


def report_path(workdir: Workdir) -> Path:
    """Where a run's report is once there is one."""
    return workdir.result / "report.html"


def find_report(name: str) -> Path:
    """A local run's report. Raises typer.Exit while there is none."""
    workdir, run = find_run(name)
    path = report_path(workdir)
    if not path.exists():
        raise fail(
            f"{path} does not exist: the run is at {run.status.phase}; a report is written at the end of a run that "
            "succeeds, and `tandem run --local` fetches it",
            EXIT_FAILED,
        )
    return path


def validate_manifest(file: Path, *, schema_only: bool, for_cluster: bool) -> None:
    """Print that a manifest is valid. Raises ConfigurationError with everything that is wrong."""
    manifest = read_manifest(file)
    run = parse_for_cluster(manifest) if for_cluster else parse(manifest, with_files=not schema_only)
    typer.echo(
        f"{file} is valid{' on a cluster' if for_cluster else ''}: {run.metadata.name}, {run.spec.strategy_text}"
    )
