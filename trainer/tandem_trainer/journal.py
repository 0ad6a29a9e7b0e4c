"""A journal: what a stage has paid for, kept in S3 as it comes, so that a restart pays for nothing twice.

The ledger of scored examples is one, the calls of models outside of the program (`lm/writer.py`) are another.

Records are added on the event loop and cost it an append. A thread writes what is pending as one new object, a batch
at a time: whenever the last write is done and `INTERVAL_SECONDS` have passed, or at once when as many wait as there
are calls in flight. So a kill loses at most what was in flight and about one batch. Objects are never rewritten.
"""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

from pydantic import ValidationError

from tandem_api.errors import DataError
from tandem_api.records import PaidRecord
from tandem_api.store import ObjectStore
from tandem_api.v1alpha1.status import Usage

#: The shortest time between two writes, unless a whole batch waits.
INTERVAL_SECONDS = 0.2
#: How often it is looked whether there is room.
ROOM_SECONDS = 0.01
#: Objects read at the same time when a journal is loaded.
READERS = 8


R = TypeVar("R", bound=PaidRecord)


class Journal(Generic[R]):
    """The records of one stage, of all its attempts. Of two records with one key the first wins."""

    def __init__(
        self, kind: type[R], store: ObjectStore, prefix: str, *, batch: int = 32, writer: str | None = None
    ) -> None:
        """`kind`: the class of the records. `prefix` ends in a slash. `batch`: as many pending records are written at
        once (the run's concurrency).

        `writer` names this process in the objects' keys and must never occur twice, or records would be overwritten;
        the default begins with the time, so that lexical order is the order of writing.
        """
        self._kind = kind
        self._store = store
        self._prefix = prefix
        self._batch = batch
        self._writer = writer or f"{time.time_ns():020d}-{secrets.token_hex(4)}"
        self._sequence = 0
        self._records: dict[str, R] = {}
        self._calls = self._prompt_tokens = self._completion_tokens = 0
        self._lock = threading.Lock()
        self._pending: list[R] = []  # guarded by the lock: an append must not miss the writer's swap
        self._unwritten = 0  # guarded by the lock
        self._failure: BaseException | None = None
        self._closing = False
        self._wake = threading.Event()
        self._full = threading.Event()
        self._thread: threading.Thread | None = None

    def load(self) -> dict[str, R]:
        """Read what earlier attempts wrote, by key. Raises DataError for an object that is garbled."""
        keys = [key for key in self._store.list(self._prefix) if key.endswith(".jsonl")]
        with ThreadPoolExecutor(READERS, thread_name_prefix="journal-reader") as pool:
            for records in pool.map(self._read, keys):
                for record in records:
                    self._keep(record)
        return dict(self._records)

    def get(self, key: str) -> R | None:
        """The record of that key, if there is one."""
        return self._records.get(key)

    def add(self, record: R) -> None:
        """Keep a record; it is written soon. Does nothing if its key is known.

        Raises what the writing thread met, so that work stops when it can no longer be kept.
        """
        if self._failure is not None:
            raise self._failure
        if not self._keep(record):
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._write_all, name="journal", daemon=True)
            self._thread.start()
        with self._lock:
            self._pending.append(record)
            self._unwritten += 1
            waiting = len(self._pending)
        if waiting == 1:
            self._wake.set()
        if waiting >= self._batch:
            self._full.set()

    async def room(self) -> None:
        """Wait while a whole batch is unwritten: to be called before new work is begun.

        So a kill costs at most that batch and what is in flight, also when the store is slower than the model.
        """
        while self._unwritten >= self._batch and self._failure is None:  # noqa: ASYNC110 - a thread ends it
            await asyncio.sleep(ROOM_SECONDS)

    def close(self) -> None:
        """Write what is pending and end the thread. Raises what the writing met. Blocks: call it off the event loop."""
        self._closing = True
        self._wake.set()
        self._full.set()
        if self._thread is not None:
            self._thread.join()
        if self._failure is not None:
            raise self._failure

    @property
    def usage(self) -> Usage:
        """What all records together cost: the stage's LM usage over all its attempts."""
        return Usage(calls=self._calls, prompt_tokens=self._prompt_tokens, completion_tokens=self._completion_tokens)

    def _keep(self, record: R) -> bool:
        if record.key in self._records:
            return False
        self._records[record.key] = record
        self._calls += record.usage.calls
        self._prompt_tokens += record.usage.prompt_tokens
        self._completion_tokens += record.usage.completion_tokens
        return True

    def _read(self, key: str) -> list[R]:
        data = self._store.get(key) or b""
        records = []
        for number, line in enumerate(data.splitlines(), start=1):
            try:
                records.append(self._kind.model_validate_json(line))
            except ValidationError as error:
                kind = self._kind.__name__
                raise DataError(
                    f"{self._store.uri(key)} line {number} is not a {kind} ({error.error_count()} problems); "
                    "the object was damaged: delete it, and what it held will be paid for again"
                ) from error
        return records

    def _write_all(self) -> None:
        try:
            while True:
                self._wake.wait()
                self._wake.clear()
                self._full.clear()
                with self._lock:
                    records, self._pending = self._pending, []
                self._write(records)
                if self._closing and not self._pending:
                    return
                self._full.wait(INTERVAL_SECONDS)
                if self._pending:
                    self._wake.set()
        except BaseException as error:  # handed to the event loop's thread by add() and close()
            self._failure = error

    def _write(self, records: Iterable[R]) -> None:
        lines = [record.model_dump_json(exclude_defaults=True) for record in records]
        if lines:
            self._sequence += 1
            key = f"{self._prefix}{self._writer}-{self._sequence:08d}.jsonl"
            self._store.put(key, ("\n".join(lines) + "\n").encode())
            with self._lock:
                self._unwritten -= len(lines)
