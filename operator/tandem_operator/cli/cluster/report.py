"""`tandem report`: the report of a run, from its folder or out of the bucket."""

from __future__ import annotations

import os
import sys
import tempfile
import webbrowser
from pathlib import Path
from typing import Any

import typer

from tandem_api.errors import ConfigurationError, DataError, TandemError
from tandem_operator.cli.cluster.access import Access, connect
from tandem_operator.cli.cluster.client import Resource
from tandem_operator.cli.errors import EXIT_FAILED, fail
from tandem_operator.cli.invocation import program

REPORT = "report.html"
_STDOUT = "-"


def fetch_report(name: str, access: Access, *, out: Path | None, endpoint: str | None, open_it: bool) -> None:
    """Read the report of a cluster's run with the user's own AWS credentials, and print where it was written; `out`:
    a file, a folder, or `-` for the standard output."""
    cluster = connect(access.kubeconfig, access.context)
    namespace = access.namespace or cluster.namespace
    data = read_report(cluster.get(namespace, name), endpoint)
    _hand_over(data, name, out, open_it=open_it)


def copy_report(name: str, *, out: Path | None, open_it: bool) -> None:
    """Print where a local run's report is; with `out` copy it."""
    from tandem_operator.cli.show import find_report

    path = find_report(name)
    if out is not None:
        _hand_over(path.read_bytes(), path.parents[1].name, out, open_it=open_it)
        return
    typer.echo(str(path))
    if open_it:
        webbrowser.open(path.absolute().as_uri())


def read_report(resource: Resource, endpoint: str | None) -> bytes:
    """The report out of the bucket. Raises typer.Exit for a run that has none, and the store's errors with what to do
    about them."""
    status = resource.get("status") or {}
    name = resource["metadata"]["name"]
    uri = (status.get("result") or {}).get("uri")
    if not uri:
        raise fail(_why_none(name, status), EXIT_FAILED)
    s3: dict[str, Any] = resource["spec"]["storage"]["s3"]
    from tandem_api.store import S3Store  # boto3 takes a while, and is for this alone

    bucket, address = s3["bucket"], f"{uri.rstrip('/')}/{REPORT}"
    try:
        store = S3Store(bucket, endpoint or s3.get("endpoint"), s3.get("region"))
        data = store.get(address.removeprefix(f"s3://{bucket}/"))
    except TandemError as error:
        raise _explained(error, s3, endpoint) from error
    if data is None:
        raise DataError(f"{address} does not exist: it was removed, or the run is of a version without reports")
    return data


def _explained(error: TandemError, s3: dict[str, Any], endpoint: str | None) -> TandemError:
    """The store's error as a user meets it who reads with credentials of their own."""
    where = endpoint or s3.get("endpoint")
    reached = (
        f"\nThe store is {where}. If only the cluster's pods know that address, forward a port of it and give "
        "--endpoint URL."
        if where is not None
        else ""
    )
    return type(error)(
        f"{error}\nThe report is read from here with your own AWS credentials (AWS_ACCESS_KEY_ID and "
        f"AWS_SECRET_ACCESS_KEY, or AWS_PROFILE), not with the run's.{reached}"
    )


def _why_none(name: str, status: dict[str, Any]) -> str:
    conditions = status.get("conditions") or []
    succeeded: dict[str, Any] = next((c for c in conditions if c.get("type") == "Succeeded"), {})
    if succeeded.get("status") == "False":
        return (
            f"{name} has no report: the run failed: {succeeded.get('reason')}: {succeeded.get('message')}; a report is "
            f"written at the end of a run that succeeds ({program()} status {name} shows what it came to)"
        )
    return (
        f"{name} has no report yet: the run is at {status.get('phase') or 'its beginning'}; a report is written at the "
        f"end of a run that succeeds ({program()} watch {name} waits for it)"
    )


def _hand_over(data: bytes, name: str, out: Path | None, *, open_it: bool) -> None:
    if out is not None and str(out) == _STDOUT:
        if open_it:
            raise ConfigurationError("--open needs a file; drop it, or --out -")
        sys.stdout.buffer.write(data)
        sys.stdout.buffer.flush()
        return
    path = Path(f"{name}-{REPORT}") if out is None else out / f"{name}-{REPORT}" if out.is_dir() else out
    _write(path, data)
    typer.echo(str(path))
    if open_it:
        webbrowser.open(path.absolute().as_uri())


def _write(path: Path, data: bytes) -> None:
    """Whole or not at all."""
    if not path.parent.is_dir():
        raise ConfigurationError(f"--out {path}: there is no folder {path.parent}; make it, or choose another one")
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
