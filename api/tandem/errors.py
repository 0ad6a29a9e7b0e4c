"""What the client raises beside the errors of `tandem_api.errors`."""

from __future__ import annotations

from tandem_api.errors import TandemError


class RunFailedError(TandemError):
    """The run has ended without a result."""

    code = "RunFailed"


class RunNotFinishedError(TandemError):
    """The run goes on; what was asked for is there at its end."""

    code = "RunNotFinished"


class RunGoneError(TandemError):
    """The run was deleted while it was followed."""

    code = "RunGone"


class RunStoppedError(TandemError):
    """The process of a local run has ended before the run did; what is done is kept, and `resume` goes on with it."""

    code = "RunStopped"


class WaitTimeoutError(TandemError, TimeoutError):
    """The time that was given is over; the run goes on."""

    code = "WaitTimeout"
