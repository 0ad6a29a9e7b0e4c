"""What a worker is doing now: for a small file that the platform reads, and for whoever asks over HTTP.

Reported often, never relied on.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from pathlib import Path

from tandem_api.contract import ENV_PROGRESS, Progress
from tandem_api.v1alpha1.status import Usage

#: At most one write in this many seconds, so that a report a call costs nothing.
INTERVAL_SECONDS = 0.5


class ProgressReporter:
    """The last `Progress`, in `latest` and, throttled, in the file `path` if there is one.

    A report inside the interval is written by the next one that is due or by `flush`. The end of the work
    (`done == total`) is always written. One thread reports; any thread may read `latest`.
    """

    def __init__(self, path: Path | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._latest = Progress()
        self._written = -INTERVAL_SECONDS
        self._start: tuple[float, int] | None = None
        self._is_pending = False
        self.listener: Callable[[Progress], object] | None = None
        """Told of every report, in the thread that reports: it must be quick."""

    @classmethod
    def from_environment(cls) -> ProgressReporter:
        """With the file that `TANDEM_PROGRESS_FILE` names, if it is set."""
        name = os.environ.get(ENV_PROGRESS)
        return cls(Path(name) if name else None)

    @property
    def latest(self) -> Progress:
        """The last report, or an empty one before the first."""
        return self._latest

    def report(
        self,
        done: int,
        total: int,
        *,
        message: str = "",
        score: float | None = None,
        loss: float | None = None,
        usage: Usage | None = None,
    ) -> None:
        """Say that `done` of `total` units (examples, rows, optimizer steps) are done.

        The remaining time is extrapolated from the first report on; what was done by then (a ledger of an earlier
        attempt, a checkpoint) cost this attempt nothing and is left out. A `done` that falls starts the clock again.
        """
        now = self._clock()
        if self._start is None or done < self._start[1]:
            self._start = (now, done)
        self._latest = Progress(
            done=done,
            total=total,
            eta_seconds=self._time_left(now, done, total),
            message=message,
            score=score,
            loss=loss,
            usage=usage or Usage(),
        )
        self._is_pending = True
        if self.listener is not None:
            self.listener(self._latest)
        if now - self._written >= INTERVAL_SECONDS or done >= total:
            self._write(now)

    def flush(self) -> None:
        """Write the last report if the interval held it back."""
        if self._is_pending:
            self._write(self._clock())

    def _time_left(self, now: float, done: int, total: int) -> float | None:
        since, before = self._start or (now, done)
        paid = done - before
        return round((now - since) / paid * max(0, total - done), 1) if paid > 0 else None

    def _write(self, now: float) -> None:
        self._written, self._is_pending = now, False
        if self._path is None:
            return
        staging = self._path.with_name(f".{self._path.name}.tmp")
        # A full disk must not end the work that is merely being reported.
        with contextlib.suppress(OSError):
            staging.write_text(self._latest.model_dump_json(exclude_none=True), encoding="utf-8")
            staging.replace(self._path)
