"""`tandem run --local`: one run on this machine, from its manifest to its result."""

from __future__ import annotations

import os
from pathlib import Path

from rich.console import Console

from tandem_api.conditions import SUCCEEDED, SUSPENDED, find, is_true
from tandem_api.v1alpha1 import OptimizationRun
from tandem_operator.cli.errors import EXIT_DONE, EXIT_FAILED, EXIT_INTERRUPTED
from tandem_operator.cli.invocation import program
from tandem_operator.cli.live import LiveDisplay, PlainDisplay
from tandem_operator.cli.loop import Interrupt, drive
from tandem_operator.cli.manifest import parse, read_manifest
from tandem_operator.cli.show import RUNS, report_path
from tandem_operator.cli.tables import results
from tandem_operator.cli.terminal import console
from tandem_operator.platforms.local.commands import Commands
from tandem_operator.platforms.local.manifest import adopt, cluster_only, missing_keys, without_effect
from tandem_operator.platforms.local.platform import LocalPlatform, LocalSettings
from tandem_operator.platforms.local.workdir import Workdir


def run_local(file: Path, workdir: Path | None, serving_port: int | None, commands: Commands | None = None) -> int:
    """Run, or go on, or show what a run that has ended came to. Returns the exit code."""
    manifest = read_manifest(file)
    wanted = parse(manifest)
    foreign = cluster_only(wanted)
    if foreign:
        raise manifest.explain(foreign)
    folder = Workdir(workdir or RUNS / wanted.metadata.name)
    out = console()
    stored = folder.read_run()
    if stored is not None:
        run = adopt(stored, wanted, stored.metadata.uid)
        if run.status.finished is not None and (run.status.result is None or folder.result.exists()):
            return _show_end(out, folder, run)
    without_key = missing_keys(wanted, os.environ)
    if without_key:
        raise manifest.explain(without_key)
    for path in without_effect(wanted):
        out.print(f"warning: {path} has no effect on one machine", markup=False, soft_wrap=True)
    interrupt = Interrupt()
    display = LiveDisplay(out) if out.is_terminal else PlainDisplay(out)
    settings = LocalSettings(
        commands=commands or Commands(),
        serving_port=serving_port,
        on_event=display.event,
        hurry=lambda: interrupt.is_impatient,
    )
    out.print(f"{'going on in' if stored is not None else 'running in'} {folder.path}", markup=False, soft_wrap=True)
    with interrupt.listening():
        with LocalPlatform(folder.path, wanted, settings) as platform:
            with display:
                display.begin(platform.load().status)
                ended = drive(platform, display, interrupt)
            if ended:
                platform.fetch_result()
            else:
                out.print("stopping; what is done is kept (Ctrl-C again kills)", markup=False)
        run = platform.load()
    if not ended:
        out.print(f"stopped; to go on: {_command(file, workdir)}", markup=False, soft_wrap=True)
        return EXIT_INTERRUPTED
    return _show_end(out, folder, run)


def _show_end(out: Console, folder: Workdir, run: OptimizationRun) -> int:
    out.print()
    out.print(results(run))
    report = report_path(folder)
    if report.exists():
        out.print(f"report      {report}", markup=False, soft_wrap=True)
    if is_true(run.status.conditions, SUSPENDED):
        out.print("suspended: set spec.suspend to false and start the same command again to go on", markup=False)
        return EXIT_DONE
    succeeded = find(run.status.conditions, SUCCEEDED)
    if succeeded is not None and succeeded.status == "True":
        return EXIT_DONE
    out.print(f"logs        {folder.logs}\nto try again, correct the cause and use another --workdir", markup=False)
    return EXIT_FAILED


def _command(file: Path, workdir: Path | None) -> str:
    return f"{program()} run -f {file} --local" + (f" --workdir {workdir}" if workdir is not None else "")
