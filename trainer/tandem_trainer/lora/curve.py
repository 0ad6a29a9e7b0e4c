"""The loss while it falls, for people who watch a training. The stage writes the whole log at its end; until then this
is in its place. Told, never read by a training, and no fault of the store reaches it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from tandem_api.canonical import canonical_json
from tandem_api.errors import TandemError
from tandem_api.store import ObjectStore

#: The shortest time between two writes.
INTERVAL_SECONDS = 5.0


class LossCurve:
    """Written by a thread, so that a store that is slow or away does not hold up the training. Once it is left (`with`)
    nothing more is written."""

    def __init__(self, store: ObjectStore, key: str, clock: Callable[[], float] = time.monotonic) -> None:
        """`key`: the training log's."""
        self._store = store
        self._key = key
        self._clock = clock
        self._lines: list[dict[str, float]] = []
        self._begin: int | None = None
        """The step from which this attempt goes on."""
        self._earlier: tuple[dict[str, float], ...] | None = None
        """What attempts before this one have told of the steps until then; None: not read yet."""
        self._written = clock()
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="loss-curve")
        self._writing: Future[None] | None = None

    def __enter__(self) -> LossCurve:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=True)

    def add(self, step: int, loss: float | None) -> None:
        """The training is at this optimizer step, with this loss if there is one yet."""
        if self._begin is None:
            self._begin = step
        if loss is None or (self._lines and step <= self._lines[-1]["step"]):
            return
        self._lines.append({"step": step, "loss": loss})
        now = self._clock()
        is_busy = self._writing is not None and not self._writing.done()
        if now - self._written >= INTERVAL_SECONDS and not is_busy:
            self._written = now
            self._writing = self._pool.submit(self._write, tuple(self._lines))

    def _write(self, lines: tuple[dict[str, float], ...]) -> None:
        with suppress(TandemError):
            if self._earlier is None:
                told = _parse(self._store.get(self._key) or b"")
                self._earlier = tuple(line for line in told if line["step"] <= (self._begin or 0))
            text = "".join(f"{canonical_json(line)}\n" for line in (*self._earlier, *lines))
            self._store.put(self._key, text.encode())


def _parse(data: bytes) -> Iterator[dict[str, float]]:
    for line in data.splitlines():
        with suppress(ValueError):
            entry = json.loads(line)
            if isinstance(entry, dict) and isinstance(entry.get("step"), int | float):
                yield entry
