"""The base model as it is loaded for training: in which precision, on what, and whether rows may be packed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import is_flash_attn_2_available

from tandem_api.errors import ConfigurationError

Precision = Literal["bf16", "fp32"]
TokenRow = dict[str, list[int]]


@dataclass(frozen=True)
class Hardware:
    """What this machine computes with."""

    device: Literal["cuda", "cpu"]
    has_bf16: bool
    """It multiplies bf16 matrices faster than fp32 ones."""


def detect_hardware() -> Hardware:
    """The GPU if PyTorch sees one, else the CPU.

    bf16 on a CPU: with avx512_bf16 a training step of SmolLM2-135M took 2.7 s of one core instead of 3.8 s in fp32
    (AMD Zen 4, PyTorch 2.13). Without such instructions it is emulated, and slower.
    """
    if torch.cuda.is_available():
        return Hardware("cuda", torch.cuda.is_bf16_supported(including_emulation=False))
    abilities = torch.cpu.get_capabilities()
    return Hardware("cpu", bool(abilities.get("avx512_bf16") or abilities.get("amx_bf16")))


def choose_precision(wanted: Literal["auto", "bf16", "fp32"], hardware: Hardware) -> Precision:
    """`auto` is bf16 where the hardware is made for it. Raises ConfigurationError for bf16 on a GPU without it."""
    if wanted == "auto":
        return "bf16" if hardware.has_bf16 else "fp32"
    if wanted == "bf16" and hardware.device == "cuda" and not hardware.has_bf16:
        raise ConfigurationError(
            "weightOptimizer.precision: found bf16, which this GPU cannot do; allowed here: auto, fp32"
        )
    return wanted


def load_base(folder: Path, precision: Precision, *, packing: bool = False) -> Any:
    """The base model on the CPU; with `packing` on the attention that keeps packed rows apart best, if it is there."""
    attention = "flash_attention_2" if packing and precision == "bf16" and is_flash_attn_2_available() else "sdpa"
    return AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
        attn_implementation=attention if torch.cuda.is_available() else "sdpa",
    )


def keeps_rows_apart(model: Any, collate: Callable[[list[TokenRow]], dict[str, Any]], rows: Sequence[TokenRow]) -> bool:
    """Whether a row in a packed sequence is blind to the row before it, found by changing that row.

    `rows`: two rows as the trainer's collator takes them. Which attention implementations respect the borders depends
    on the model and on library versions, so it is tried on the model itself.
    """
    first, second = rows
    changed = {key: value[::-1] for key, value in first.items()}
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    seen = []
    with torch.no_grad():
        for before in (first, changed):
            batch = {k: v.to(device) if torch.is_tensor(v) else v for k, v in collate([before, second]).items()}
            del batch["labels"]
            logits = model(**batch, use_cache=False).logits
            seen.append(logits[0, -len(second["input_ids"]) :].float())
    model.train(was_training)
    return torch.allclose(seen[0], seen[1], rtol=1e-3, atol=1e-3)
