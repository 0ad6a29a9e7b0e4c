"""How long a command that goes on through faults bears a cluster that does not answer."""

from __future__ import annotations

import time
from collections.abc import Callable

from tandem_operator.cli.cluster.failures import UnreachableError

#: Seconds without one good answer after which a command gives up.
LIMIT_SECONDS = 600.0
_FIRST_PAUSE, _LONGEST_PAUSE = 0.5, 15.0


class Patience:
    """Counts the time since the last good answer."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._since: float | None = None
        self._pause = _FIRST_PAUSE

    @property
    def is_tried(self) -> bool:
        """Whether the last answer was a fault."""
        return self._since is not None

    def restored(self) -> None:
        """A good answer."""
        self._since, self._pause = None, _FIRST_PAUSE

    def pause_after(self, error: UnreachableError) -> float:
        """Seconds to wait until the next attempt, more each time. Raises `error` when there have been enough."""
        now = self._clock()
        self._since = now if self._since is None else self._since
        if now - self._since > LIMIT_SECONDS:
            raise error
        pause, self._pause = self._pause, min(_LONGEST_PAUSE, 2 * self._pause)
        return pause
