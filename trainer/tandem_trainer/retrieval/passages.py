"""The passages of a corpus: JSON Lines with a title and a text each, and a store that reads any of them from the disk.

{"title": "Velmwick", "text": ["Velmwick is a town on the Sarn.", "It is known for its glass."]}
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tandem_api.errors import DataError

#: More bad lines than this are not looked for.
MAX_PROBLEMS = 10

_LINES, _OFFSETS = "passages.jsonl", "offsets.npy"


@dataclass(frozen=True)
class Passage:
    """One entry of a corpus."""

    title: str
    """May be empty."""
    text: str

    def __str__(self) -> str:
        """What a predictor is shown: `title | text`."""
        return f"{self.title} | {self.text}" if self.title else self.text


def read_passages(path: Path, where: str) -> Iterator[Passage]:
    """The passages of a corpus file, one after another: it may be larger than the memory.

    `text` is a text or a list of sentences, `title` a text that may be missing; other fields are left out.
    Raises DataError with the bad lines (the first `MAX_PROBLEMS`), or where there is no passage at all.
    """
    problems: list[str] = []
    count = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.strip():
                continue
            count += 1
            try:
                passage = _parse(line)
            except ValueError as error:
                problems.append(f"{where} line {number}: {error}")
                if len(problems) == MAX_PROBLEMS:
                    break
                continue
            if not problems:
                yield passage
    if problems:
        raise DataError("\n".join(problems))
    if not count:
        raise DataError(f'{where} holds no passages; write one JSON object a line: {{"title": ..., "text": ...}}')


def _parse(line: bytes) -> Passage:
    """Raises ValueError that says what is wrong."""
    try:
        value: Any = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON: {error}; found {line.strip()[:60]!r}") from error
    if not isinstance(value, dict):
        raise ValueError(f"found a {type(value).__name__}; each line is a JSON object with title and text")
    title, text = value.get("title") or "", value.get("text")
    if isinstance(text, list) and all(isinstance(sentence, str) for sentence in text):
        text = " ".join(filter(None, map(str.strip, text)))
    if not isinstance(title, str) or not isinstance(text, str):
        raise ValueError(
            f"found the fields {', '.join(value) or 'none'}; `text` is a text or a list of sentences, `title` a text"
        )
    return Passage(title, text)


class PassageWriter:
    """Writes a store's files into a folder. A context manager; the store is whole when its block has ended."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._offsets = [0]

    def __enter__(self) -> PassageWriter:
        self._file = (self._folder / _LINES).open("wb")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._file.close()
        np.save(self._folder / _OFFSETS, np.asarray(self._offsets, dtype=np.int64))

    def add(self, passage: Passage) -> None:
        self._offsets.append(
            self._offsets[-1] + self._file.write(json.dumps([passage.title, passage.text]).encode() + b"\n")
        )


class PassageStore:
    """Passages by their position (from 0), read from the disk when they are asked for. May be used by many threads."""

    def __init__(self, folder: Path) -> None:
        self._offsets = np.load(folder / _OFFSETS, mmap_mode="r")
        with (folder / _LINES).open("rb") as file:
            self._lines = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, position: int) -> Passage:
        start, end = self._offsets[position : position + 2].tolist()
        title, text = json.loads(self._lines[start:end])
        return Passage(title, text)
