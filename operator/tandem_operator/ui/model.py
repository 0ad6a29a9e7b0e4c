"""What is known of the run now: read at most every so often, however many pages ask. Blocking; one thread at a time."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from datetime import UTC, datetime

from tandem_api.errors import TandemError
from tandem_api.v1alpha1 import OptimizationRun
from tandem_operator.ui.mirror import Mirror
from tandem_operator.ui.sources import Source, layout_of

#: Seconds between two looks; after one that failed, a longer time.
INTERVAL_SECONDS, PATIENCE_SECONDS = 1.0, 5.0
#: And at least so many times what the last look took: pages wait for it.
REST = 2.0


@dataclass(frozen=True)
class Seen:
    """One look at the run."""

    run: OptimizationRun
    mirror: Mirror
    now: datetime
    problems: tuple[str, ...]
    """What could not be read, and what is to be done about it."""


class Live:
    """The run of one source. `seen` is to be used under `lock`, for it looks again at what it has given out before."""

    def __init__(self, source: Source) -> None:
        """Reads the run once. Raises TandemError."""
        self.source = source
        self.lock = threading.Lock()
        self._run = source.read()
        self._mirror = Mirror(layout_of(self._run))
        self._problems: tuple[str, ...] = ()
        self._next = 0.0

    def seen(self) -> Seen:
        """What is known, at most some seconds old, or a few times as old as a look takes."""
        if time.monotonic() >= self._next:
            began = time.monotonic()
            self._problems = tuple(self._look())
            ended = time.monotonic()
            pause = PATIENCE_SECONDS if self._problems else INTERVAL_SECONDS
            self._next = ended + max(pause, REST * (ended - began))
        return Seen(self._run, self._mirror, datetime.now(UTC), self._problems)

    def _look(self) -> list[str]:
        problems = []
        try:
            run = self.source.read()
            if run.metadata.uid != self._run.metadata.uid:
                self._mirror = Mirror(layout_of(run))  # another run of the same name
            self._run = run
        except (TandemError, OSError) as error:
            problems.append(f"The run's status cannot be read; what is shown is as it was. {error}")
        try:
            self.source.sync(self._run, self._mirror)
        except (TandemError, OSError) as error:
            problems.append(f"Prompts, examples and curves cannot be read now. {error}")
        if self._mirror.left_out:
            problems.append(f"{self._mirror.left_out} large objects are left out, for want of memory.")
        return problems
