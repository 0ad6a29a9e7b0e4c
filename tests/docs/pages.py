"""The pages' own text, taken apart."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

from tests.docs.environment import ROOT

PAGES = (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "charts/tandem/README.md")
PAGES += tuple(sorted(ROOT.glob("examples/**/README.md")))
_FENCE = re.compile(r"^ *```(?P<language>\w*)\n(?P<text>.*?)^ *```", re.DOTALL | re.MULTILINE)
_SPAN = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")


@dataclass(frozen=True)
class Piece:
    """A block of code, or a span of it within a sentence."""

    where: str
    text: str
    language: str = ""

    def __str__(self) -> str:
        return f"{self.where}: {self.text.splitlines()[0]}"


@cache
def blocks() -> tuple[Piece, ...]:
    """Every block of code of every page."""
    texts = {page.relative_to(ROOT): page.read_text(encoding="utf-8") for page in PAGES}
    return tuple(
        Piece(f"{page}:{_line(text, match)}", match["text"], match["language"])
        for page, text in texts.items()
        for match in _FENCE.finditer(text)
    )


@cache
def spans() -> tuple[Piece, ...]:
    """Every span of code within a sentence, of every page."""
    texts = {page.relative_to(ROOT): _without_blocks(page.read_text(encoding="utf-8")) for page in PAGES}
    return tuple(
        Piece(f"{page}:{_line(text, match)}", match[1])
        for page, text in texts.items()
        for match in _SPAN.finditer(text)
    )


def command_lines(block: str) -> Iterator[str]:
    """The commands of a block: lines that go on are joined, what follows a # is left out. Where some lines begin with a
    $, the others are answers."""
    text = re.sub(r"\\\n\s*", " ", block)
    for line in re.findall(r"^\$ (.*)", text, re.MULTILINE) or text.splitlines():
        command = re.sub(r"(^|\s)#.*$", "", line).strip()
        if command:
            yield command


def _without_blocks(text: str) -> str:
    return _FENCE.sub(lambda match: "\n" * match[0].count("\n"), text)


def _line(text: str, match: re.Match[str]) -> int:
    return text.count("\n", 0, match.start()) + 1
