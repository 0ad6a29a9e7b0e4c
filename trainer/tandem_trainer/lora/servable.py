"""What vLLM demands of an adapter, checked before anything is trained or served. No torch here.

Source: vLLM 0.32, `vllm/lora/peft_helper.py` and `vllm/config/lora.py`. vLLM itself answers a violation with a 500 or
ends at start-up, after minutes of loading.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from tandem_api.errors import DataError

CONFIG_FILE: Final = "adapter_config.json"
WEIGHTS_FILE: Final = "adapter_model.safetensors"
#: What --max-lora-rank allows: ceilings, an adapter of a rank in between is served under the next one.
RANK_CEILINGS: Final = (1, 8, 16, 32, 64, 128, 256, 320, 512)
#: Initializations that leave the base weights as they are.
_PLAIN_INITS: Final = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
#: PEFT features that vLLM refuses, by their field in the configuration.
_REFUSED: Final = {
    "use_dora": "DoRA",
    "lora_bias": "a bias in the LoRA layers",
    "alora_invocation_tokens": "activated LoRA",
    "layer_replication": "replicated layers",
    "use_bdlora": "block-diagonal LoRA",
    "use_qalora": "QALoRA",
    "target_parameters": "LoRA on bare parameters",
    "trainable_token_indices": "trained token embeddings",
}


def rank_ceiling(rank: int) -> int:
    """The --max-lora-rank under which an adapter of this rank is served. Raises DataError above 512."""
    for ceiling in RANK_CEILINGS:
        if rank <= ceiling:
            return ceiling
    raise DataError(f"an adapter of rank {rank}; vLLM serves ranks up to {RANK_CEILINGS[-1]}: train a smaller rank")


def read_config(adapter: Path) -> dict[str, Any]:
    """The adapter's configuration. Raises DataError for a folder that holds no adapter that vLLM can serve."""
    try:
        config = json.loads((adapter / CONFIG_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(
            f"{adapter}: {CONFIG_FILE} cannot be read ({error}); an adapter in PEFT's form is wanted"
        ) from error
    if not (adapter / WEIGHTS_FILE).is_file():
        raise DataError(f"{adapter}: there is no {WEIGHTS_FILE}; it is not an adapter in PEFT's form")
    problems = unservable(config) if isinstance(config, dict) else ["it is not a JSON object"]
    if problems:
        raise DataError(f"{adapter / CONFIG_FILE}: vLLM cannot serve this adapter: {'; '.join(problems)}")
    return dict(config)


def unservable(config: Mapping[str, Any]) -> list[str]:
    """Why vLLM would refuse an adapter of this configuration; empty if it would not."""
    problems = []
    if str(config.get("peft_type")).upper() != "LORA":
        problems.append(f"peft_type is {config.get('peft_type')!r}, not 'LORA'")
    problems += [f"{name} is missing" for name in ("r", "lora_alpha", "target_modules") if config.get(name) is None]
    problems += [f"{name}: {what} is not supported" for name, what in _REFUSED.items() if config.get(name)]
    if config.get("bias", "none") != "none":
        problems.append(f"bias is {config['bias']!r}, not 'none'")
    extra = sorted(set(config.get("modules_to_save") or ()) - {"classifier", "score"})
    if extra:
        problems.append(f"modules_to_save holds {', '.join(extra)}; allowed: classifier, score")
    init = config.get("init_lora_weights", True)
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        problems.append(f"init_lora_weights {init!r} changes the base weights")
    ranks = [config.get("r"), *(config.get("rank_pattern") or {}).values()]
    wrong = [rank for rank in ranks if rank is not None and not _is_rank(rank)]
    problems += [f"rank {rank!r}; allowed: 1 to {RANK_CEILINGS[-1]}" for rank in wrong]
    return problems


def highest_rank(config: Mapping[str, Any]) -> int:
    """The largest rank of any layer."""
    return max([int(config["r"]), *(int(rank) for rank in (config.get("rank_pattern") or {}).values())])


def _is_rank(rank: Any) -> bool:
    return isinstance(rank, int) and not isinstance(rank, bool) and 1 <= rank <= RANK_CEILINGS[-1]
