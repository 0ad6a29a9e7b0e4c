"""DSPy's own optimizers, run as its documentation says, with as many threads as we have slots."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy

from tandem_api.records import PredictorPrompt


@dataclass(frozen=True)
class Compared:
    """What both sides are given."""

    threads: int
    seed: int
    candidates: int
    """Of DSPy's random search, beside its three fixed ones (zero-shot, labelled, unshuffled)."""
    demos: int
    """At most so many bootstrapped demos, and at most so many in all."""


def compile_with(
    optimizer: str,
    student: Any,
    metric: Callable[..., Any],
    train: list[Any],
    validation: list[Any],
    how: Compared,
    prompt_model: Any = None,
) -> Any:
    """The program that DSPy's optimizer returns. The model and the adapter are those that DSPy is configured with;
    `prompt_model` writes instructions, where that is another one."""
    common = {
        "metric": metric,
        "num_threads": how.threads,
        "max_errors": 1_000_000,  # a bad example is counted, as with us, and ends nothing
        "max_bootstrapped_demos": how.demos,
        "max_labeled_demos": how.demos,
    }
    if optimizer == "bfrs":
        search = dspy.BootstrapFewShotWithRandomSearch(num_candidate_programs=how.candidates, **common)
        return search.compile(student, trainset=train, valset=validation)
    mipro = dspy.MIPROv2(
        auto="light",
        seed=how.seed + 1,  # 0 would be taken for none
        prompt_model=prompt_model,
        **common,
    )
    return mipro.compile(student, trainset=train, valset=validation)


def validation_score(program: Any) -> float:
    """The score that the optimizer itself found for the program that it returned, from 0 to 1."""
    found = program.score if hasattr(program, "score") else program.candidate_programs[0]["score"]
    return float(found) / 100


def prompts_of(program: Any) -> PredictorPrompt:
    """The prompt of a program with one predictor."""
    (predictor,) = program.predictors()
    demos = tuple({name: demo[name] for name in predictor.signature.fields if name in demo} for demo in predictor.demos)
    return PredictorPrompt(instruction=predictor.signature.instructions, demos=demos)


def fresh_cache(folder: Path) -> None:
    """DSPy's cache as it is by default, but empty."""
    dspy.configure_cache(disk_cache_dir=str(folder))
