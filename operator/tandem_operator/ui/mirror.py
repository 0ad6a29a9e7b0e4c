"""Copies of a run's small objects: what stages wrote for people. Pages are made of them, so that one look at the store
serves all pages, and what was seen is still there when the store is gone."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from tandem_api.errors import DataError
from tandem_api.layout import RunLayout
from tandem_api.store import ObjectStore

#: Objects read at the same time.
READERS = 8
#: So much is kept in memory, as it lies in the store; what is beyond is left out, and said.
MAX_BYTES = 512 * 1024**2
_SUFFIXES = (".json", ".jsonl", "/result/report.html")
#: Parts of a run that are large, or told elsewhere.
_LEFT_OUT = ("/adapter/", "/adapters/", "/checkpoints/", "/request.json", "/run.json")
_JOURNALS = ("/ledger/", "/calls/")
T = TypeVar("T")


@dataclass(frozen=True)
class _Copy:
    etag: str
    data: bytes
    parsed: dict[object, Any] = field(default_factory=dict)
    """What was made of it, by what made it."""


class Mirror:
    """The objects of one run, by key. Not for several threads at once."""

    def __init__(self, layout: RunLayout, max_bytes: int = MAX_BYTES) -> None:
        self.layout = layout
        self.left_out = 0
        """Objects that there was no room for."""
        self._max_bytes = max_bytes
        self._copies: dict[str, _Copy] = {}

    def sync(self, store: ObjectStore) -> None:
        """Fetch what is new or has changed, and forget what is gone.

        Raises the store's errors; what was fetched until then is kept.
        """
        wanted = [info for info in store.describe(self.layout.root) if self._is_wanted(info.key)]
        room, fitting = self._max_bytes, []
        # The tables before the journals, which may be large.
        for info in sorted(wanted, key=lambda info: (self._is_in(info.key, _JOURNALS), info.key)):
            if info.size <= room:
                room -= info.size
                fitting.append(info)
        self.left_out = len(wanted) - len(fitting)
        for key in self._copies.keys() - {info.key for info in fitting}:
            del self._copies[key]
        changed = [info for info in fitting if info.key not in self._copies or self._copies[info.key].etag != info.etag]
        with ThreadPoolExecutor(READERS, thread_name_prefix="mirror") as pool:
            for info, data in zip(changed, pool.map(lambda info: _get(store, info.key), changed), strict=True):
                if data is not None:
                    self._copies[info.key] = _Copy(info.etag, data)

    def get(self, key: str) -> bytes | None:
        """An object, or None."""
        copy = self._copies.get(key)
        return copy.data if copy is not None else None

    def parsed(self, key: str, parse: Callable[[bytes], T]) -> T:
        """What the same function makes of an object, or of nothing where there is none; made once for each content."""
        copy = self._copies.get(key)
        if copy is None:
            return parse(b"")
        if parse not in copy.parsed:
            copy.parsed[parse] = parse(copy.data)
        found: T = copy.parsed[parse]
        return found

    def keys(self, prefix: str) -> list[str]:
        """The keys that start with `prefix`, in lexical order."""
        return sorted(key for key in self._copies if key.startswith(prefix))

    def _is_wanted(self, key: str) -> bool:
        return key.endswith(_SUFFIXES) and not self._is_in(key, _LEFT_OUT)

    def _is_in(self, key: str, parts: tuple[str, ...]) -> bool:
        # Only below the run's root: a prefix, a namespace or a run may have any of these names.
        below = key[len(self.layout.root) - 1 :]
        return any(part in below for part in parts)


def _get(store: ObjectStore, key: str) -> bytes | None:
    """The object; None where it is gone by now, or damaged: a page shows what there is."""
    try:
        return store.get(key)
    except DataError:
        return None
