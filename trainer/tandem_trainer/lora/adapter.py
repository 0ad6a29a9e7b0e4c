"""LoRA adapters: fresh ones, continued ones, and how they are kept: PEFT's standard form, byte for byte equal for equal
training."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import torch
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors import SafetensorError, safe_open
from transformers import set_seed
from transformers.pytorch_utils import Conv1D

from tandem_api.errors import ConfigurationError, DataError
from tandem_api.v1alpha1.weight_optimizers import WeightOptimizer
from tandem_trainer.lora.servable import CONFIG_FILE, WEIGHTS_FILE, read_config, unservable

#: Layers that TRL (the head) or vLLM (the embeddings) cannot train or serve with LoRA.
_FORBIDDEN_TARGETS = frozenset({"lm_head", "embed_tokens", "wte"})


def new_adapter(base: Any, settings: WeightOptimizer, seed: int) -> Any:
    """`base` with fresh LoRA layers in fp32: A random, B zero, so that nothing changes before the first step.

    Raises ConfigurationError for target modules that the model lacks, or an adapter that vLLM could not serve.
    """
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=float(settings.dropout),
        target_modules=_targets(base, settings.target_modules),
        task_type="CAUSAL_LM",
    )
    problems = unservable({**config.to_dict(), "peft_type": "LORA"})
    if problems:
        raise ConfigurationError(f"weightOptimizer: vLLM could not serve the adapter: {'; '.join(problems)}")
    set_seed(seed)
    return get_peft_model(base, config)


def continued_adapter(base: Any, folder: Path, settings: WeightOptimizer) -> Any:
    """`base` with the LoRA layers of an earlier adapter, to be trained on.

    Raises ConfigurationError when the settings want another shape, DataError as `load_adapter`.
    """
    found = read_config(folder)
    if (found["r"], found["lora_alpha"]) != (settings.rank, settings.alpha):
        raise ConfigurationError(
            f"weightOptimizer: rank {settings.rank} and alpha {settings.alpha} differ from the adapter to continue "
            f"(rank {found['r']}, alpha {found['lora_alpha']}); keep them equal, or set the step's startFrom: original"
        )
    return load_adapter(base, folder, dropout=float(settings.dropout), is_trainable=True)


def load_adapter(base: Any, folder: Path, *, dropout: float = 0.0, is_trainable: bool = False) -> Any:
    """`base` with the adapter's LoRA layers, in fp32.

    Raises DataError when the adapter is damaged, is not of this model, or is not one that vLLM could serve.
    """
    read_config(folder)
    config = LoraConfig.from_pretrained(str(folder))
    config.lora_dropout = dropout
    # The URI is no name that PEFT could look anything up by.
    config.base_model_name_or_path = base.name_or_path
    try:
        model = PeftModel.from_pretrained(base, str(folder), is_trainable=is_trainable, config=config)
        with safe_open(folder / WEIGHTS_FILE, framework="pt") as weights:
            stored = set(weights.keys())
    except (RuntimeError, ValueError, KeyError, SafetensorError) as error:
        raise DataError(f"the adapter in {folder} does not fit the model: {str(error)[:512]}") from error
    # PEFT only warns of layers that it finds on one side and not on the other.
    strange = stored ^ set(get_peft_model_state_dict(model, save_embedding_layers=False))
    if strange:
        raise DataError(
            f"the adapter in {folder} does not fit the model: {len(strange)} layers are not in both, "
            f"for example {min(strange)}"
        )
    return model


def write_adapter(model: Any, folder: Path, base_uri: str) -> None:
    """Write the adapter of a PEFT model into `folder`, which is made: its configuration and its weights."""
    model.save_pretrained(str(folder))
    in_standard_form(folder, base_uri)


def in_standard_form(folder: Path, base_uri: str) -> None:
    """Make what PEFT has written into `folder` the same for equal adapters, and remove what is no part of one.

    The base model is named by its URI, not by where it lies on this machine.
    """
    path = folder / CONFIG_FILE
    config = json.loads(path.read_text(encoding="utf-8"))
    config["base_model_name_or_path"] = base_uri
    # PEFT keeps module names in sets, whose order changes from process to process.
    for name, value in config.items():
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            config[name] = sorted(value)
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    for file in folder.iterdir():
        if file.name in (CONFIG_FILE, WEIGHTS_FILE):
            file.chmod(0o644)  # safetensors writes 0600, but the server may run as another user
        else:
            file.unlink()


def _targets(base: Any, wanted: Literal["all-linear"] | tuple[str, ...]) -> list[str] | str:
    """The modules by their short names (q_proj). Raises ConfigurationError for one that is not there or not allowed."""
    layers = {name for name, module in base.named_modules() if isinstance(module, (torch.nn.Linear, Conv1D))}
    known = sorted({name.rpartition(".")[2] for name in layers} - _FORBIDDEN_TARGETS)
    if wanted == "all-linear":
        # PEFT would list every layer of the model by its full name; "0" and the like would match too much.
        return known if all(name.isidentifier() for name in known) else "all-linear"
    for target in wanted:
        is_there = any(name == target or name.endswith(f".{target}") for name in layers)
        if not is_there or target.rpartition(".")[2] in _FORBIDDEN_TARGETS:
            raise ConfigurationError(
                f"weightOptimizer.targetModules: found {target!r}; allowed for this model: all-linear, or a list of "
                f"{', '.join(known)}"
            )
    return list(wanted)
