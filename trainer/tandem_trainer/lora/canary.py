"""Measures the canary of an adapter (`tandem_trainer.adapters.canary`) when its training ends."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch

from tandem_api.canonical import canonical_json
from tandem_trainer.adapters.canary import CANARY_FILE, MIN_NATS, Canary, CanaryRow
from tandem_trainer.lora.checkpoint import Checkpoint, Keeper
from tandem_trainer.lora.dataset import Row

logger = logging.getLogger(__name__)

#: The rows that the adapter changes most are taken out of so many: each costs two forward passes.
_TRIED_ROWS: Final = 16
_MAX_ROWS: Final = 3
#: Longer rows lose the end of their completion and the middle of their prompt.
_MAX_TOKENS: Final = 256
_MAX_COMPLETION: Final = 128


def write_canary(model: Any, rows: Sequence[Row], folder: Path) -> None:
    """Put the canary of the PEFT model's active adapter into `folder`, where the adapter lies.

    `rows`: what the adapter was trained on.
    """
    canary = measure_canary(model, rows)
    path = folder / CANARY_FILE
    path.write_text(canonical_json(canary.model_dump(mode="json")) + "\n", encoding="utf-8")
    path.chmod(0o644)
    logger.info("%s: %d rows%s", CANARY_FILE, len(canary.rows), f": {canary.reason}" if canary.reason else "")


class CanaryKeeper:
    """A `Keeper` that lays the canary of each wanted epoch's adapter beside it, into the trainer's checkpoint."""

    def __init__(self, keeper: Keeper, model: Any, rows: Sequence[Row], epochs: Sequence[int]) -> None:
        self._keeper = keeper
        self._model = model
        self._rows = rows
        self._names = frozenset(f"epoch-{epoch}" for epoch in epochs)

    def latest(self) -> Checkpoint | None:
        return self._keeper.latest()

    def save(self, source: Path, *, name: str, step: int, seconds: float) -> None:
        if name in self._names:
            write_canary(self._model, self._rows, source)
        self._keeper.save(source, name=name, step=step, seconds=seconds)


def measure_canary(model: Any, rows: Sequence[Row]) -> Canary:
    """The rows that the active adapter and the base model see most differently. The model stays as it was."""
    tried = _tried(rows)
    was_training = model.training
    model.eval()
    with torch.no_grad():
        tuned = [_logprobs(model, *row) for row in tried]
        with model.disable_adapter():
            plain = [_logprobs(model, *row) for row in tried]
    model.train(was_training)
    found = [
        CanaryRow(tokens=tokens, prompt_tokens=prompt_tokens, base=base, adapter=adapter)
        for (tokens, prompt_tokens), base, adapter in zip(tried, plain, tuned, strict=True)
        if all(map(math.isfinite, (*base, *adapter)))
    ]
    found.sort(key=lambda row: -row.nats)
    most = found[0].nats if found else 0.0
    if most < MIN_NATS:
        reason = (
            f"the adapter changes the log-probabilities of {len(found)} training completions by at most {most:.2f} "
            f"nats per token; below {MIN_NATS} it cannot be told from the base model"
        )
        return Canary(reason=reason)
    return Canary(rows=tuple(row for row in found[:_MAX_ROWS] if row.nats >= MIN_NATS))


def _tried(rows: Sequence[Row]) -> list[tuple[tuple[int, ...], int]]:
    """Tokens, and how many of them are the prompt: of different rows, evenly spread."""
    usable = [_cut(row) for row in rows if 0 < row.prompt_tokens < len(row.input_ids)]
    different = list(dict.fromkeys(usable))
    return different[:: max(1, math.ceil(len(different) / _TRIED_ROWS))]


def _cut(row: Row) -> tuple[tuple[int, ...], int]:
    tokens = row.input_ids[: row.prompt_tokens + _MAX_COMPLETION]
    lost = max(0, len(tokens) - _MAX_TOKENS)
    # The first token stays: models lean on it wherever they are in a text.
    return (tokens[0], *tokens[1 + lost :]), row.prompt_tokens - lost


def _logprobs(model: Any, tokens: Sequence[int], prompt_tokens: int) -> tuple[float, ...]:
    """Of the completion's tokens, each after all those before it."""
    ids = torch.tensor([tokens], device=next(model.parameters()).device)  # (1, length)
    logits = model(input_ids=ids, use_cache=False).logits[0, prompt_tokens - 1 : -1].float()  # (completion, vocabulary)
    losses = torch.nn.functional.cross_entropy(logits, ids[0, prompt_tokens:], reduction="none")
    return tuple(round(-loss, 3) for loss in losses.tolist())
