"""How two texts differ, word by word. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Literal

#: Texts with more words are compared line by line: the time grows with the square.
MAX_WORDS = 2000
#: Fewer equal words between two changes would only tear the sentence apart.
MIN_EQUAL = 3


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
    removed, added = "", ""
    for tag, i, j, k, m in _blocks(before, after):
        old, new = "".join(before[i:j]), "".join(after[k:m])
        if tag != "equal":
            removed, added = removed + old, added + new
            continue
        yield from _change(removed, added)
        removed, added = "", ""
        yield Part("same", new)
    yield from _change(removed, added)


def _blocks(before: Sequence[str], after: Sequence[str]) -> Iterator[tuple[str, int, int, int, int]]:
    """What is equal and what is not; a few words that happen to be equal between two changes are a part of them."""
    blocks = SequenceMatcher(None, before, after, autojunk=False).get_opcodes()
    for number, block in enumerate(blocks):
        tag, i, j, _, _ = block
        is_between = 0 < number < len(blocks) - 1
        is_short = sum(not word.isspace() for word in before[i:j]) < MIN_EQUAL
        yield ("replace", *block[1:]) if tag == "equal" and is_between and is_short else block


def _change(removed: str, added: str) -> Iterator[Part]:
    if removed:
        yield Part("removed", removed)
    if added:
        yield Part("added", added)
