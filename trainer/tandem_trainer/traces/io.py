"""Trace files: `TraceRow` JSON lines, compressed with zstandard. Equal rows give equal bytes."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator

import zstandard
from pydantic import ValidationError

from tandem_api.canonical import canonical_json
from tandem_api.errors import DataError
from tandem_api.records import TraceRow
from tandem_api.store import ObjectStore
from tandem_api.v1alpha1.status import Artifact

#: The file's name under `StageLayout.traces`.
TRACES_NAME = "traces.jsonl.zst"

_LEVEL = 6


def write_traces(store: ObjectStore, key: str, rows: Iterable[TraceRow]) -> Artifact:
    """Write `rows` as one object; the artifact's count is their number."""
    compressed = io.BytesIO()
    count = 0
    with zstandard.ZstdCompressor(level=_LEVEL).stream_writer(compressed, closefd=False) as writer:
        for row in rows:
            writer.write(f"{canonical_json(row.model_dump(mode='json'))}\n".encode())
            count += 1
    return store.put(key, compressed.getvalue()).model_copy(update={"count": count})


def read_traces(store: ObjectStore, artifact: Artifact) -> Iterator[TraceRow]:
    """The rows of a trace file, in order, its sha256 verified first.

    Raises DataError when the file is missing, is not the one that was written, is cut off, or holds a line that is
    not a trace; the message names the file and the line.
    """
    data = store.fetch(artifact)
    count = 0
    try:
        with zstandard.ZstdDecompressor().stream_reader(io.BytesIO(data), read_across_frames=True) as reader:
            for count, line in enumerate(io.TextIOWrapper(reader, encoding="utf-8", newline="\n"), start=1):
                yield _row(line, f"{artifact.uri}, line {count}")
    except (zstandard.ZstdError, UnicodeDecodeError) as error:
        raise DataError(f"{artifact.uri} is damaged after line {count}: {error}") from error
    if artifact.count is not None and count != artifact.count:
        raise DataError(f"{artifact.uri} holds {count} rows, but {artifact.count} were written")


def _row(line: str, where: str) -> TraceRow:
    try:
        return TraceRow.model_validate_json(line)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"]) or "the line"
        raise DataError(f"{where}: {field}: {first['msg']}; a line is one TraceRow as JSON") from error
