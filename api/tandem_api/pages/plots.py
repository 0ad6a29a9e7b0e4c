"""The page's figures: inline SVG, made by pure functions, without any script.

Widths are percentages and heights are pixels, so that a figure fills a phone and a wide screen alike while its text
keeps its size; only curves, which have no percentages in SVG, lie in an inner `viewBox` that is stretched. Colours are
the page's own variables (light, dark and print); shape and dashes tell the same without colour.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from tandem_api.pages.formats import duration, measure, percent

#: Score figure: where 0% and 100% lie, in percent of the width; the rest is room for the marks.
_SCORE_LEFT, _SCORE_WIDTH = 2.0, 96.0
_SCORE_ROW = 42
#: Loss figure: room for the labels of the loss axis, and the height of the curves in pixels.
_LOSS_LEFT, _LOSS_WIDTH, _LOSS_HEIGHT = 15.0, 83.0, 190
_TIME_ROW = 36
_TIME_STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14400, 28800, 43200, 86400)
#: Curves with at most so many points show each of them.
_MAX_DOTS = 40


@dataclass(frozen=True)
class ScoreMark:
    """One candidate in the figure of scores; scores are in [0, 1]."""

    label: str
    score: float
    low: float
    high: float
    optimized: bool
    """A filled mark; the program's original prompts are hollow."""
    adapter: bool
    """A diamond; the base model is a circle."""
    best: bool


@dataclass(frozen=True)
class Bar:
    """One stage in the timeline; all in seconds since the run began."""

    label: str
    start: float
    seconds: float
    loading: float
    """Waiting for the model server, right before `start`."""


@dataclass(frozen=True)
class LossPoint:
    """One value of a loss curve."""

    step: float
    loss: float


def scores_plot(marks: Sequence[ScoreMark], baseline: float | None) -> Markup:
    """Every candidate's score with its 95% interval, one below the other; a dashed line where the baseline lies."""
    top = 20
    bottom = top + _SCORE_ROW * len(marks)
    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(_line(_score_x(tick), top, _score_x(tick), bottom, "grid"))
        anchor = {0.0: "start", 1.0: "end"}.get(tick, "middle")
        x = {0.0: "0%", 1.0: "100%"}.get(tick, _score_x(tick))
        parts.append(_text(x, bottom + 16, f"{tick:.0%}", "tick", anchor))
    if baseline is not None:
        parts.append(_line(_score_x(baseline), top - 4, _score_x(baseline), bottom, "baseline"))
        anchor = "start" if baseline < 0.15 else "end" if baseline > 0.85 else "middle"
        parts.append(_text(_score_x(baseline), 12, f"baseline {percent(baseline)}", "tick", anchor))
    for row, mark in enumerate(marks):
        y = top + _SCORE_ROW * row
        parts.append(_text("0%", y + 15, mark.label, "label"))
        value = f"\N{BLACK STAR} best {percent(mark.score)}" if mark.best else percent(mark.score)
        parts.append(_text("100%", y + 15, value, "label strong" if mark.best else "label", "end"))
        low, high, middle = _score_x(mark.low), _score_x(mark.high), y + 28
        parts.append(_line(low, middle, high, middle, "interval"))
        parts += [_line(end, middle - 4, end, middle + 4, "interval") for end in (low, high)]
        parts.append(_mark(_score_x(mark.score), middle, mark))
    told = "; ".join(
        f"{mark.label}: {percent(mark.score)} ({percent(mark.low)} to {percent(mark.high)})"
        f"{', the best' if mark.best else ''}"
        for mark in marks
    )
    return _figure("scores", "Validation scores of all candidates with 95% intervals", told, bottom + 22, parts)


def loss_plot(name: str, training: Sequence[LossPoint], validation: Sequence[LossPoint]) -> Markup:
    """The training loss (solid) and the validation loss (dashed, squares) by optimizer step.

    `name` keeps the figure's ids apart from those of other figures. Values that are no finite numbers are left out.
    Empty when there is nothing to draw.
    """
    curves = [[p for p in points if math.isfinite(p.loss)] for points in (training, validation)]
    drawn = [point for points in curves for point in points]
    if not drawn:
        return Markup("")
    last = max(point.step for point in drawn)
    first = min(0.0, *(point.step for point in drawn)) if len(drawn) > 1 else 0.0
    low, high, ticks = _loss_axis(drawn)
    top, bottom = 10, 10 + _LOSS_HEIGHT

    def across(step: float) -> float:
        return (step - first) / (last - first) if last > first else 0.5

    def down(loss: float) -> float:
        return (high - loss) / (high - low)

    parts = []
    for tick in ticks:
        y = top + down(tick) * _LOSS_HEIGHT
        parts.append(_line(f"{_LOSS_LEFT}%", y, f"{_LOSS_LEFT + _LOSS_WIDTH}%", y, "grid"))
        parts.append(_text(f"{_LOSS_LEFT - 2}%", y + 4, measure(tick), "tick", "end"))
    for step in _whole_ticks(last):
        x = f"{_LOSS_LEFT + _LOSS_WIDTH * across(step):.3f}%"
        parts.append(_text(x, bottom + 18, f"{step:,}", "tick", "middle"))
    parts.append(_text("100%", bottom + 36, "optimizer step", "tick", "end"))
    for points, style in zip(curves, ("training", "validation"), strict=True):
        parts.append(_curve(points, across, down, style, top))
        if style == "validation" or len(points) <= _MAX_DOTS:
            for point in points:
                x = f"{_LOSS_LEFT + _LOSS_WIDTH * across(point.step):.3f}%"
                parts.append(_dot(x, top + down(point.loss) * _LOSS_HEIGHT, style))
    told = [
        f"{style} loss from {measure(points[0].loss)} at step {points[0].step:g} "
        f"to {measure(points[-1].loss)} at step {points[-1].step:g}"
        for points, style in zip(curves, ("training", "validation"), strict=True)
        if points
    ]
    return _figure(f"loss-{name}", "Loss by optimizer step", "; ".join(told), bottom + 44, parts)


def timeline_plot(bars: Sequence[Bar]) -> Markup:
    """The stages on the run's clock, one below the other; outlined: waiting for the model server."""
    end = max((bar.start + bar.seconds for bar in bars), default=0.0) or 1.0
    bottom = 4 + _TIME_ROW * len(bars)
    parts = []
    for tick in _time_ticks(end):
        x = f"{100 * tick / end:.3f}%"
        parts.append(_line(x, 4, x, bottom, "grid"))
        parts.append(_text(x, bottom + 16, duration(tick), "tick", "start" if tick == 0 else "middle"))
    for row, bar in enumerate(bars):
        y = 4 + _TIME_ROW * row
        parts.append(_text("0%", y + 14, bar.label, "label"))
        loading = f" (+ {duration(bar.loading)} loading)" if bar.loading >= 0.05 else ""
        parts.append(_text("100%", y + 14, f"{duration(bar.seconds)}{loading}", "label", "end"))
        if bar.loading >= 0.05:
            parts.append(_rect(max(0.0, bar.start - bar.loading) / end, bar.loading / end, y + 19, "loading"))
        parts.append(_rect(bar.start / end, bar.seconds / end, y + 19, "running"))
    told = "; ".join(f"{bar.label}: {duration(bar.seconds)}, begun after {duration(bar.start)}" for bar in bars)
    return _figure("timeline", "When each stage ran", told, bottom + 22, parts)


def _figure(name: str, title: str, description: str, height: float, parts: Sequence[Markup]) -> Markup:
    return Markup(
        '<svg class="plot" role="img" width="100%" height="{height:.0f}" aria-labelledby="{name}-t {name}-d">'
        '<title id="{name}-t">{title}</title><desc id="{name}-d">{description}</desc>{parts}</svg>'
    ).format(name=name, title=title, description=description, height=height, parts=Markup("\n").join(parts))


def _text(x: str, y: float, content: str, style: str, anchor: str = "start") -> Markup:
    return Markup('<text x="{}" y="{:.1f}" class="{}" text-anchor="{}">{}</text>').format(x, y, style, anchor, content)


def _line(x1: str, y1: float, x2: str, y2: float, style: str) -> Markup:
    return Markup('<line x1="{}" y1="{:.1f}" x2="{}" y2="{:.1f}" class="{}"/>').format(x1, y1, x2, y2, style)


def _rect(start: float, width: float, y: float, style: str) -> Markup:
    """`start` and `width` as parts of the figure's width; never too narrow to be seen."""
    x, wide = 100 * start, max(0.4, 100 * width)
    return Markup('<rect x="{:.3f}%" y="{:.1f}" width="{:.3f}%" height="11" class="{}"/>').format(
        min(x, 100 - wide), y, wide, style
    )


def _score_x(score: float) -> str:
    return f"{_SCORE_LEFT + _SCORE_WIDTH * min(1.0, max(0.0, score)):.3f}%"


def _mark(x: str, y: float, mark: ScoreMark) -> Markup:
    style = f"mark {'filled' if mark.optimized else 'hollow'}"
    ring = Markup('<circle r="11" class="ring"/>') if mark.best else Markup("")
    if mark.adapter:
        return _placed(x, y, ring + Markup('<path d="M0-8L8 0L0 8L-8 0Z" class="{}"/>').format(style))
    return _placed(x, y, ring + Markup('<circle r="6" class="{}"/>').format(style))


def _dot(x: str, y: float, style: str) -> Markup:
    if style == "validation":
        return _placed(x, y, Markup('<path d="M-4-4H4V4H-4Z" class="dot {}"/>').format(style))
    return Markup('<circle cx="{}" cy="{:.1f}" r="2.5" class="dot {}"/>').format(x, y, style)


def _placed(x: str, y: float, shape: Markup) -> Markup:
    """A shape around the origin, put at a percentage: only an inner svg can."""
    return Markup('<svg x="{}" y="{:.1f}" overflow="visible">{}</svg>').format(x, y, shape)


def _curve(
    points: Sequence[LossPoint],
    across: Callable[[float], float],
    down: Callable[[float], float],
    style: str,
    top: float,
) -> Markup:
    if len(points) < 2:
        return Markup("")
    path = " ".join(f"{1000 * across(p.step):.1f},{1000 * down(p.loss):.1f}" for p in points)
    return Markup(
        '<svg x="{}%" y="{}" width="{}%" height="{}" viewBox="0 0 1000 1000" preserveAspectRatio="none" '
        'overflow="visible"><polyline points="{}" class="curve {}"/></svg>'
    ).format(_LOSS_LEFT, top, _LOSS_WIDTH, _LOSS_HEIGHT, path, style)


def _loss_axis(points: Sequence[LossPoint]) -> tuple[float, float, list[float]]:
    """The lowest and the highest loss shown, and the ticks between; from 0 where that costs less than half."""
    lowest, highest = min(p.loss for p in points), max(p.loss for p in points)
    low = 0.0 if 0 <= lowest < highest / 2 or lowest == highest >= 0 else lowest
    step = _nice((highest - low) / 5) if highest > low else 1.0
    ticks = [step * n for n in range(math.floor(low / step + 1e-9), math.ceil(highest / step - 1e-9) + 1)]
    return ticks[0], ticks[-1] if len(ticks) > 1 else ticks[0] + step, ticks


def _nice(step: float) -> float:
    """The next of 1, 2, 2.5, 5, 10 times a power of ten."""
    power: float = 10.0 ** math.floor(math.log10(step))
    return next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= step * (1 - 1e-9))


def _whole_ticks(last: float) -> list[int]:
    step = max(1, math.ceil(_nice(last / 4))) if last > 0 else 1
    return list(range(0, math.floor(last) + 1, step))


def _time_ticks(end: float) -> list[float]:
    step = next((s for s in _TIME_STEPS if end / s <= 4), None) or 86400 * math.ceil(end / 86400 / 4)
    # A label needs some room before the figure's right edge.
    return [float(tick) for tick in range(0, math.ceil(end), step) if tick <= 0.94 * end]
