"""How two texts differ, word by word. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

#: Texts with more words are compared line by line: the time grows with the square.
MAX_WORDS = 2000


@dataclass(frozen=True)
class Part:
    """A piece of text, and where it is: in both, in the new one only, in the old one only."""

    kind: Literal["same", "added", "removed"]
    text: str


def compare(old: str, new: str) -> tuple[Part, ...]:
    """The parts in reading order. Without the removed ones they make `new`, without the added ones `old`."""
    before, after = _words(old), _words(new)
    if max(len(before), len(after)) > MAX_WORDS:
        before, after = old.splitlines(keepends=True), new.splitlines(keepends=True)
    return tuple(_parts(before, after))


def _words(text: str) -> list[str]:
    return re.findall(r"\w+|\s+|[^\w\s]", text)


def _parts(before: Sequence[str], after: Sequence[str]) -> Iterator[Part]:
    for tag, i, j, k, m in SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
        old, new = "".join(before[i:j]), "".join(after[k:m])
        if tag == "equal":
            yield Part("same", new)
            continue
        if old:
            yield Part("removed", old)
        if new:
            yield Part("added", new)
