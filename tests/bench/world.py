"""The world of the scripted benchmarks: a model whose true accuracy under every prompt is known.

The answer to `item 3-17` is `k3-17` (problem 3, item 17). How often the model gives it depends on the prompt alone: on
the instruction, and on the set of demos and whether they have reasoning, not on their order or wording. Whether it
gives it for one item is drawn once for each prompt and item, with a difficulty of the item that all prompts share, as
with real models. So all that ask the same get the same, whoever they are.

`answer` is a script of tests/scripted_lm/server.py for DSPy's chat format with the signature `question -> reasoning,
answer`. Whatever else it is asked (by proposers of instructions) it answers with something sensible.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

INSTRUCTION = "Say which code the item has."
SIGNATURE = "question -> answer"

ZERO_SHOT = 0.35
LABELED = (0.40, 0.45)
BOOTSTRAPPED = (0.35, 0.85)
#: What an instruction other than the program's own adds.
PROPOSED = (-0.08, 0.12)
#: The part of the variance of success that the item's difficulty explains.
SHARED = 0.5

_NORMAL = NormalDist()
_ITEM = re.compile(r"item (\d+-\d+)")
_OUTPUTS = re.compile(r"^Your output fields are:\n((?:\d+\. .*\n?)+)", re.MULTILINE)
_FIELD = re.compile(r"^\d+\. `(\w+)`", re.MULTILINE)
_OBJECTIVE = "your objective is:"
_NOT_SUPPLIED = "Not supplied for this particular example"


def question(problem: int, item: int) -> str:
    return f"item {problem}-{item}"


def right_answer(asked: str) -> str:
    return f"k{asked.removeprefix('item ')}"


def unit(*parts: object) -> float:
    """A number from 0 to 1, always the same for the same parts."""
    digest = hashlib.blake2b("\x1f".join(map(str, parts)).encode(), digest_size=7).digest()
    return (int.from_bytes(digest, "big") + 0.5) / 256**7


def is_right(accuracy: float, prompt: str, item: str) -> bool:
    """Whether a prompt of that true accuracy, known by its text, has success with the item."""
    shared, own = _NORMAL.inv_cdf(unit("item", item)), _NORMAL.inv_cdf(unit("run", prompt, item))
    return SHARED**0.5 * shared + (1 - SHARED) ** 0.5 * own < _NORMAL.inv_cdf(accuracy)


def accuracy(messages: Sequence[dict[str, Any]]) -> float:
    """The true accuracy of the prompt that these messages of the program hold: over items without end."""
    instruction, demos = _read(messages)
    base = ZERO_SHOT
    if demos:
        low, high = BOOTSTRAPPED if any(reasoned for _, reasoned in demos) else LABELED
        base = low + (high - low) * unit("demos", *demos)
    if instruction != INSTRUCTION:
        low, high = PROPOSED
        base += low + (high - low) * unit("instruction", instruction)
    return min(0.98, max(0.02, base))


def answer(request: dict[str, Any]) -> str:
    """The model's answer to a call."""
    messages = request.get("messages", ())
    fields = _output_fields(messages[0]["content"]) if messages else []
    if "answer" in fields:
        item = _ITEM.findall(messages[-1]["content"])[-1]
        right = is_right(accuracy(messages), repr(_read(messages)), item)
        code = right_answer(f"item {item}") if right else "no idea"
        return _written({"reasoning": f"I look {item} up in the list of codes.", "answer": code})
    return _written({field: _text(field, request) for field in fields}) if fields else _proposal(request)


def _read(messages: Sequence[dict[str, Any]]) -> tuple[str, list[tuple[str, bool]]]:
    """The instruction, and the demos' items with whether they have reasoning, in the order of the items."""
    system, *turns = (str(message["content"]) for message in messages)
    instruction = system.partition(_OBJECTIVE)[2].strip()
    instruction = "\n".join(line.strip() for line in instruction.splitlines())
    pairs = zip(turns[:-1:2], turns[1::2], strict=True)
    return instruction, sorted((_ITEM.findall(asked)[-1], _NOT_SUPPLIED not in told) for asked, told in pairs)


def _output_fields(system: str) -> list[str]:
    found = _OUTPUTS.search(system)
    return _FIELD.findall(found.group(1)) if found else []


def _written(fields: dict[str, str]) -> str:
    blocks = [f"[[ ## {name} ## ]]\n{value}" for name, value in fields.items()]
    return "\n\n".join([*blocks, "[[ ## completed ## ]]"])


def _text(field: str, request: dict[str, Any]) -> str:
    if field == "observations" and "prior_observations" in request["text"]:
        return "COMPLETE"
    return _proposal(request) if "instruction" in field else "Items are looked up, and their codes are said."


def _proposal(request: dict[str, Any]) -> str:
    """An instruction; another one for another prompt, and for each time that a sampled one is asked for again."""
    again = (request["nth"], request.get("seed")) if request.get("temperature") else ()
    way = hashlib.blake2b(repr((request["text"], again)).encode(), digest_size=4).hexdigest()
    return f"Say which code the item has, and take care to look it up in the way {way}."
