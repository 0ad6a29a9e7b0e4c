"""The settings of the two kinds of optimizers. Defaults follow the papers where they publish a value
(`docs/manifest.md` says which) and what a first run needs elsewhere."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from tandem_api.v1alpha1.base import Fraction, Integer, Model, PositiveDecimal, cel, rule


class PromptOptimizer(Model):
    """How a `p` step searches for prompts."""

    type: Literal["bootstrap-random-search"] = "bootstrap-random-search"
    """`bootstrap-random-search`: BFRS, BetterTogether (arXiv 2407.10930) section 3 and appendix."""
    candidates: Integer = Field(12, ge=1, le=256)
    """Candidate programs, the zero-shot, labelled and unshuffled ones included."""
    max_bootstrapped_demos: Integer = Field(3, ge=0, le=64)
    """Demos from passing traces, per predictor."""
    max_labeled_demos: Integer = Field(3, ge=0, le=64)
    """Demos of a predictor in all, filled up with labelled examples where these have all its outputs."""
    threshold: Fraction = "1"
    """A trace passes when its score is at least this."""
    train_size: Integer | None = Field(None, ge=1)
    """Bootstrap from at most this many training examples (seeded sample)."""
    validation_size: Integer | None = Field(None, ge=1)
    """Score candidates on at most this many validation examples (seeded sample) and the best one on all of them."""


class Traces(Model):
    """Which runs of the program become training rows."""

    samples_per_example: Integer = Field(1, ge=1, le=64)
    """Runs of the program per training example."""
    temperature: PositiveDecimal = "0.7"
    """Sampling temperature of those runs; used where samplesPerExample > 1 (one run uses the model's own)."""
    threshold: Fraction = "1"
    """A trace is kept when its score is at least this."""
    max_per_example: Integer = Field(4, ge=1, le=64)
    """At most this many different traces of one example are kept."""
    min_traces: Integer = Field(8, ge=1)
    """With fewer kept traces the step is skipped, with the reason."""
    train_size: Integer | None = Field(None, ge=1)
    """Use at most this many training examples (seeded sample)."""


class WeightOptimizer(Model):
    """How a `w` step tunes weights: LoRA on the program's own passing traces (BFT, arXiv 2407.10930 section 3)."""

    type: Literal["lora"] = "lora"
    """LoRA with PEFT; the base weights stay as they are."""
    rank: Integer = Field(16, ge=1, le=512)
    """LoRA rank; vLLM serves it under the next of 8, 16, 32, 64, 128, 256, 320, 512. The paper: 32."""
    alpha: Integer = Field(32, ge=1, le=4096)
    """LoRA alpha. The paper: 64."""
    dropout: Fraction = "0"
    """Dropout in the LoRA layers. The paper: 0."""
    target_modules: Literal["all-linear"] | tuple[Annotated[str, Field(max_length=128)], ...] = Field(
        "all-linear", json_schema_extra={"x-kubernetes-preserve-unknown-fields": True}
    )
    """"all-linear" or a list of module names. The paper: ["q_proj", "k_proj"]."""
    learning_rate: PositiveDecimal = "2e-4"
    """Peak learning rate. The paper: 1e-5."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the learning rate goes on after the warm-up: it stays, or falls to 0 in a line or half a cosine."""
    warmup_fraction: Fraction = "0.03"
    """Part of all optimizer steps in which the learning rate rises from 0."""
    epochs: Integer = Field(3, ge=1, le=100)
    """Passes over the kept traces. The paper: 5."""
    batch_size: Integer = Field(8, ge=1, le=4096)
    """Rows per optimizer step, all devices together. The paper: 8."""
    micro_batch_size: Integer | None = Field(None, ge=1, le=4096)
    """Rows per forward pass; default: the whole batch. Must divide batchSize."""
    max_length: Integer = Field(2048, ge=16, le=1_048_576)
    """Rows longer than this many tokens are dropped and counted, never cut."""
    packing: bool = False
    """Put several rows into one sequence where the attention implementation keeps them apart."""
    prompts: Literal["vanilla", "optimized"] = "vanilla"
    """Which prompt the training rows carry: the program's original one (the paper) or the one that made the trace."""
    validation_fraction: Fraction = "0.1"
    """Part of the kept examples held out for the validation loss."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Type of the weights and the arithmetic; `auto` is what the hardware does fast."""
    traces: Traces = Traces()
    """Which runs of the program become training rows."""

    @property
    def lora_shape(self) -> tuple[object, ...]:
        """What two adapters must share for one to continue the other."""
        return (self.rank, self.alpha, self.target_modules)

    @field_validator("target_modules", mode="before")
    @classmethod
    def _modules(cls, value: object) -> object:
        if isinstance(value, (list, tuple)) and value:
            return value
        if value != "all-linear":
            raise ValueError(f'found {value!r}; allowed: "all-linear" or a list of module names such as ["q_proj"]')
        return value

    @model_validator(mode="after")
    def _micro_batch_divides(self) -> Self:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(f"microBatchSize {self.micro_batch_size} does not divide batchSize {self.batch_size}")
        return self

    model_config = cel(
        rule(
            "!has(self.microBatchSize) || self.batchSize % self.microBatchSize == 0",
            "microBatchSize must divide batchSize",
        )
    )
