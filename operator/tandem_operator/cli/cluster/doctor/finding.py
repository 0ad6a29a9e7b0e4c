"""What was found out about one thing of a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Level(StrEnum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    """It may work, or cannot be seen from here."""
    FAIL = "fail"
    """No run can work, or not the one of the manifest."""


@dataclass(frozen=True)
class Finding:
    """One line of the doctor's."""

    check: str
    """What was looked at, in one word."""
    level: Level
    message: str
    fix: str = ""
    """What to do; empty where nothing is to be done."""


def ok(check: str, message: str) -> Finding:
    """All is well."""
    return Finding(check, Level.OK, message)


def warn(check: str, message: str, fix: str = "") -> Finding:
    """It may work."""
    return Finding(check, Level.WARN, message, fix)


def fail(check: str, message: str, fix: str) -> Finding:
    """It cannot."""
    return Finding(check, Level.FAIL, message, fix)
