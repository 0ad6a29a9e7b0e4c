"""What follows a pass that failed: how long its run waits, and whether anybody hears of it."""

from __future__ import annotations

from dataclasses import dataclass

from kubernetes.client import ApiException

from tandem_operator.platforms.kubernetes.client import what_it_says

FIRST_SECONDS, LONGEST_SECONDS = 1.0, 300.0
#: Conflicts in a row of one run that are ordinary: somebody else wrote first. More of them are an error.
QUIET_CONFLICTS = 5
_CONFLICT = 409
_MAX_TEXT = 500


@dataclass(frozen=True)
class Retry:
    """When a run's next pass is due after one that failed."""

    seconds: float
    """The wait."""
    is_quiet: bool = False
    """Whether the failure is no error, and is not told."""
    is_binding: bool = False
    """Whether the API server asked for the wait: then no event shortens it."""


def after(error: Exception, failures: int) -> Retry:
    """What to do after the `failures`-th (from 1) failed pass in a row of one run."""
    if _status(error) == _CONFLICT and failures <= QUIET_CONFLICTS:
        return Retry(0.0, is_quiet=True)
    asked = _retry_after(error)
    if asked is not None:
        return Retry(asked, is_binding=True)
    # The exponent is bounded: a float would overflow after a thousand failures.
    return Retry(min(FIRST_SECONDS * 2.0 ** min(failures - 1, 16), LONGEST_SECONDS))


def error_type(error: BaseException) -> str:
    """A label of few values: `Api409`, `Api0` (no answer), or the name of the exception's class."""
    status = _status(error)
    return type(error).__name__ if status is None else f"Api{status}"


def describe(error: BaseException) -> str:
    """The error in one line. Of the API server's answer only what it says: no headers, no body."""
    if not isinstance(error, ApiException):
        text = f"{type(error).__name__}: {error}"
    else:
        text = f"the API server answered {error.status} {error.reason}: {what_it_says(error) or 'no explanation'}"
    return " ".join(text.split())[:_MAX_TEXT]


def _status(error: BaseException) -> int | None:
    return int(error.status or 0) if isinstance(error, ApiException) else None


def _retry_after(error: Exception) -> float | None:
    """Seconds of the header Retry-After of 429 and 503. Its other form, a date, is not used by API servers."""
    headers = error.headers if isinstance(error, ApiException) else None
    try:
        return min(max(float((headers or {})["Retry-After"]), FIRST_SECONDS), LONGEST_SECONDS)
    except (KeyError, ValueError):
        return None
