"""LoRA settings that a manifest leaves out follow the model's size."""

from __future__ import annotations

import pytest

from tandem_api.v1alpha1 import Spec
from tandem_api.v1alpha1.weight_optimizers import PRESETS, WeightOptimizer


def chosen(parameters: float, **given: object) -> tuple[int | None, int | None, str | None]:
    settings = WeightOptimizer.model_validate(given).for_model(int(parameters))
    return settings.rank, settings.alpha, settings.learning_rate


@pytest.mark.parametrize(
    ("parameters", "rank", "learning_rate"),
    [(135e6, 16, "2e-4"), (1e9, 16, "1e-4"), (7.2e9, 32, "1e-4"), (15e9, 64, "5e-5"), (70e9, 64, "5e-5")],
)
def test_larger_models_get_smaller_steps_and_more_rank(parameters: float, rank: int, learning_rate: str) -> None:
    assert chosen(parameters) == (rank, 2 * rank, learning_rate)


def test_what_is_given_stays_and_alpha_follows_the_rank() -> None:
    assert chosen(70e9, rank=8) == (8, 16, "5e-5")
    assert chosen(70e9, rank=8, alpha=64, learningRate="1e-5") == (8, 64, "1e-5")
    assert chosen(135e6, alpha=8) == (16, 8, "2e-4")


def test_the_server_is_started_for_the_highest_rank_that_may_be_chosen() -> None:
    assert WeightOptimizer().highest_rank == max(preset.rank for preset in PRESETS)
    assert WeightOptimizer(rank=8).highest_rank == 8


def test_a_step_may_continue_an_adapter_whose_rank_the_model_decides() -> None:
    fields = {
        "program": {"inline": {"signature": "review -> sentiment"}},
        "metric": {"builtin": "exact-match", "field": "sentiment"},
        "data": {"train": {"uri": "file:train.jsonl"}, "inputs": ["review"]},
        "model": {"uri": "hf://org/model"},
        "strategy": "w -> w",
    }
    assert Spec.model_validate(fields).weights_of(2).rank is None
