"""Base model and adapter as one model directory, for servers that cannot apply LoRA fast (vLLM on a CPU).

The adapter stays the artifact of record; a merged model is a cache. This module imports torch only to merge.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Final

from tandem_api.canonical import digest, sha256_hex
from tandem_api.errors import ConfigurationError
from tandem_trainer.cache import written_once

FORMAT: Final = 1  # in the name of every merged directory; raise it when the merge itself changes
_WEIGHTS: Final = frozenset({".safetensors", ".bin", ".gguf", ".pt", ".pth", ".h5", ".msgpack", ".onnx"})


def merged_model(model: Path, adapter: Path, cache: Path, sha256: str) -> Path:
    """The directory of `model` with `adapter` merged in, weights and tokenizer; merges if that was not done before.

    `sha256` is the adapter's digest. Only a finished merge gets the directory's name, so a kill half-way leaves
    nothing that looks like a model. Safe to call from several processes at once.
    Raises DataError when the adapter is damaged, is not of the model, or is not one that vLLM could serve.
    """
    merged = merged_path(model, cache, sha256)
    return written_once(merged, lambda folder: _write_merged(model, adapter, folder))


def merged_path(model: Path, cache: Path, sha256: str) -> Path:
    """Where the merged model lies, or will lie."""
    return cache.absolute() / "merged" / digest([FORMAT, sha256, model_key(model)])


def model_key(model: Path) -> str:
    """Tells one model directory from another without reading its weights: names, sizes, times, configuration."""
    config = model / "config.json"
    if not config.is_file():
        raise ConfigurationError(f"model: {model} is no directory with a config.json")
    files = sorted(file.resolve() for file in model.glob("*.safetensors"))
    sizes = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    return digest([sha256_hex(config.read_bytes()), sizes])


def _write_merged(model: Path, adapter: Path, folder: Path) -> None:
    """Add the adapter's change to the weights in fp32, and round once to the model's own type."""
    import torch
    from peft.tuners.lora import LoraLayer
    from transformers import AutoModelForCausalLM

    from tandem_trainer.lora.adapter import load_adapter

    tuned = load_adapter(AutoModelForCausalLM.from_pretrained(model, dtype="auto"), adapter)
    with torch.no_grad():
        for layer in tuned.modules():
            if isinstance(layer, LoraLayer):
                weight = layer.get_base_layer().weight
                weight.copy_((weight.float() + layer.get_delta_weight(tuned.active_adapter)).to(weight.dtype))
    tuned.unload().save_pretrained(folder)
    # The tokenizer, the chat template and the generation settings, exactly as the base model is served with.
    for file in model.iterdir():
        if file.is_file() and file.suffix not in _WEIGHTS and not file.name.endswith(".index.json"):
            target = folder / file.name
            if not target.exists():
                shutil.copyfile(file, target)
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes 0600, but the server may run as another user
