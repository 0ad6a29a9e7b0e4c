from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from tandem_api.errors import ConfigurationError, DataError
from tandem_api.v1alpha1.weight_optimizers import WeightOptimizer
from tandem_trainer.lora.adapter import continued_adapter, load_adapter, new_adapter, write_adapter
from tandem_trainer.lora.merge import merged_model, merged_path

SETTINGS = WeightOptimizer(rank=4, alpha=8)
TOKENS = torch.tensor([[5, 9, 200, 7, 33]])


def base_of(model_dir: Path, dtype: torch.dtype = torch.float32) -> Any:
    return AutoModelForCausalLM.from_pretrained(model_dir, dtype=dtype)


def write_random_adapter(model_dir: Path, folder: Path, settings: WeightOptimizer = SETTINGS, seed: int = 1) -> Path:
    """An adapter that changes what the model says: also B is random."""
    model = new_adapter(base_of(model_dir), settings, seed)
    generator = torch.Generator().manual_seed(seed)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.1
    write_adapter(model, folder, "pypi://tiny")
    return folder


def test_an_adapter_is_two_files_that_name_the_model_by_its_uri(model_dir: Path, tmp_path: Path) -> None:
    folder = write_random_adapter(model_dir, tmp_path / "adapter")
    assert sorted(file.name for file in folder.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "pypi://tiny"
    assert config["target_modules"] == sorted(config["target_modules"])
    assert config["target_modules"][:2] == ["down_proj", "gate_proj"]
    assert (folder / "adapter_model.safetensors").stat().st_mode & 0o044


def test_equal_adapters_are_equal_bytes_whatever_the_hash_seed(model_dir: Path, tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from tests.unit.trainer.lora.test_adapter import write_random_adapter;"
        "write_random_adapter(Path(sys.argv[1]), Path(sys.argv[2]))"
    )
    for seed in ("1", "2"):
        subprocess.run(
            [sys.executable, "-c", code, str(model_dir), str(tmp_path / seed)],
            check=True,
            capture_output=True,
            cwd=Path(__file__).parents[4],
            env={"PYTHONHASHSEED": seed, "HF_HUB_OFFLINE": "1", "PATH": ""},
        )
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "1" / name).read_bytes() == (tmp_path / "2" / name).read_bytes()


def test_a_fresh_adapter_changes_nothing_yet(model_dir: Path) -> None:
    with torch.no_grad():
        before = base_of(model_dir)(TOKENS).logits
        after = new_adapter(base_of(model_dir), SETTINGS, 0)(TOKENS).logits
    assert torch.equal(before, after)


@pytest.mark.parametrize("target", ["query", "lm_head", "embed_tokens"])
def test_target_modules_that_cannot_be_are_named_with_what_is_there(model_dir: Path, target: str) -> None:
    settings = WeightOptimizer(target_modules=("q_proj", target))
    with pytest.raises(ConfigurationError, match=rf"targetModules: found '{target}'.*k_proj, o_proj, q_proj"):
        new_adapter(base_of(model_dir), settings, 0)


def test_a_continued_adapter_begins_where_the_other_ended(model_dir: Path, tmp_path: Path) -> None:
    folder = write_random_adapter(model_dir, tmp_path / "adapter")
    continued = continued_adapter(base_of(model_dir), folder, WeightOptimizer(rank=4, alpha=8, dropout="0.1"))
    continued.eval()
    with torch.no_grad():
        assert torch.equal(continued(TOKENS).logits, load_adapter(base_of(model_dir), folder)(TOKENS).logits)
    trainable = {name for name, weight in continued.named_parameters() if weight.requires_grad}
    assert trainable == {name for name, _ in continued.named_parameters() if "lora_" in name}


def test_an_adapter_of_another_shape_is_not_continued(model_dir: Path, tmp_path: Path) -> None:
    folder = write_random_adapter(model_dir, tmp_path / "adapter")
    with pytest.raises(ConfigurationError, match=r"rank 8 and alpha 8 differ .*rank 4, alpha 8"):
        continued_adapter(base_of(model_dir), folder, WeightOptimizer(rank=8, alpha=8))


def test_an_adapter_of_another_model_is_refused(model_dir: Path, tmp_path: Path) -> None:
    folder = write_random_adapter(model_dir, tmp_path / "adapter")
    shallow = AutoModelForCausalLM.from_pretrained(model_dir, num_hidden_layers=1)
    with pytest.raises(DataError, match="does not fit the model: 14 layers are not in both"):
        load_adapter(shallow, folder)
    (folder / "adapter_model.safetensors").write_bytes(b"cut off")
    with pytest.raises(DataError, match="does not fit the model"):
        load_adapter(base_of(model_dir), folder)


def test_the_merged_model_says_what_base_and_adapter_say_together(model_dir: Path, tmp_path: Path) -> None:
    folder = write_random_adapter(model_dir, tmp_path / "adapter")
    merged = merged_model(model_dir, folder, tmp_path / "cache", "a" * 64)
    with torch.no_grad():
        together = load_adapter(base_of(model_dir), folder)(TOKENS).logits
        alone = base_of(merged)(TOKENS).logits
        before = base_of(model_dir)(TOKENS).logits
    assert torch.allclose(together, alone, atol=1e-5)
    assert not torch.allclose(before, alone, atol=1e-2)


def test_a_merged_model_has_the_base_models_type_and_files(model_dir: Path, tmp_path: Path) -> None:
    model = tmp_path / "bf16"
    base_of(model_dir, torch.bfloat16).save_pretrained(model)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copy(model_dir / name, model / name)
    folder = write_random_adapter(model_dir, tmp_path / "adapter")
    merged = merged_model(model, folder, tmp_path / "cache", "a" * 64)
    assert AutoModelForCausalLM.from_pretrained(merged, dtype="auto").dtype == torch.bfloat16
    assert {file.name for file in merged.iterdir()} >= {"config.json", "tokenizer.json", "chat_template.jinja"}
    assert all(file.stat().st_mode & 0o044 for file in merged.iterdir())


def test_a_merge_is_done_once_per_adapter_and_model_and_never_seen_half_done(
    model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, cache = write_random_adapter(model_dir, tmp_path / "adapter"), tmp_path / "cache"
    merged = merged_path(model_dir, cache, "a" * 64)
    left_over = merged.with_name(f".{merged.name}.tmp")
    left_over.mkdir(parents=True)
    (left_over / "model.safetensors").write_bytes(b"half")

    assert merged_model(model_dir, folder, cache, "a" * 64) == merged
    assert not left_over.exists()
    shutil.rmtree(folder)
    assert merged_model(model_dir, folder, cache, "a" * 64) == merged, "the adapter is not needed a second time"
    assert merged_path(model_dir, cache, "b" * 64) != merged
    with pytest.raises(DataError, match="cannot be read"):
        merged_model(model_dir, folder, cache, "b" * 64)
    assert not merged_path(model_dir, cache, "b" * 64).exists()
