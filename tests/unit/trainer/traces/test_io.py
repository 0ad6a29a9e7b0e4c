"""Trace files: what is written is read again, and damage is named by file and line."""

from __future__ import annotations

import pytest
import zstandard
from tests.memory_store import MemoryStore

from tandem_api.canonical import sha256_hex
from tandem_api.errors import DataError
from tandem_api.records import PredictorCall, TraceRow
from tandem_api.v1alpha1.status import Artifact
from tandem_trainer.traces.io import read_traces, write_traces

KEY = "run/traces/traces.jsonl.zst"


def row(number: int) -> TraceRow:
    call = PredictorCall(predictor="p", inputs={"q": "ü\u2028\r\n"}, messages=({"content": "m"},), completion="c\n")
    return TraceRow(example=f"e{number}", sample=0, score=1.0, calls=(call,), vanilla=(({"content": "v"},),))


def put(store: MemoryStore, data: bytes) -> Artifact:
    return store.put(KEY, data)


def test_rows_are_read_again_in_order() -> None:
    store = MemoryStore()
    artifact = write_traces(store, KEY, [row(1), row(2)])
    assert artifact.count == 2
    assert list(read_traces(store, artifact)) == [row(1), row(2)]


def test_equal_rows_give_equal_bytes() -> None:
    store = MemoryStore()
    assert write_traces(store, KEY, [row(1)]) == write_traces(store, KEY, [row(1)])


def test_no_rows_make_a_readable_file() -> None:
    store = MemoryStore()
    assert list(read_traces(store, write_traces(store, KEY, []))) == []


def test_a_bad_line_is_named_by_file_and_line() -> None:
    store = MemoryStore()
    lines = row(1).model_dump_json() + '\n{"example": 3}\n'
    artifact = put(store, zstandard.compress(lines.encode()))
    with pytest.raises(DataError, match=r"traces\.jsonl\.zst, line 2: example"):
        list(read_traces(store, artifact))


def test_damage_is_told() -> None:
    store = MemoryStore()
    artifact = write_traces(store, KEY, [row(1), row(2)])
    store.objects[KEY] = store.objects[KEY][:-4]
    with pytest.raises(DataError):
        list(read_traces(store, artifact))
    cut = artifact.model_copy(update={"sha256": sha256_hex(store.objects[KEY])})
    with pytest.raises(DataError, match="0 rows, but 2"):
        list(read_traces(store, cut))
    with pytest.raises(DataError, match="damaged"):
        list(read_traces(store, put(store, b"no zstandard at all")))


def test_a_file_with_fewer_rows_than_were_written_is_refused() -> None:
    store = MemoryStore()
    artifact = write_traces(store, KEY, [row(1)]).model_copy(update={"count": 2})
    with pytest.raises(DataError, match="1 rows, but 2"):
        list(read_traces(store, artifact))
