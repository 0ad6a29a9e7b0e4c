"""Numbers and values as people read them. Used by the page's template (as filters), its sentences and its plots."""

from __future__ import annotations

import json
import math
from typing import Any

_MINUS = "\N{MINUS SIGN}"
#: What stands where there is no value.
ABSENT = "\N{EN DASH}"


def percent(score: float | str | None) -> str:
    """A score in [0, 1], a number or the status's decimal string: ``87.5%``."""
    return ABSENT if score is None else f"{100 * float(score):.1f}%"


def interval(low: float | str | None, high: float | str | None) -> str:
    """A 95% interval: ``71.2% to 95.0%``."""
    return ABSENT if low is None or high is None else f"{percent(low)} to {percent(high)}"


def points(difference: float) -> str:
    """A difference of two scores in percentage points: ``+30.0 points``."""
    tenths = round(100 * difference, 1)
    if tenths == 0:
        return "0 points"
    return f"{'+' if tenths > 0 else _MINUS}{abs(tenths):.1f} points"


def count(number: int) -> str:
    """A whole number with its thousands apart: ``12,345``."""
    return f"{number:,}"


def counted(number: int, noun: str) -> str:
    """A number of things: ``1 example``, ``1,234 examples``."""
    return f"{count(number)} {noun}{'' if number == 1 else 's'}"


def duration(seconds: float) -> str:
    """A time in its two largest units: ``0.4 s``, ``2 min 5 s``, ``3 h 4 min``."""
    if seconds < 9.95:
        return f"{max(0.0, seconds):.1f}".removesuffix(".0") + " s"
    whole = round(seconds)
    for size, name, smaller, smaller_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // smaller
            return f"{whole // size} {name}" + (f" {rest} {smaller_name}" if rest else "")
    return f"{whole} s"


def measure(value: float | int | None) -> str:
    """A loss or a learning rate, to four digits; `ABSENT` for what is no number."""
    return ABSENT if value is None or not math.isfinite(value) else f"{value:.4g}"


def text(value: Any) -> str:
    """A field's value: texts as they are, everything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
