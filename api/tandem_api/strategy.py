"""The strategy grammar: which steps a run takes, in which order.

    strategy := "vanilla" | sequence
    sequence := item ( "->" item )*
    item     := "p" | "w" | "(" sequence ")" [ "{" count "}" ]

`p` optimizes prompts, `w` optimizes weights; `(p -> w){3}` repeats the group; `vanilla` optimizes nothing and only
scores the program as it is. Source: BetterTogether
(arXiv 2407.10930), Algorithm 1 and its table of strategies; the groups are ours.
"""

from __future__ import annotations

import re
from typing import Literal

StepKind = Literal["p", "w"]

#: More steps than this are refused: the status must stay small, and no published strategy is near it.
MAX_STEPS = 32

#: Four times what as many steps need. Reading a text takes time that grows with the square of its length.
MAX_TEXT = 640

_TOKEN = re.compile(r"\s*(->|[pw](?![A-Za-z0-9_])|[(){}]|\d+)")
_ALLOWED = "allowed: vanilla, or p, w, '->', and groups such as '(p -> w){3}'"
#: The strategy without steps: the paper's name for the unchanged program.
VANILLA = "vanilla"


def parse_strategy(text: str) -> tuple[StepKind, ...]:
    """The steps of a strategy such as ``p -> w -> p``, groups unrolled; none for ``vanilla``.

    Raises ValueError that says where the text is wrong and what is allowed.
    """
    if len(text) > MAX_TEXT:
        raise ValueError(f"the strategy has {len(text)} characters; allowed: at most {MAX_TEXT}, for {MAX_STEPS} steps")
    if text.strip() == VANILLA:
        return ()
    tokens = _tokenize(text)
    if not tokens:
        raise ValueError(f"the strategy is empty; {_ALLOWED}, for example 'p -> w -> p'")
    steps, position = _parse_sequence(text, tokens, 0, depth=0)
    if position != len(tokens):
        raise ValueError(_unexpected(text, tokens, position, "'->' or the end"))
    if len(steps) > MAX_STEPS:
        raise ValueError(f"strategy {text!r} has {len(steps)} steps; at most {MAX_STEPS} are allowed")
    return tuple(steps)


def _tokenize(text: str) -> list[tuple[str, int]]:
    tokens: list[tuple[str, int]] = []
    position = 0
    while text[position:].strip():
        match = _TOKEN.match(text, position)
        if match is None:
            column = position + len(text[position:]) - len(text[position:].lstrip())
            word = re.match(r"\w+|.", text[column:])
            found = word.group() if word else text[column:]
            if found == VANILLA:
                raise ValueError(f"strategy {text!r}: {VANILLA} stands alone, as the whole text; {_ALLOWED}")
            raise ValueError(f"strategy {text!r}: unexpected {found!r} at character {column + 1}; {_ALLOWED}")
        tokens.append((match.group(1), match.start(1)))
        position = match.end()
    return tokens


def _parse_sequence(text: str, tokens: list[tuple[str, int]], position: int, depth: int) -> tuple[list[StepKind], int]:
    steps, position = _parse_item(text, tokens, position, depth)
    while position < len(tokens) and tokens[position][0] == "->":
        more, position = _parse_item(text, tokens, position + 1, depth)
        steps = steps + more
    return steps, position


def _parse_item(text: str, tokens: list[tuple[str, int]], position: int, depth: int) -> tuple[list[StepKind], int]:
    if depth > 8:
        raise ValueError(f"strategy {text!r}: groups are nested more than 8 deep; allowed: 8")
    token = tokens[position][0] if position < len(tokens) else ""
    if token == "p":
        return ["p"], position + 1
    if token == "w":
        return ["w"], position + 1
    if token != "(":
        raise ValueError(_unexpected(text, tokens, position, "'p', 'w' or '('"))
    group, position = _parse_sequence(text, tokens, position + 1, depth + 1)
    position = _expect(text, tokens, position, ")")
    if position < len(tokens) and tokens[position][0] == "{":
        count_at = position + 1
        if count_at >= len(tokens) or not tokens[count_at][0].isdigit():
            raise ValueError(_unexpected(text, tokens, count_at, "a count, as in '{3}'"))
        digits = tokens[count_at][0]
        count = int(digits) if len(digits) <= 4 else MAX_STEPS + 1
        if not 1 <= count <= MAX_STEPS:
            found = f"{digits[:8]} at character {tokens[count_at][1] + 1}"
            raise ValueError(f"strategy {text!r}: count {found} is out of range; allowed: 1 to {MAX_STEPS}")
        position = _expect(text, tokens, count_at + 1, "}")
        if len(group) * count > MAX_STEPS:
            raise ValueError(
                f"strategy {text!r}: a group of {len(group)} steps {count} times is more than the {MAX_STEPS} steps "
                "that are allowed"
            )
        group = group * count
    return group, position


def _expect(text: str, tokens: list[tuple[str, int]], position: int, token: str) -> int:
    if position >= len(tokens) or tokens[position][0] != token:
        raise ValueError(_unexpected(text, tokens, position, repr(token)))
    return position + 1


def _unexpected(text: str, tokens: list[tuple[str, int]], position: int, wanted: str) -> str:
    if position >= len(tokens):
        return f"strategy {text!r} ends where {wanted} is expected; {_ALLOWED}"
    found, column = tokens[position]
    return f"strategy {text!r}: found {found!r} at character {column + 1} where {wanted} is expected; {_ALLOWED}"
