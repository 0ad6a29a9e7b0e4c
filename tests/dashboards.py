"""The chart's Grafana dashboard: its panels, and what Grafana puts in the place of variables."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

FILE: Final = Path(__file__).parents[1] / "charts/tandem/files/dashboard.json"
#: All runs, and a window that fits a scrape each second.
EVERYTHING: Final = {"$namespace": ".*", "$run": ".*", "$__rate_interval": "15s"}


@dataclass(frozen=True)
class Query:
    """One of a panel's."""

    expression: str
    legend: str


def load() -> dict[str, Any]:
    """The dashboard as it is in the chart."""
    board: dict[str, Any] = json.loads(FILE.read_text(encoding="utf-8"))
    return board


def panels() -> list[dict[str, Any]]:
    """Those that show something, in order."""
    return [panel for panel in load()["panels"] if panel["type"] != "row"]


def queries(panel: Mapping[str, Any]) -> Iterator[Query]:
    """What a panel asks, with variables as they are."""
    for target in panel["targets"]:
        yield Query(target["expr"], target["legendFormat"])


def filled(expression: str, values: Mapping[str, str] = EVERYTHING) -> str:
    """The expression with values in the place of variables."""
    for variable, value in values.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression, f"a variable that is not known here: {expression}"
    return expression
