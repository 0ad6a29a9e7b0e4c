"""What stages have written, read from the mirror. Pure. A journal may be damaged, and may have been written by another
version of Tandem: what can be read is shown, and the rest is counted."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Generic, TypeVar

from pydantic import BaseModel, ValidationError

from tandem_api.canonical import sha256_hex
from tandem_api.layout import StageLayout
from tandem_api.records import PaidRecord, PromptSet, ScoredExample, Trial, WrittenText
from tandem_operator.ui.mirror import Mirror

M = TypeVar("M", bound=BaseModel)
R = TypeVar("R", bound=PaidRecord)


@dataclass(frozen=True)
class Lines(Generic[M]):
    """The records of a journal or a table, in the order in which they were written."""

    records: tuple[M, ...] = ()
    damaged: int = 0
    """Lines that are no such record."""


def scored_examples(mirror: Mirror, stage: StageLayout) -> Lines[ScoredExample]:
    """The runs of the program that a stage has paid for; of two with one key the first."""
    return _journal(mirror, stage.ledger, _SCORED_EXAMPLES)


def written_texts(mirror: Mirror, stage: StageLayout) -> Lines[WrittenText]:
    """What models wrote beside the program's runs."""
    return _journal(mirror, stage.calls, _WRITTEN_TEXTS)


def trials(mirror: Mirror, stage: StageLayout) -> Lines[Trial]:
    """A search's table as it is now."""
    return mirror.parsed(stage.trials, _TRIALS)


def prompt_set(mirror: Mirror, stage: StageLayout, sha256: str) -> PromptSet | None:
    """A prompt set of a search; None where it is not there or damaged."""
    data = mirror.get(stage.prompt_set(sha256))
    if data is None:
        return None
    try:
        return PromptSet.model_validate_json(data)
    except ValidationError:
        return None


def loss_log(mirror: Mirror, stage: StageLayout) -> tuple[dict[str, float], ...]:
    """A training's log by optimizer step: loss and lr, or eval_loss; only what is a number."""
    log = []
    for line in (mirror.get(f"{stage.root}train_log.jsonl") or b"").splitlines():
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(entry, dict):
            log.append({str(name): float(value) for name, value in entry.items() if _is_number(value)})
    return tuple(entry for entry in log if "step" in entry)


def short_id(record: ScoredExample) -> str:
    """A record's name in addresses; its key may hold anything."""
    return sha256_hex(record.key.encode())[:16]


def _journal(mirror: Mirror, prefix: str, parse: Callable[[bytes], Lines[R]]) -> Lines[R]:
    found: dict[str, R] = {}
    damaged = 0
    for key in mirror.keys(prefix):
        lines = mirror.parsed(key, parse)
        damaged += lines.damaged
        for record in lines.records:
            found.setdefault(record.key, record)
    return Lines(tuple(found.values()), damaged)


def _lines(kind: type[M], data: bytes) -> Lines[M]:
    records: list[M] = []
    damaged = 0
    for line in data.splitlines():
        try:
            records.append(kind.model_validate_json(line))
        except ValidationError:
            damaged += 1
    return Lines(tuple(records), damaged)


#: One of each: the mirror knows by it what it has parsed before.
_SCORED_EXAMPLES, _WRITTEN_TEXTS = partial(_lines, ScoredExample), partial(_lines, WrittenText)
_TRIALS = partial(_lines, Trial)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
