"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from tandem_operator.cli import completion

CLUSTER_PANEL = "Which cluster"

Manifest = Annotated[Path, typer.Option("--file", "-f", help="The manifest of an OptimizationRun.", show_default=False)]
RunName = Annotated[
    str,
    typer.Argument(metavar="NAME", help="The run's name.", show_default=False, autocompletion=completion.run_names),
]
AnyRunName = Annotated[
    str,
    typer.Argument(
        metavar="NAME",
        help="A run's folder, its name under runs/, or its name on a cluster.",
        show_default=False,
        autocompletion=completion.run_names_anywhere,
    ),
]
Namespace = Annotated[
    str | None,
    typer.Option(
        "--namespace",
        "-n",
        help="Default: the context's.",
        show_default=False,
        rich_help_panel=CLUSTER_PANEL,
        autocompletion=completion.namespaces,
    ),
]
ManifestNamespace = Annotated[
    str | None,
    typer.Option(
        "--namespace",
        "-n",
        help="Default: the manifest's, or else the context's.",
        show_default=False,
        rich_help_panel=CLUSTER_PANEL,
        autocompletion=completion.namespaces,
    ),
]
Context = Annotated[
    str | None,
    typer.Option(
        help="Default: the kubeconfig's current one.",
        show_default=False,
        rich_help_panel=CLUSTER_PANEL,
        autocompletion=completion.contexts,
    ),
]
Kubeconfig = Annotated[
    Path | None,
    typer.Option(
        help="Default: $KUBECONFIG, ~/.kube/config, or the pod's own account.",
        show_default=False,
        rich_help_panel=CLUSTER_PANEL,
    ),
]
Endpoint = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="The object store as this machine reaches it. Default: spec.storage.s3.endpoint.",
        show_default=False,
        rich_help_panel=CLUSTER_PANEL,
    ),
]


class Output(StrEnum):
    """How one object is printed."""

    JSON = "json"
    YAML = "yaml"
    NAME = "name"


class ListOutput(StrEnum):
    """How several objects are printed."""

    JSON = "json"
    YAML = "yaml"
    WIDE = "wide"
    NAME = "name"


class DoctorOutput(StrEnum):
    """How findings are printed."""

    JSON = "json"


OutputFormat = Annotated[
    Output | None,
    typer.Option("--output", "-o", help="The whole resource instead, or its name.", show_default=False),
]
ListFormat = Annotated[
    ListOutput | None,
    typer.Option("--output", "-o", help="More columns, or the whole objects, or their names.", show_default=False),
]
Watch = Annotated[bool, typer.Option("--watch", "-w", help="Go on with each change, until Ctrl-C.")]
