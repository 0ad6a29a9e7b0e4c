"""Figures and times in a few characters. Pure."""

from __future__ import annotations

from datetime import UTC, datetime


def short(score: str) -> str:
    """A score with three decimals."""
    return f"{float(score):.3f}"


def age(created: str | None, now: datetime) -> str:
    """`42s`, `5m`, `3h`, `2d`, as kubectl prints it; `created` is a resource's creationTimestamp."""
    if not created:
        return ""
    seconds = int((now - datetime.fromisoformat(created).astimezone(UTC)).total_seconds())
    for limit, size, unit in ((120, 1, "s"), (7200, 60, "m"), (172_800, 3600, "h")):
        if seconds < limit:
            return f"{max(0, seconds) // size}{unit}"
    return f"{seconds // 86_400}d"
