"""The canary that the trainer measures, on a tiny model: who passes it, and when there is none."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.unit.trainer.lora.test_adapter import SETTINGS, base_of, write_random_adapter
from tests.unit.trainer.lora.test_training import World

from tandem_trainer.adapters.canary import MIN_NATS, Canary, find_fault, read_canary
from tandem_trainer.lora.adapter import load_adapter, new_adapter, write_adapter
from tandem_trainer.lora.canary import measure_canary, write_canary
from tandem_trainer.lora.dataset import Row
from tandem_trainer.lora.merge import merged_model

ROWS = [Row(f"{n}", (1, *(3 + (7 * n + i) % 250 for i in range(20))), 15) for n in range(40)]


def server(model: Any) -> Any:
    """Answers as vLLM does, with the log-probabilities of `model`."""

    async def complete(body: Mapping[str, Any]) -> Mapping[str, Any]:
        tokens: Sequence[int] = body["prompt"]
        with torch.no_grad():
            scores = model(torch.tensor([tokens])).logits[0].float().log_softmax(-1)
        told = [{str(t): {"logprob": float(scores[i, t])}} for i, t in enumerate(tokens[1:])]
        return {"choices": [{"text": "", "prompt_logprobs": [None, *told]}]}

    return complete


def fault_of(canary: Canary, model: Any) -> str | None:
    return asyncio.run(find_fault(canary, "run-1", server(model.eval())))


@pytest.fixture(scope="module")
def folders(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Adapters of other random weights that change much, each with its canary."""
    found = {}
    for seed in (1, 2):
        weak = write_random_adapter(model_dir, tmp_path_factory.mktemp("weak") / f"{seed}", seed=seed)
        model = load_adapter(base_of(model_dir), weak)
        for name, weight in model.named_parameters():
            if "lora_B" in name:
                weight.data *= 5
        folder = tmp_path_factory.mktemp("adapters") / f"{seed}"
        write_adapter(model, folder, "pypi://tiny")
        write_canary(model, ROWS, folder)
        found[f"{seed}"] = folder
    return found


def test_the_adapter_passes_its_canary_and_nothing_else_does(model_dir: Path, folders: dict[str, Path]) -> None:
    canary = read_canary(folders["1"])
    assert len(canary.rows) == 3 and canary.reason == ""
    assert fault_of(canary, load_adapter(base_of(model_dir), folders["1"])) is None
    other = fault_of(canary, load_adapter(base_of(model_dir), folders["2"]))
    assert other is not None and "with other weights" in other
    base = fault_of(canary, base_of(model_dir))
    assert base is not None and "with the base model" in base


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_adapter_passes_in_other_arithmetic_and_merged(
    model_dir: Path, folders: dict[str, Path], tmp_path: Path, dtype: torch.dtype
) -> None:
    canary = read_canary(folders["1"])
    assert fault_of(canary, load_adapter(base_of(model_dir, dtype), folders["1"])) is None
    merged = merged_model(model_dir, folders["1"], tmp_path, "1" * 64)
    assert fault_of(canary, base_of(merged, dtype)) is None
    damaged = base_of(merged, dtype)
    damaged.model.layers[0].mlp.down_proj.weight.data.normal_(generator=torch.Generator().manual_seed(0))
    assert fault_of(canary, damaged) is not None


def test_an_adapter_that_changes_nothing_has_no_canary_and_the_file_says_why(model_dir: Path, tmp_path: Path) -> None:
    model = new_adapter(base_of(model_dir), SETTINGS, 0)
    write_canary(model, ROWS, tmp_path)
    found = read_canary(tmp_path)
    assert found.rows == () and "at most 0.00 nats per token; below 0.5" in found.reason
    assert json.loads((tmp_path / "canary.json").read_text())["reason"] == found.reason
    assert (tmp_path / "canary.json").stat().st_mode & 0o044


def test_the_rows_are_those_that_differ_most_and_not_too_long(model_dir: Path, folders: dict[str, Path]) -> None:
    model = load_adapter(base_of(model_dir), folders["1"])
    (short,) = measure_canary(model, ROWS[:1]).rows
    assert (short.tokens, short.prompt_tokens) == (ROWS[0].input_ids, 15)
    gaps = [row.nats for row in measure_canary(model, ROWS).rows]
    assert gaps == sorted(gaps, reverse=True) and gaps[-1] >= MIN_NATS
    tokens = tuple(3 + n % 250 for n in range(500))
    long_prompt, long_completion = Row("p", tokens, 490), Row("c", tokens, 10)
    model.config.max_position_embeddings = 512
    (cut,) = measure_canary(model, [long_prompt]).rows
    assert len(cut.tokens) == 256 and cut.tokens[0] == tokens[0] and cut.tokens[1:] == tokens[-255:]
    assert cut.tokens[cut.prompt_tokens :] == tokens[490:]
    (cut,) = measure_canary(model, [long_completion]).rows
    assert (cut.tokens, cut.prompt_tokens) == (tokens[:138], 10)


def test_measuring_leaves_the_model_as_it_was(model_dir: Path, folders: dict[str, Path]) -> None:
    model = load_adapter(base_of(model_dir), folders["1"], dropout=0.5, is_trainable=True).train()
    before = {name: (w.requires_grad, w.detach().clone()) for name, w in model.named_parameters()}
    state = torch.get_rng_state()
    first = measure_canary(model, ROWS)
    assert measure_canary(model, ROWS) == first, "no dropout in it"
    assert model.training and torch.equal(torch.get_rng_state(), state)
    for name, weight in model.named_parameters():
        assert before[name][0] == weight.requires_grad and torch.equal(before[name][1], weight)


def test_a_trained_adapter_has_its_canary_in_its_folder(model_dir: Path, tmp_path: Path) -> None:
    world = World(model_dir, tmp_path, optimizer={"epochs": 4, "checkpoint": "best"})
    result = world.run()
    assert result.adapter is not None and [one.epoch for one in result.epochs] == [1, 2, 3]
    world.store.fetch_folder(result.adapter, tmp_path / "last")
    canary = read_canary(tmp_path / "last")
    assert canary.rows, canary.reason
    assert fault_of(canary, load_adapter(base_of(model_dir), tmp_path / "last")) is None
    assert fault_of(canary, base_of(model_dir)) is not None
    texts = {world.store.objects[f"{world.prefix}adapters/{epoch}/canary.json"] for epoch in (1, 2, 3)}
    assert len(texts) == 3, "each epoch's adapter has its own"
