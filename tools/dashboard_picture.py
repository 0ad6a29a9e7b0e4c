#!/usr/bin/env python3
"""Draws docs/images/dashboard.png: the chart's dashboard with what a real Prometheus answered to its queries.

`make screenshots` gets the answers out of tests/faults/test_prometheus.py and has them drawn. Places, titles, units,
limits and legends are the dashboard's own. It is drawn by matplotlib and not by Grafana.
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")

import matplotlib.dates as mdates
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, MaxNLocator

ROOT = Path(__file__).parents[1]
DASHBOARD = ROOT / "charts/tandem/files/dashboard.json"
PICTURE = ROOT / "docs/images/dashboard.png"
COLUMNS, WIDTH, UNIT = 24, 19.0, 0.42
"""The grid's columns, inches in all, and inches of one unit of height."""
PAGE, PANEL, EDGE, TEXT, DIM = "#111217", "#181b1f", "#2c3235", "#d8d9da", "#8e8e8e"
COLORS = ("#73bf69", "#f2cc0c", "#5794f2", "#ff9830", "#f2495c", "#b877d9", "#8ab8ff", "#ffa6b0", "#96d98d", "#c4a000")
MOST_IN_A_LEGEND = 8

Object = dict[str, Any]
Series = list[tuple[str, list[tuple[datetime, float]]]]


def main() -> None:
    """Draw it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("answers", type=Path, help="what the test wrote to the file that TANDEM_DASHBOARD_DATA names")
    parser.add_argument("--out", type=Path, default=PICTURE)
    given = parser.parse_args()
    data = json.loads(given.answers.read_text(encoding="utf-8"))
    board = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    plt.rcParams.update(
        {
            "font.family": "DejaVu Sans",
            "font.size": 8,
            "text.color": TEXT,
            "axes.labelcolor": TEXT,
            "xtick.color": DIM,
            "ytick.color": DIM,
        }
    )
    rows = max(panel["gridPos"]["y"] + panel["gridPos"]["h"] for panel in board["panels"])
    figure = plt.figure(figsize=(WIDTH, rows * UNIT), facecolor=PAGE)
    for panel in board["panels"]:
        box = place(panel["gridPos"], rows)
        if panel["type"] == "row":
            figure.text(
                box[0] + 0.002, box[1] + box[3] / 2, f"\u25be  {panel['title']}", va="center", size=11, weight="bold"
            )
        else:
            draw(figure, box, panel, read(data["panels"][panel["title"]]), (data["began"], data["ended"]))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(given.out, dpi=84, facecolor=PAGE, pil_kwargs={"optimize": True})


def place(grid: Object, rows: int) -> tuple[float, float, float, float]:
    """Left, bottom, width, height in the figure, of a place in the grid."""
    return (
        grid["x"] / COLUMNS,
        1 - (grid["y"] + grid["h"]) / rows,
        grid["w"] / COLUMNS,
        grid["h"] / rows,
    )


def read(answers: list[Object]) -> Series:
    """The series of all queries of a panel, under the names that the legend gives them."""
    found: Series = []
    for answer in answers:
        for series in answer["result"]:
            labels = series["metric"]
            name = re.sub(r"\{\{(\w+)\}\}", lambda match, of=labels: of.get(match[1], ""), answer["legend"])
            values = [(datetime.fromtimestamp(at, UTC), float(value)) for at, value in series["values"]]
            values = [(at, value) for at, value in values if not math.isnan(value)]
            if values:
                found.append((name, values))
    return found


def draw(
    figure: Any, box: tuple[float, float, float, float], panel: Object, series: Series, span: tuple[float, float]
) -> None:
    """One panel in its box."""
    left, bottom, width, height = box
    gap, inches = 0.0028, figure.get_figheight()
    frame = figure.add_axes((left + gap, bottom + gap / 2, width - 2 * gap, height - gap))
    frame.set_facecolor(PANEL)
    frame.set(xticks=[], yticks=[])
    for edge in frame.spines.values():
        edge.set_color(EDGE)
    top = bottom + height - 0.28 / inches
    figure.text(left + 3 * gap, top, panel["title"], size=9.5, weight="bold", va="center")
    if not series:
        figure.text(left + width / 2, bottom + height / 2, "No data", ha="center", color=DIM, size=11)
        return
    inner_left, below = {"state-timeline": (0.105, 0.32), "bargauge": (0.075, 0.15)}.get(panel["type"], (0.032, 0.75))
    axes = figure.add_axes(
        (left + inner_left, bottom + below / inches, width - inner_left - 0.009, height - (below + 0.5) / inches)
    )
    axes.set_facecolor(PANEL)
    for edge in axes.spines.values():
        edge.set_visible(False)
    axes.tick_params(length=0, labelsize=7.5)
    kinds: dict[str, Callable[..., None]] = {
        "timeseries": lines,
        "state-timeline": timeline,
        "bargauge": bars,
        "stat": stats,
    }
    kinds[panel["type"]](axes, panel, series, span)


def lines(axes: Axes, panel: Object, series: Series, span: tuple[float, float]) -> None:
    """Lines over time, or areas on top of each other."""
    defaults = panel["fieldConfig"]["defaults"]
    custom = defaults["custom"]
    style = "steps-post" if custom["lineInterpolation"] == "stepAfter" else "default"
    if custom["stacking"]["mode"] == "normal":
        times = sorted({at for _, values in series for at, _ in values})
        known = [dict(values) for _, values in series]
        stacked = axes.stackplot(
            times,
            [[one.get(at, 0.0) for at in times] for one in known],
            colors=[color(place) for place in range(len(series))],
            alpha=0.45,
            linewidth=1.0,
        )
        handles: list[Any] = list(stacked)
    else:
        handles = [
            axes.plot(*zip(*broken(values), strict=True), color=color(place), linewidth=1.6, drawstyle=style)[0]
            for place, (_, values) in enumerate(series)
        ]
    over_time(axes, span)
    axes.grid(axis="y", color=EDGE, linewidth=0.7)
    if defaults.get("decimals") == 0:
        axes.yaxis.set_major_locator(MaxNLocator(5, integer=True))
    else:
        axes.yaxis.set_major_locator(MaxNLocator(5))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: said(value, defaults["unit"])))
    low, high = axes.get_ylim()
    if max(value for _, values in series for _, value in values) <= 0:
        high = 1.0
    axes.set_ylim(defaults.get("min", low), defaults.get("max", max(high, 1e-9)) * (1.03 if "max" in defaults else 1))
    shown = list(zip(handles, series, strict=True))[:MOST_IN_A_LEGEND]
    axes.legend(
        [handle for handle, _ in shown],
        [name for _, (name, _) in shown],
        loc="upper left",
        bbox_to_anchor=(-0.06, -0.11),
        ncols=4,
        frameon=False,
        fontsize=7.5,
        handlelength=1.1,
        columnspacing=1.2,
        labelcolor=TEXT,
        borderaxespad=0.2,
    )


def timeline(axes: Axes, panel: Object, series: Series, span: tuple[float, float]) -> None:
    """A line for each series, coloured while it is there; the first on top."""
    ordered = sorted(series, key=lambda one: one[1][0])
    for row, (_, values) in enumerate(ordered):
        for at, until in stretches(values):
            width = max(mdates.date2num(until) - mdates.date2num(at), 1 / 86400)
            axes.barh(row, width, left=mdates.date2num(at), height=0.72, color=color(row), alpha=0.85)
    axes.set_yticks(range(len(ordered)), [name for name, _ in ordered])
    axes.tick_params(axis="y", labelcolor=TEXT)
    axes.invert_yaxis()
    over_time(axes, span)


def bars(axes: Axes, panel: Object, series: Series, span: tuple[float, float]) -> None:
    """The last value of each series as a bar."""
    unit, most = panel["fieldConfig"]["defaults"]["unit"], panel["fieldConfig"]["defaults"].get("max", 1.0)
    for row, (_, values) in enumerate(series):
        axes.barh(row, most, height=0.55, color=EDGE)
        axes.barh(row, min(values[-1][1], most), height=0.55, color=color(0))
        axes.text(most * 1.02, row, said(values[-1][1], unit), va="center", color=color(0), size=11, weight="bold")
    axes.set_yticks(range(len(series)), [name for name, _ in series])
    axes.tick_params(axis="y", labelcolor=TEXT, labelsize=9)
    axes.set_xticks([])
    axes.set_xlim(0, most * 1.18)
    axes.set_ylim(max(len(series), 2) - 0.4, -0.6)


def stats(axes: Axes, panel: Object, series: Series, span: tuple[float, float]) -> None:
    """The last value of each series as a number."""
    unit = panel["fieldConfig"]["defaults"]["unit"]
    axes.set(xticks=[], yticks=[], xlim=(0, len(series)), ylim=(0, 1))
    size = 22 if len(series) < 4 else 15
    for column, (name, values) in enumerate(series):
        axes.text(column + 0.5, 0.85, name, ha="center", va="top", size=9)
        axes.text(
            column + 0.5,
            0.5,
            said(values[-1][1], unit),
            ha="center",
            va="top",
            size=size,
            weight="bold",
            color=color(0),
        )


def over_time(axes: Axes, span: tuple[float, float]) -> None:
    """The axis of time, the same for all panels."""
    axes.set_xlim(*(datetime.fromtimestamp(at, UTC) for at in span))
    axes.xaxis.set_major_locator(mdates.AutoDateLocator(maxticks=6))
    axes.xaxis.set_major_formatter(mdates.DateFormatter("%H:%M:%S"))
    axes.grid(axis="x", color=EDGE, linewidth=0.5)
    axes.set_axisbelow(True)


def broken(values: list[tuple[datetime, float]]) -> list[tuple[datetime, float]]:
    """With a gap where there was nothing for a while."""
    found: list[tuple[datetime, float]] = []
    for at, value in values:
        if found and (at - found[-1][0]).total_seconds() > 5:
            found.append((at, math.nan))
        found.append((at, value))
    return found


def stretches(values: list[tuple[datetime, float]]) -> list[tuple[datetime, datetime]]:
    """From when to when a series was there without a gap."""
    found: list[tuple[datetime, datetime]] = []
    for at, _ in values:
        if found and (at - found[-1][1]).total_seconds() <= 5:
            found[-1] = (found[-1][0], at)
        else:
            found.append((at, at))
    return found


def color(place: int) -> str:
    """The same for the same place in all panels."""
    return COLORS[place % len(COLORS)]


def said(value: float, unit: str) -> str:
    """A number in a unit of Grafana's."""
    if unit == "percentunit":
        return f"{100 * value:.3g}%"
    if unit == "bytes":
        return f"{value / 2**20:.0f} MiB"
    if unit == "s":
        return (
            f"{value / 60:.3g} min"
            if value >= 120
            else f"{value:.3g} s"
            if value >= 1 or value == 0
            else f"{1000 * value:.3g} ms"
        )
    text = f"{value / 1000:.3g} K" if abs(value) >= 10_000 else f"{value:.4g}"
    return text + {"reqps": " req/s", "cps": " /s"}.get(unit, "")


if __name__ == "__main__":
    main()
