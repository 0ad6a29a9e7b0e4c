"""The space of combinations and the surrogate over it."""

from __future__ import annotations

import random
from statistics import fmean
from typing import Any

import pytest

from tandem_api.records import PredictorPrompt, PromptSet
from tandem_api.v1alpha1.prompt_optimizers import Mipro
from tandem_trainer.prompt.mipro.space import Sizes, sizes_of, space_of
from tandem_trainer.prompt.mipro.study import Study

START = PromptSet(
    predictors={"a": PredictorPrompt(instruction="own", demos=({"q": 1},)), "b": PredictorPrompt(instruction="other")}
)


@pytest.mark.parametrize(
    ("settings", "predictors", "sizes"),
    [
        ({}, 1, Sizes(4, 6, 10)),
        ({"auto": "medium"}, 2, Sizes(8, 12, 28)),
        ({"auto": "heavy"}, 1, Sizes(12, 18, 27)),
        ({"variant": "zero-shot"}, 1, Sizes(6, 1, 9)),
        ({"variant": "bayesian-bootstrap", "instructions": 9}, 1, Sizes(1, 6, 9)),
        ({"instructions": 2, "demoSets": 3, "trials": 40}, 1, Sizes(2, 3, 40)),
    ],
)
def test_auto_says_how_much_is_tried_unless_it_is_said(settings: dict[str, Any], predictors: int, sizes: Sizes) -> None:
    assert sizes_of(Mipro.model_validate(settings), predictors) == sizes


def test_index_zero_of_everything_is_the_starting_point() -> None:
    space = space_of(START, {"a": ["new"]}, {"a": [()], "b": [({"q": 2},)]})
    assert space.prompts({}) == START
    assert space.variables == {"a.instruction": 2, "a.demos": 2, "b.demos": 2}, "b has one instruction: no variable"
    other = space.prompts({"a.instruction": 1, "a.demos": 1, "b.demos": 1})
    assert other.predictors["a"] == PredictorPrompt(instruction="new")
    assert other.predictors["b"] == PredictorPrompt(instruction="other", demos=({"q": 2},))


def value(params: dict[str, int]) -> float:
    """Additive, best at the highest indices."""
    return sum(params.values()) / 21


def later_mean(seed: int, *, is_random: bool) -> float:
    """The mean value of the second half of 40 trials."""
    study = Study({"a": 8, "b": 8, "c": 8}, seed=seed, random_trials=10_000 if is_random else 8)
    study.add({}, 0.0)
    found = []
    for _ in range(8):
        batch = [study.ask() for _ in range(5)]
        for trial in batch:
            noise = random.Random(f"{seed} {trial.number}").gauss(0, 0.05)
            study.tell(trial, value(trial.params) + noise)
            found.append(value(trial.params))
    return fmean(found[20:])


def test_the_surrogate_finds_better_combinations_than_random_search() -> None:
    learned = [later_mean(seed, is_random=False) for seed in range(12)]
    drawn = [later_mean(seed, is_random=True) for seed in range(12)]
    assert fmean(learned) > fmean(drawn) + 0.1


def test_a_study_repeats_itself_for_a_seed() -> None:
    def asked(seed: int) -> list[dict[str, int]]:
        study = Study({"a": 8, "b": 8}, seed=seed, random_trials=3)
        found = []
        for _ in range(10):
            trial = study.ask()
            study.tell(trial, value(trial.params))
            found.append(trial.params)
        return found

    assert asked(1) == asked(1) != asked(2)
