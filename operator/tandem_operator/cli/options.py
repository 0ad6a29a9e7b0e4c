"""Options that several commands share."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

CLUSTER_PANEL = "Which cluster"

Manifest = Annotated[Path, typer.Option("--file", "-f", help="The manifest of an OptimizationRun.", show_default=False)]
RunName = Annotated[str, typer.Argument(metavar="NAME", help="The run's name.", show_default=False)]
Namespace = Annotated[
    str | None,
    typer.Option(
        "--namespace", "-n", help="Default: the context's.", show_default=False, rich_help_panel=CLUSTER_PANEL
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
    ),
]
Context = Annotated[
    str | None,
    typer.Option(help="Default: the kubeconfig's current one.", show_default=False, rich_help_panel=CLUSTER_PANEL),
]
Kubeconfig = Annotated[
    Path | None,
    typer.Option(
        help="Default: $KUBECONFIG, ~/.kube/config, or the pod's own account.",
        show_default=False,
        rich_help_panel=CLUSTER_PANEL,
    ),
]


class Output(StrEnum):
    """How a resource is printed."""

    YAML = "yaml"
    JSON = "json"


OutputFormat = Annotated[
    Output | None, typer.Option("--output", "-o", help="The whole resource instead.", show_default=False)
]
