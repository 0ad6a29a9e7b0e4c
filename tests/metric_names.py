"""Every metric that a Prometheus may meet, as docs/metrics.md has them, and those that an expression asks for."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

PAGE: Final = Path(__file__).parents[1] / "docs/metrics.md"
TABLES: Final = ("operator", "pods", "vllm")
_SUFFIXES: Final = ("_bucket", "_count", "_sum")
_TEXTS: Final = re.compile(r'"(?:\\.|[^"\\])*"')
_METRIC: Final = re.compile(r"(?<![\w:$])(tandem_\w+|vllm:\w+)")


@dataclass(frozen=True)
class Documented:
    """One row."""

    kind: str
    labels: frozenset[str]


def documented(table: str) -> dict[str, Documented]:
    """The metrics of one of TABLES, by name."""
    text = PAGE.read_text(encoding="utf-8").partition(f"<!-- {table} -->\n")[2].partition(f"<!-- /{table} -->")[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()[2:]]
    has_labels = table != "vllm"
    return {
        row[0].strip("`"): Documented(row[1], frozenset(row[2].split(", ")) - {""} if has_labels else frozenset())
        for row in rows
    }


def all_documented() -> dict[str, Documented]:
    """Those of all tables."""
    return {name: row for table in TABLES for name, row in documented(table).items()}


def series_names() -> set[str]:
    """What a query may name: of histograms their three kinds of series."""
    return {
        name + suffix
        for name, row in all_documented().items()
        for suffix in (_SUFFIXES if row.kind == "histogram" else ("",))
    }


def asked_for(expression: str) -> set[str]:
    """The metrics of ours and vLLM's that a PromQL expression names."""
    return set(_METRIC.findall(_TEXTS.sub('""', expression)))
