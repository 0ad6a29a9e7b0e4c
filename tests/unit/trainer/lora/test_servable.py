from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tandem_api.errors import DataError
from tandem_trainer.lora.servable import highest_rank, rank_ceiling, read_config, unservable

GOOD: dict[str, Any] = {"peft_type": "LORA", "r": 16, "lora_alpha": 32, "target_modules": ["q_proj"], "bias": "none"}


@pytest.mark.parametrize(("rank", "ceiling"), [(1, 1), (2, 8), (16, 16), (17, 32), (257, 320), (512, 512)])
def test_a_rank_is_served_under_the_next_ceiling(rank: int, ceiling: int) -> None:
    assert rank_ceiling(rank) == ceiling


def test_a_rank_above_all_ceilings_is_refused() -> None:
    with pytest.raises(DataError, match="rank 513"):
        rank_ceiling(513)


def test_a_standard_adapter_is_servable() -> None:
    assert unservable(GOOD) == []
    assert unservable({**GOOD, "init_lora_weights": "gaussian", "rank_pattern": {"q_proj": 64}}) == []
    assert highest_rank({**GOOD, "rank_pattern": {"q_proj": 64}}) == 64


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "bias is 'all'"),
        ({"lora_bias": True}, "bias"),
        ({"modules_to_save": ["lm_head", "score"]}, "holds lm_head"),
        ({"r": 513}, "rank 513"),
        ({"r": True}, "rank True"),
        ({"rank_pattern": {"q_proj": 1024}}, "rank 1024"),
        ({"init_lora_weights": "pissa"}, "changes the base weights"),
        ({"layer_replication": [[0, 2]]}, "replicated"),
        ({"alora_invocation_tokens": [5]}, "activated"),
        ({"use_qalora": True}, "QALoRA"),
        ({"peft_type": "IA3"}, "'IA3'"),
        ({"target_modules": None}, "target_modules is missing"),
    ],
)
def test_what_vllm_refuses_is_found_before_it_is_served(change: dict[str, Any], problem: str) -> None:
    problems = unservable({**GOOD, **change})
    assert len(problems) == 1
    assert problem in problems[0]


def test_an_adapter_folder_is_checked_before_use(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"adapter_config\.json cannot be read"):
        read_config(tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({**GOOD, "use_dora": True}))
    with pytest.raises(DataError, match=r"no adapter_model\.safetensors"):
        read_config(tmp_path)
    (tmp_path / "adapter_model.safetensors").touch()
    with pytest.raises(DataError, match="DoRA"):
        read_config(tmp_path)


def test_the_checks_that_serving_needs_import_no_torch() -> None:
    code = (
        "import sys, tandem_trainer.serving, tandem_trainer.lora.servable, tandem_trainer.lora.merge;"
        "print([name for name in ('torch', 'transformers', 'peft', 'vllm', 'dspy') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
