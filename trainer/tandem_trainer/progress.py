"""What a worker is doing now, in a small file that the platform reads. Written often, never relied on."""

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


class ProgressFile:
    """Throttled, atomic writes of `Progress` to `path`; does nothing when `path` is None.

    A report inside the interval is kept, and written by the next one that is due or by `flush`. The end of the work
    (`done == total`) is always written. Not thread-safe: one thread reports.
    """

    def __init__(self, path: Path | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._written = -INTERVAL_SECONDS
        self._start: tuple[float, int] | None = None
        self._pending: Progress | None = None

    @classmethod
    def from_environment(cls) -> ProgressFile:
        """The file that `TANDEM_PROGRESS_FILE` names, if it is set."""
        name = os.environ.get(ENV_PROGRESS)
        return cls(Path(name) if name else None)

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
        if self._path is None:
            return
        now = self._clock()
        if self._start is None or done < self._start[1]:
            self._start = (now, done)
        finished = done >= total
        due = now - self._written >= INTERVAL_SECONDS
        if not (due or finished):
            self._pending = self._progress(now, done, total, message, score, loss, usage)
            return
        self._write(self._progress(now, done, total, message, score, loss, usage), now)

    def flush(self) -> None:
        """Write the last report if the interval held it back."""
        if self._pending is not None:
            self._write(self._pending, self._clock())

    def _progress(
        self,
        now: float,
        done: int,
        total: int,
        message: str,
        score: float | None,
        loss: float | None,
        usage: Usage | None,
    ) -> Progress:
        since, before = self._start or (now, done)
        paid = done - before
        eta = (now - since) / paid * max(0, total - done) if paid > 0 else None
        return Progress(
            done=done,
            total=total,
            eta_seconds=None if eta is None else round(eta, 1),
            message=message,
            score=score,
            loss=loss,
            usage=usage or Usage(),
        )

    def _write(self, progress: Progress, now: float) -> None:
        assert self._path is not None
        self._written, self._pending = now, None
        staging = self._path.with_name(f".{self._path.name}.tmp")
        # A full disk must not end the work that is merely being reported.
        with contextlib.suppress(OSError):
            staging.write_text(progress.model_dump_json(exclude_none=True), encoding="utf-8")
            staging.replace(self._path)
