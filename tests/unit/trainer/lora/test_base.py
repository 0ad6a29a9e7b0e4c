from __future__ import annotations

import json
from pathlib import Path

import pytest

from tandem_api.errors import ConfigurationError
from tandem_trainer.lora.base import parameter_count


def test_parameters_are_counted_without_reading_weights(model_dir: Path) -> None:
    from transformers import AutoModelForCausalLM

    assert parameter_count(model_dir) == sum(
        p.numel() for p in AutoModelForCausalLM.from_pretrained(model_dir).parameters()
    )


def test_parameters_in_several_files_are_added(model_dir: Path, tmp_path: Path) -> None:
    content = (model_dir / "model.safetensors").read_bytes()
    for number in (1, 2):
        (tmp_path / f"model-0000{number}-of-00002.safetensors").write_bytes(content)
    assert parameter_count(tmp_path) == 2 * parameter_count(model_dir)


def test_weights_that_lie_there_a_second_time_are_not_counted(model_dir: Path, tmp_path: Path) -> None:
    content = (model_dir / "model.safetensors").read_bytes()
    for name in ("model-00001-of-00001.safetensors", "model.fp32.safetensors", "consolidated.safetensors"):
        (tmp_path / name).write_bytes(content)
    index = {"weight_map": {"a": "model-00001-of-00001.safetensors", "b": "model-00001-of-00001.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert parameter_count(tmp_path) == parameter_count(model_dir)


def test_a_model_without_weights_that_can_be_loaded_is_told(tmp_path: Path) -> None:
    (tmp_path / "consolidated.safetensors").write_bytes(b"")
    with pytest.raises(ConfigurationError, match=r"found in .*: consolidated\.safetensors; wanted: model\.safetensors"):
        parameter_count(tmp_path)


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(ConfigurationError, match=r"model\.safetensors is no safetensors file"):
        parameter_count(tmp_path)
