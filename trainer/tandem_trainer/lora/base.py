"""The base model's directory on this machine, and what can be read from it without torch."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

from tandem_api.errors import ConfigurationError, StorageUnavailableError
from tandem_trainer.models import ModelError, OpenStore, materialize, open_bucket


def local_model(uri: str, cache: Path, open_store: OpenStore = open_bucket) -> Path:
    """The directory of the model at `uri`; downloaded or converted into `cache`/models if it has to be.

    `open_store` opens the bucket of an s3:// model. Raises ConfigurationError for a model that cannot be had,
    StorageUnavailableError when a later try may get it, StorageRefusedError for a bucket that may not be read.
    """
    try:
        return materialize(uri, cache / "models", open_store=open_store)
    except ModelError as error:
        raise ConfigurationError(str(error)) from error
    except ConnectionError as error:
        raise StorageUnavailableError(str(error)) from error


def stop_ids(model: Path) -> list[int]:
    """The tokens at which vLLM ends an answer of this model, beside the tokenizer's own: its generation settings."""
    for name in ("generation_config.json", "config.json"):
        found = _read(model / name).get("eos_token_id")
        if found is not None:
            return [found] if isinstance(found, int) else list(found)
    return []


def context_length(model: Path) -> int | None:
    """The longest prompt and answer that the model can take, in tokens; None where its configuration does not say."""
    config = _read(model / "config.json")
    found = {**config, **(config.get("text_config") or {})}.get("max_position_embeddings")
    return found if isinstance(found, int) else None


def parameter_count(model: Path) -> int:
    """The numbers in the model's safetensors files, by their headers: no weights are read.

    Raises ConfigurationError for a damaged file, and where there is none that transformers reads. Weights of several
    numbers in one (4-bit formats) count as one.
    """
    return sum(
        math.prod(tensor["shape"])
        for file in _weights(model)
        for name, tensor in _header(file).items()
        if name != "__metadata__"
    )


def _weights(model: Path) -> list[Path]:
    """The files that hold the model. Beside them there may be the same weights once more (consolidated.safetensors)."""
    named = _read(model / "model.safetensors.index.json").get("weight_map")
    files = sorted({model / name for name in named.values()} if named else model.glob("model*.safetensors"))
    if not files:
        found = ", ".join(sorted(file.name for file in model.glob("*.safetensors"))) or "none"
        raise ConfigurationError(
            f"model: *.safetensors found in {model}: {found}; wanted: model.safetensors, or the files that "
            "model.safetensors.index.json names; save the model with save_pretrained()"
        )
    return files


def _header(file: Path) -> dict[str, Any]:
    """A safetensors file begins with its header's length (8 bytes, little endian), then the header as JSON."""
    try:
        with file.open("rb") as content:
            (size,) = struct.unpack("<Q", content.read(8))
            header: dict[str, Any] = json.loads(content.read(size))
    except (OSError, struct.error, ValueError, MemoryError, OverflowError) as error:
        raise ConfigurationError(f"model: {file} is no safetensors file ({error}); download the model again") from error
    return header


def _read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise ConfigurationError(f"model: {path} is not JSON ({error}); download the model again") from error
    return content if isinstance(content, dict) else {}
