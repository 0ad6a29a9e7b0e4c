"""The local event source: one pass after another until the run has ended or somebody stops it."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Protocol

from tandem_api.v1alpha1 import OptimizationRun
from tandem_operator.cli.glance import Glance, from_platform
from tandem_operator.platforms.local.platform import LocalPlatform
from tandem_operator.reconcile import reconcile

#: Seconds between two passes when nothing ends in between. One costs a millisecond where nothing has changed.
INTERVAL_SECONDS = 0.2


class Interrupt:
    """How often the user (or the system) has asked us to stop."""

    def __init__(self) -> None:
        self._count = 0

    @property
    def is_asked(self) -> bool:
        """Whether to stop in good order."""
        return self._count > 0

    @property
    def is_impatient(self) -> bool:
        """Whether to kill what does not stop by itself."""
        return self._count > 1

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Count SIGINT, SIGTERM and SIGHUP instead of dying of them; what is ignored (nohup) stays so."""
        numbers = [
            number
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
            if signal.getsignal(number) is not signal.SIG_IGN
        ]
        before = {number: signal.signal(number, self._count_one) for number in numbers}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _count_one(self, number: int, frame: FrameType | None) -> None:
        self._count += 1


class Display(Protocol):
    """Where a run is shown while it goes on."""

    def update(self, run: OptimizationRun, glance: Glance) -> None:
        """Show how it is now."""


def drive(platform: LocalPlatform, display: Display, interrupt: Interrupt) -> bool:
    """Bring the run to its end, or to where `interrupt` says. Returns whether it has ended (or is suspended)."""
    while True:
        finished = reconcile(platform).finished
        if platform.seen is not None:
            run = platform.load()
            display.update(run, from_platform(run, platform.seen))
        if finished:
            return True
        if interrupt.is_asked:
            return False
        platform.wait(INTERVAL_SECONDS)
