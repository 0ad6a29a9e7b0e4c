"""Copies of a run's small objects: what stages wrote for people. Pages are made of them, so that one look at the store
serves all pages, and what was seen is still there when the store is gone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tandem_api.errors import DataError
from tandem_api.layout import RunLayout
from tandem_api.store import ObjectStore

#: Objects read at the same time.
READERS = 8
#: So much is kept in memory; what is beyond is left out, and said.
MAX_BYTES = 512 * 1024**2
_SUFFIXES = (".json", ".jsonl", "/result/report.html")
#: Parts of a run that are large, or told elsewhere.
_LEFT_OUT = ("/adapter/", "/adapters/", "/checkpoints/", "/request.json", "/run.json")


class Mirror:
    """The objects of one run, by key. Not for several threads at once."""

    def __init__(self, layout: RunLayout, max_bytes: int = MAX_BYTES) -> None:
        self.layout = layout
        self.left_out = 0
        """Objects that there was no room for."""
        self._max_bytes = max_bytes
        self._etags: dict[str, str] = {}
        self._objects: dict[str, bytes] = {}

    def sync(self, store: ObjectStore) -> None:
        """Fetch what is new or has changed, and forget what is gone.

        Raises the store's errors; what was fetched until then is kept.
        """
        wanted = [info for info in store.describe(self.layout.root) if _is_wanted(info.key)]
        for key in self._objects.keys() - {info.key for info in wanted}:
            del self._objects[key], self._etags[key]
        room, changed, self.left_out = self._max_bytes, [], 0
        # The tables before the journals, which may be large.
        for info in sorted(wanted, key=lambda info: ("/ledger/" in info.key or "/calls/" in info.key, info.key)):
            if info.size > room:
                self.left_out += 1
                continue
            room -= info.size
            if self._etags.get(info.key) != info.etag:
                changed.append(info)
        with ThreadPoolExecutor(READERS, thread_name_prefix="mirror") as pool:
            for info, data in zip(changed, pool.map(lambda info: _get(store, info.key), changed), strict=True):
                if data is not None:
                    self._etags[info.key], self._objects[info.key] = info.etag, data

    def get(self, key: str) -> bytes | None:
        """An object, or None."""
        return self._objects.get(key)

    def keys(self, prefix: str) -> list[str]:
        """The keys that start with `prefix`, in lexical order."""
        return sorted(key for key in self._objects if key.startswith(prefix))


def _is_wanted(key: str) -> bool:
    return key.endswith(_SUFFIXES) and not any(part in key for part in _LEFT_OUT)


def _get(store: ObjectStore, key: str) -> bytes | None:
    """The object; None where it is gone by now, or damaged: a page shows what there is."""
    try:
        return store.get(key)
    except DataError:
        return None
