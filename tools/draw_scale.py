#!/usr/bin/env python3
"""Draws docs/scale.svg out of docs/scale.json, which tests/bench/operator_scale.py has measured.

python tools/draw_scale.py
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

DOCS = Path(__file__).parents[1] / "docs"
WIDTH, PANEL, HEIGHT, LEFT, TOP, GAP = 860, 180, 130, 34, 58, 36
#: What is drawn: the field, what it is called, its unit, and its goal.
PANELS = (
    ("peak_rss_mb", "peak memory", "MB", 300.0),
    ("p99_seconds", "pass, 99th percentile", "s", 1.0),
    ("start_seconds", "start, all runs looked at", "s", 60.0),
    ("writes_per_run", "API writes a run", "", None),
)


def main() -> None:
    """Draw it."""
    measured = json.loads((DOCS / "scale.json").read_text(encoding="utf-8"))
    (DOCS / "scale.svg").write_text(svg(measured["sizes"]), encoding="utf-8")


def svg(sizes: list[dict[str, Any]]) -> str:
    """A panel for each figure; a dashed line is its goal."""
    height = TOP + HEIGHT + 40
    runs = ", ".join(str(size["runs"]) for size in sizes)
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        'font-size="12" role="img" aria-labelledby="t">',
        f'<title id="t">The operator with {runs} runs</title>',
        f'<rect width="{WIDTH}" height="{height}" fill="#fff"/>',
        f'<text x="{LEFT}" y="18" fill="#333">one operator with {runs} runs; a dashed line is the goal</text>',
    ]
    for place, (name, title, unit, goal) in enumerate(PANELS):
        parts += panel(LEFT + place * (PANEL + GAP - 8), [size[name] for size in sizes], title, unit, goal)
        for bar, size in enumerate(sizes):
            x = LEFT + place * (PANEL + GAP - 8) + centre(bar, len(sizes))
            parts.append(
                f'<text x="{x:.0f}" y="{TOP + HEIGHT + 16}" text-anchor="middle" fill="#666">{size["runs"]}</text>'
            )
    return "\n".join([*parts, "</svg>", ""])


def panel(left: float, values: list[float], title: str, unit: str, goal: float | None) -> list[str]:
    """The bars of one figure, from 0 up to a little above the goal or the largest."""
    top = max([*values, goal or 0.0]) * 1.12 or 1.0
    parts = [f'<text x="{left:.0f}" y="{TOP - 14}" fill="#333">{title}{f", {unit}" if unit else ""}</text>']
    for place, value in enumerate(values):
        tall, x = value / top * HEIGHT, left + centre(place, len(values))
        parts.append(
            f'<rect x="{x - 18:.0f}" y="{TOP + HEIGHT - tall:.1f}" width="36" height="{tall:.1f}" fill="#4878a8"/>'
        )
        parts.append(
            f'<text x="{x:.0f}" y="{TOP + HEIGHT - tall - 4:.1f}" text-anchor="middle" fill="#333">{said(value)}</text>'
        )
    parts.append(f'<path d="M{left:.0f} {TOP + HEIGHT}h{PANEL - 20}" stroke="#999"/>')
    if goal is not None:
        y = TOP + HEIGHT - goal / top * HEIGHT
        parts.append(f'<path d="M{left:.0f} {y:.1f}h{PANEL - 20}" stroke="#c33" stroke-dasharray="4 3"/>')
    return parts


def centre(place: int, count: int) -> float:
    """Where a bar's middle is, from its panel's left."""
    return (PANEL - 20) * (place + 0.5) / count


def said(value: float) -> str:
    """A number in as many digits as it deserves."""
    return f"{value:.0f}" if value >= 20 else f"{value:.2g}"


if __name__ == "__main__":
    main()
