"""A run's changes as they come, read by a thread of its own: a display must not stand still while nothing happens."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from tandem_api.errors import TandemError
from tandem_operator.cli.cluster.client import Cluster, Resource
from tandem_operator.cli.cluster.failures import UnreachableError
from tandem_operator.cli.cluster.patience import Patience

#: Between two watches, so that a server that ends each of them at once is not overrun.
_BETWEEN_SECONDS = 0.2


@dataclass(frozen=True)
class Gone:
    """The run is not there any more."""


@dataclass(frozen=True)
class Lost:
    """The connection is lost; another attempt follows."""

    error: UnreachableError


@dataclass(frozen=True)
class Restored:
    """The connection is there again."""


News = Resource | Gone | Lost | Restored


class Feed:
    """Watches one run and reconnects as often as it takes."""

    def __init__(self, cluster: Cluster, namespace: str, name: str, patience: Patience | None = None) -> None:
        self._watch: Callable[[], None] = lambda: self._session(cluster, namespace, name)
        self._patience = patience or Patience()
        self._news: queue.Queue[News | TandemError] = queue.Queue()
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        # The thread hangs in a read for up to a minute; the command does not wait for it.
        threading.Thread(target=self._run, name="watch", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()

    def next(self, timeout_seconds: float) -> News | None:
        """What came, or None when nothing did in this time. Raises TandemError when no more will come."""
        try:
            news = self._news.get(timeout=timeout_seconds)
        except queue.Empty:
            return None
        if isinstance(news, TandemError):
            raise news
        return news

    def _run(self) -> None:
        while not self._closed.is_set():
            try:
                try:
                    self._watch()
                    pause = _BETWEEN_SECONDS
                except UnreachableError as error:
                    pause = self._lost(error)
            except TandemError as error:
                self._news.put(error)
                return
            self._closed.wait(pause)

    def _session(self, cluster: Cluster, namespace: str, name: str) -> None:
        for resource in cluster.watch(namespace, name):
            if self._closed.is_set():
                return
            if self._patience.is_tried:
                self._news.put(Restored())
            self._patience.restored()
            self._news.put(resource if resource is not None else Gone())

    def _lost(self, error: UnreachableError) -> float:
        if not self._patience.is_tried:
            self._news.put(Lost(error))
        return self._patience.pause_after(error)
