"""Tells what the doctor found."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tandem_api.errors import TandemError
from tandem_operator.cli.cluster.access import Access, connect
from tandem_operator.cli.cluster.doctor.checks import CHECKS
from tandem_operator.cli.cluster.doctor.facts import gather
from tandem_operator.cli.cluster.doctor.finding import Finding, Level, fail
from tandem_operator.cli.cluster.failures import UnreachableError
from tandem_operator.cli.cluster.output import print_document
from tandem_operator.cli.cluster.submit import without_given
from tandem_operator.cli.errors import EXIT_DONE, EXIT_FAILED
from tandem_operator.cli.manifest import parse_for_cluster, read_manifest
from tandem_operator.cli.terminal import console

_COLORS = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "red"}


def examine(access: Access, file: Path | None, operator_namespace: str | None, *, as_json: bool) -> int:
    """Print what is found, each with what to do about it. Returns the exit code."""
    read = read_manifest(file) if file is not None else None
    if read is not None:
        parse_for_cluster(read)
    cluster = connect(access.kubeconfig, access.context)
    named = read.document["metadata"].get("namespace") if read is not None else None
    namespace = access.namespace or named or cluster.namespace
    manifest = without_given(read.document, namespace) if read is not None else None
    try:
        facts = gather(cluster, namespace, operator_namespace, manifest)
    except TandemError as error:
        first, _, rest = str(error).partition("\n")
        fix = rest if isinstance(error, UnreachableError) and rest else "log in, or choose with --context"
        findings = [fail("api", first, fix)]
    else:
        findings = [finding for check in CHECKS for finding in check(facts)]
    if as_json:
        print_document([asdict(finding) for finding in findings], "json")
    else:
        _print(console(), findings, with_manifest=file is not None)
    return EXIT_FAILED if any(finding.level is Level.FAIL for finding in findings) else EXIT_DONE


def _print(out: Console, findings: Sequence[Finding], *, with_manifest: bool) -> None:
    table = Table.grid(padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for finding in findings:
        said = Text(finding.message)
        if finding.fix:
            said.append(f"\n-> {finding.fix}", style="bold")
        table.add_row(Text(finding.level.value, style=_COLORS[finding.level]), finding.check, said)
    out.print(table)
    counted = Counter(finding.level for finding in findings)
    out.print()
    out.print(f"{counted[Level.OK]} ok, {counted[Level.WARN]} to look at, {counted[Level.FAIL]} failed", markup=False)
    if not with_manifest:
        out.print("-f MANIFEST also checks what a run needs: Secrets, volumes, accounts, devices", markup=False)
