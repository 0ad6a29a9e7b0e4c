"""What the shell completes from a cluster and from folders: names of runs, contexts, namespaces. Never an error, and
never long: without an answer in time there is nothing to choose from."""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import typer

#: For all of it, an exec plugin's login included: somebody waits with a finger on the key.
_SECONDS = 2.0
_TIMEOUT = (1.0, 1.5)
#: The server then leaves out spec and status, which are most of a run.
_NAMES_ONLY = "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1,application/json"
_MOST = 500


def run_names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Runs of the namespace."""
    return _beginning(incomplete, _runs(ctx.params))


def run_names_anywhere(ctx: typer.Context, incomplete: str) -> list[str]:
    """Runs in folders, and runs of the namespace."""
    here = [path.parent.name for path in Path("runs").glob("*/status.yaml")]
    return _beginning(incomplete, {*here, *_runs(ctx.params)})


def contexts(ctx: typer.Context, incomplete: str) -> list[str]:
    """Contexts of the kubeconfig."""
    return _beginning(incomplete, _contexts(ctx.params))


def namespaces(ctx: typer.Context, incomplete: str) -> list[str]:
    """Namespaces of the cluster."""
    return _beginning(incomplete, _names(ctx.params, lambda _: "/api/v1/namespaces"))


def kubectl_complete() -> None:
    """What kubectl asks to complete `kubectl tandem`: a program `kubectl_complete-tandem` on the PATH, which gets the
    words after `tandem`, and prints what may stand for the last of them and `:4` (no file names)."""
    from tandem_operator.cli.main import app

    words = sys.argv[1:] or [""]
    os.environ |= {
        "_TANDEM_COMPLETE": "complete_bash",
        "COMP_WORDS": shlex.join(["tandem", *words]),
        "COMP_CWORD": str(len(words)),
    }
    try:
        app(prog_name="tandem")
    except SystemExit:
        print(":4")


def _beginning(incomplete: str, found: Iterable[str]) -> list[str]:
    return sorted(name for name in found if name.startswith(incomplete))


def _in_time(look: Callable[[], list[str]]) -> list[str]:
    found: list[str] = []

    def run() -> None:
        with contextlib.suppress(Exception):  # whatever it is: here nobody could read it
            found.extend(look())

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(_SECONDS)
    return list(found)


def _runs(params: dict[str, Any]) -> list[str]:
    from tandem_operator.cli.cluster.client import runs_path

    return _names(params, lambda default: runs_path(params.get("namespace") or default))


def _names(params: dict[str, Any], path: Callable[[str], str]) -> list[str]:
    from tandem_operator.cli.cluster.access import connect

    def look() -> list[str]:
        cluster = connect(_kubeconfig(params), params.get("context"))
        found = cluster.api.get(path(cluster.namespace), {"limit": _MOST}, timeout=_TIMEOUT, accept=_NAMES_ONLY)
        return [str(item["metadata"]["name"]) for item in found.get("items") or []]

    return _in_time(look)


def _contexts(params: dict[str, Any]) -> list[str]:
    from tandem_operator.cli.cluster.access import context_names

    return _in_time(lambda: context_names(_kubeconfig(params)))


def _kubeconfig(params: dict[str, Any]) -> Path | None:
    given = params.get("kubeconfig")
    return Path(given) if given else None
