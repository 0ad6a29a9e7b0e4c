"""Which runs there are, as the watch tells it: for the resync, and to see whether the watch still tells everything.

Versions are Kubernetes' resourceVersions and only compared for being the same.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from tandem_operator.app.queue import Key


@dataclass(frozen=True)
class _Delivery:
    version: str
    at: float


class Tracker:
    """The known runs. Change it in one thread; reading `unseen_seconds` is safe from any."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._delivered: dict[Key, _Delivery] = {}
        self._gone: dict[Key, float] = {}
        self._unseen: dict[Key, float] = {}

    @property
    def known(self) -> list[Key]:
        """All runs that the watch has told of, in order."""
        return sorted(self._delivered)

    def delivered(self, key: Key, version: str) -> None:
        """The watch has told of a run."""
        self._unseen.pop(key, None)
        self._delivered[key] = _Delivery(version, self._clock())

    def gone(self, key: Key) -> None:
        """The watch has told that a run is deleted."""
        self._unseen.pop(key, None)
        self._delivered.pop(key, None)
        self._gone[key] = self._clock()

    def compare(self, listed: Mapping[Key, str], asked_at: float) -> list[Key]:
        """The runs that differ from what the watch told. `listed`: fresh versions, asked for at `asked_at`."""
        behind = [key for key, version in listed.items() if self._is_behind(key, version, asked_at)]
        self._unseen = {key: self._unseen.get(key, asked_at) for key in behind}
        # Known, but not there any more. The watch owes nothing: after it had to list anew it never tells of those.
        lost = [key for key, known in self._delivered.items() if key not in listed and known.at < asked_at]
        for key in lost:
            del self._delivered[key]
        self._gone = {key: at for key, at in self._gone.items() if at >= asked_at}
        return behind + lost

    def unseen_seconds(self) -> float:
        """For how long the watch has owed the oldest change that it did not tell of; 0 if it owes none."""
        now = self._clock()
        return max((now - since for since in list(self._unseen.values())), default=0.0)

    def _is_behind(self, key: Key, version: str, asked_at: float) -> bool:
        known = self._delivered.get(key)
        # What was told after the question may be newer than the answer.
        if known is None:
            return self._gone.get(key, asked_at - 1) < asked_at
        return known.version != version and known.at < asked_at


def spread(keys: list[Key], seconds: float) -> Iterator[tuple[Key, float]]:
    """The keys with delays, evenly over so many seconds."""
    for place, key in enumerate(keys):
        yield key, seconds * place / len(keys)
