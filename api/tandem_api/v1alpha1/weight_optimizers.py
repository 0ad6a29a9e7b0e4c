"""The settings of weight optimization. Defaults follow the paper where it publishes a value (`docs/manifest.md` says
which) and what a first run needs elsewhere."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Final, Literal, Self

from pydantic import Field, field_validator, model_validator

from tandem_api.v1alpha1.base import Boolean, Fraction, Integer, Model, PositiveDecimal, cel, rule, shown
from tandem_api.v1alpha1.status import SELECT_STAGES


@dataclass(frozen=True)
class Preset:
    """What `rank` and `learningRate` are where a manifest leaves them out, for models up to a size."""

    below: float
    """For models with fewer parameters than this."""
    rank: int
    learning_rate: str


#: From small models to large ones. Larger models want smaller steps: QLoRA (arXiv 2305.14314, appendix B.2) halves the
#: rate from 13B to 33B. Here it falls earlier, because the rows are few and are passed over several times.
PRESETS = (
    Preset(1e9, 16, "2e-4"),
    Preset(4e9, 16, "1e-4"),
    Preset(15e9, 32, "1e-4"),
    Preset(float("inf"), 64, "5e-5"),
)


#: With fewer traces a predictor gets no adapter of its own, unless the manifest says another number.
OWN_ADAPTER_TRACES: Final = 8
_MAX_MODULES, _MAX_MODULE = 256, 128
#: As many epochs of a training may be chosen among.
MAX_KEPT_EPOCHS: Final = len(SELECT_STAGES)


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
    min_per_predictor: Integer | None = Field(None, ge=0)
    """So many kept traces must hold a call of each predictor that the program called, or the step is skipped, with the
    counts; 0 trains without them. With adapters: per-predictor a predictor below it keeps the model that it has.
    Default: 1, and 8 for adapters of their own."""
    train_size: Integer | None = Field(None, ge=1)
    """Use at most this many training examples (seeded sample)."""


class WeightOptimizer(Model):
    """How a `w` step tunes weights: LoRA on the program's own passing traces (BFT, arXiv 2407.10930 section 3)."""

    type: Literal["lora"] = "lora"
    """LoRA with PEFT; the base weights stay as they are."""
    rank: Integer | None = Field(None, ge=1, le=512)
    """LoRA rank; vLLM serves it under the next of 8, 16, 32, 64, 128, 256, 320, 512. Default: by the model's
    parameters, 16 below 4B, 32 below 15B, 64 above. The paper: 32."""
    alpha: Integer | None = Field(None, ge=1, le=4096)
    """LoRA alpha. Default: twice the rank. The paper: 64."""
    dropout: Fraction = "0"
    """Dropout in the LoRA layers. The paper: 0."""
    target_modules: Literal["all-linear"] | tuple[Annotated[str, Field(max_length=_MAX_MODULE)], ...] = Field(
        "all-linear", json_schema_extra={"x-kubernetes-preserve-unknown-fields": True}
    )
    """"all-linear" or a list of module names. The paper: ["q_proj", "k_proj"]."""
    learning_rate: PositiveDecimal | None = None
    """Peak learning rate. Default: by the model's parameters, 2e-4 below 1B, 1e-4 below 15B, 5e-5 above.
    The paper: 1e-5."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How the learning rate goes on after the warm-up: it stays, or falls to 0 in a line or half a cosine."""
    warmup_fraction: Fraction = "0.03"
    """Part of all optimizer steps in which the learning rate rises from 0."""
    epochs: Integer = Field(3, ge=1, le=100)
    """Passes over the kept traces. The paper: 5."""
    batch_size: Integer = Field(8, ge=1, le=4096)
    """Rows per optimizer step, all devices together; a multiple of their number. The paper: 8."""
    micro_batch_size: Integer | None = Field(None, ge=1, le=4096)
    """Rows per forward pass of one device; default: its share of the batch. Must divide that share."""
    max_length: Integer = Field(2048, ge=16, le=1_048_576)
    """Rows longer than this many tokens are dropped and counted, never cut."""
    packing: Boolean = False
    """Put several rows into one sequence where the attention implementation keeps them apart."""
    adapters: Literal["shared", "per-predictor"] = "shared"
    """One adapter for all predictors, trained on the rows of all (the paper), or an adapter for each predictor, trained
    on its rows alone and used for its calls alone; at most eight predictors."""
    checkpoint: Literal["last", "best"] = "last"
    """Which epoch's adapter the step takes: the last one (the paper), or the one that scores best on validation, found
    by racing the last epoch against up to seven earlier ones."""
    prompts: Literal["vanilla", "optimized"] = "vanilla"
    """Which prompt the training rows carry: the program's original one (the paper) or the one that made the trace."""
    validation_fraction: Fraction = "0.1"
    """Part of the kept examples held out for the validation loss."""
    precision: Literal["auto", "bf16", "fp32"] = "auto"
    """Type of the weights and the arithmetic; `auto` is what the hardware does fast."""
    traces: Traces = Traces()
    """Which runs of the program become training rows."""

    @property
    def min_per_predictor(self) -> int:
        """The least number of kept traces with a call of a predictor."""
        if self.traces.min_per_predictor is not None:
            return self.traces.min_per_predictor
        return OWN_ADAPTER_TRACES if self.adapters == "per-predictor" else 1

    @property
    def highest_rank(self) -> int:
        """The rank, or the highest that it can come to where it follows the model."""
        return self.rank or max(preset.rank for preset in PRESETS)

    def for_model(self, parameters: int) -> Self:
        """With a rank, alpha and learning rate for a model of so many parameters; what is given stays."""
        preset = next(preset for preset in PRESETS if parameters < preset.below)
        rank = self.rank or preset.rank
        chosen = {"rank": rank, "alpha": self.alpha or 2 * rank}
        return self.model_copy(update={**chosen, "learning_rate": self.learning_rate or preset.learning_rate})

    @property
    def kept_epochs(self) -> tuple[int, ...]:
        """The epochs whose adapters are kept, the last one among them: at most eight, evenly spaced."""
        if self.checkpoint == "last":
            return (self.epochs,)
        return tuple(sorted({self.epochs * n // MAX_KEPT_EPOCHS for n in range(1, MAX_KEPT_EPOCHS + 1)} - {0}))

    @property
    def lora_shape(self) -> tuple[object, ...]:
        """What two adapters must share for one to continue the other."""
        return (self.rank, self.alpha, self.target_modules, self.adapters)

    @field_validator("target_modules", mode="before")
    @classmethod
    def _modules(cls, value: object) -> object:
        allowed = '"all-linear" or a list of module names such as ["q_proj"]'
        if isinstance(value, (list, tuple)) and value:
            wrong = [name for name in value if not isinstance(name, str) or not 0 < len(name) <= _MAX_MODULE]
            if wrong or len(value) > _MAX_MODULES:
                found = f"{shown(wrong[0])} in the list" if wrong else f"{len(value)} names"
                limits = f"at most {_MAX_MODULES} names of at most {_MAX_MODULE} characters"
                raise ValueError(f"found {found}; allowed: {allowed}, {limits}")
        elif value != "all-linear":
            raise ValueError(f"found {shown(value)}; allowed: {allowed}")
        return value

    @model_validator(mode="after")
    def _micro_batch_divides(self) -> Self:
        if self.micro_batch_size is not None and self.batch_size % self.micro_batch_size:
            raise ValueError(f"microBatchSize {self.micro_batch_size} does not divide batchSize {self.batch_size}")
        return self

    @model_validator(mode="after")
    def _one_choice_at_a_time(self) -> Self:
        if self.adapters == "per-predictor" and self.checkpoint == "best":
            raise ValueError(
                "checkpoint: best chooses among the epochs of one adapter; with adapters: per-predictor set "
                "checkpoint: last"
            )
        return self

    model_config = cel(
        rule(
            "!has(self.microBatchSize) || self.batchSize % self.microBatchSize == 0",
            "microBatchSize must divide batchSize",
        ),
        rule(
            "self.adapters != 'per-predictor' || self.checkpoint != 'best'",
            "with adapters: per-predictor set checkpoint: last",
        ),
    )
