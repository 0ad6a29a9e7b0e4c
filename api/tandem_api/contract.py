"""The contract between the engine and a worker: one request in, one result out.

The engine writes the request to a file (a mounted ConfigMap on a cluster) named by `ENV_REQUEST`. The worker stores it
in S3, does the stage, writes `result.json` to S3 last, and repeats it as its termination message in the file named by
`ENV_TERMINATION`, so that the engine needs no S3 credentials. A worker that is started again finds `result.json`,
repeats it and exits. Exit codes are in `tandem_api.errors`.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from tandem_api.canonical import canonical_json
from tandem_api.layout import RunLayout, StageLayout
from tandem_api.v1alpha1.base import Sha256
from tandem_api.v1alpha1.prompt_optimizers import PromptOptimizer
from tandem_api.v1alpha1.spec import Spec
from tandem_api.v1alpha1.status import SELECT_STAGES, Artifact, FactText, StageName, Status, StepKindName, Usage
from tandem_api.v1alpha1.weight_optimizers import WeightOptimizer

ENV_REQUEST = "TANDEM_REQUEST_FILE"
ENV_TERMINATION = "TANDEM_TERMINATION_FILE"
ENV_PROGRESS = "TANDEM_PROGRESS_FILE"
#: Folder with one subfolder a mounted ConfigMap; set on a cluster only.
ENV_CONFIGMAPS = "TANDEM_CONFIGMAPS"
#: Port on which a worker answers /progress and /metrics; set on a cluster only.
ENV_PROGRESS_PORT = "TANDEM_PROGRESS_PORT"
#: The keys of other models' APIs; set where the manifest names a Secret for them.
ENV_PROPOSER_KEY = "TANDEM_PROPOSER_API_KEY"
ENV_TEACHER_KEY = "TANDEM_TEACHER_API_KEY"
#: The account at the run's MLflow server, under MLflow's own names; set where the manifest names a Secret for it.
ENV_MLFLOW = ("MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD", "MLFLOW_TRACKING_TOKEN")
#: The fact under which a stage says that MLflow could not be had.
MLFLOW_FACT = "mlflow"
#: Where claims with models are mounted, each under its own name.
MODELS_MOUNT = "/tandem/models"
#: Folder for models (downloaded, converted, merged); shared by workers and servers of one machine where it can be.
ENV_CACHE = "TANDEM_CACHE"
#: The termination message's size limit, set by Kubernetes.
MAX_RESULT_BYTES = 4096
#: The name under which the base model is served.
BASE_MODEL = "base"

Outcome = Literal["done", "skipped", "stopped"]
#: A count that every JSON reader keeps as it is.
Count = Annotated[int, Field(ge=0, le=2**53)]
#: A number from 0 to 1; -0.0 is one, too.
Share = Annotated[float, Field(ge=0, le=1), AfterValidator(abs)]
_YEAR_SECONDS = 365 * 24 * 3600


def _plausible(usage: Usage) -> Usage:
    """What enters the status must fit in there. Raises ValueError."""
    for name, value in usage.model_dump().items():
        if not 0 <= value <= 2**53:
            raise ValueError(f"found {name}={value}; allowed: 0 to 2**53")
    return usage


def _possible(seconds: float | None) -> float | None:
    """A time that is left, or None where it cannot be one."""
    return seconds if seconds is not None and math.isfinite(seconds) and 0 <= seconds < _YEAR_SECONDS else None


#: What a worker says that it spent.
SpentUsage = Annotated[Usage, AfterValidator(_plausible)]


class Message(BaseModel):
    """Base of what crosses the seam."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def served_names(name: str, adapter: Artifact | None) -> tuple[str, ...]:
    """The names under which `adapter` is served, where `name` stands for it: a folder of adapters has one for each."""
    if adapter is None or adapter.adapters is None:
        return (name,)
    return tuple(f"{name}-{number}" for number in range(adapter.adapters))


class Endpoint(Message):
    """The model server that a stage uses."""

    url: str
    """Base URL, without /v1."""
    model: str
    """The served name that every call must use: the base model's or the adapter's. Adapters of several predictors have
    `names` instead, and the base model answers the calls of all others."""
    adapter: Artifact | None = None
    """The adapter behind that name; None for the base model."""

    @property
    def default(self) -> str:
        """The name for calls of no predictor with an adapter of its own."""
        return self.model if self.adapter is None or self.adapter.adapters is None else BASE_MODEL

    @property
    def names(self) -> tuple[str, ...]:
        """All names that must be served."""
        return tuple(dict.fromkeys([self.default, *served_names(self.model, self.adapter)]))


class StorageRef(Message):
    """The bucket and prefix of all runs; credentials come from the standard AWS environment variables."""

    bucket: str
    prefix: str = ""
    endpoint: str | None = None
    region: str | None = None


class Prompts(Message):
    """A prompt set that an `evaluate` stage scores."""

    label: Literal["vanilla", "current"]
    artifact: Artifact | None = None
    """None: the program's original prompts."""


class StageRequest(Message):
    """All that a worker needs to know."""

    version: Literal[1] = 1
    namespace: str
    name: str
    uid: str
    index: int
    """Step index."""
    kind: StepKindName
    stage: StageName
    attempt: int
    spec: Spec
    storage: StorageRef
    endpoint: Endpoint | None = None
    """None for stages that call no model (check, train)."""
    prompts: tuple[Prompts, ...] = ()
    """evaluate: the prompt sets to score; optimize: where the search starts; traces, train: the current prompts."""
    prompt_optimizer: PromptOptimizer | None = None
    weight_optimizer: WeightOptimizer | None = None
    traces: Artifact | None = None
    """train: the rows."""
    start_adapter: Artifact | None = None
    """train: the adapter to continue; None starts from the base weights."""
    merge: bool = False
    """train: put the merged model into the model cache, too."""
    epoch: int | None = None
    """select: the epoch whose adapter is served."""
    best_stage: StageName | None = None
    """select, evaluate: the select stage of the best adapter so far, which has scored it on all of validation."""
    split: Literal["validation", "test"] = "validation"
    """evaluate: which examples."""
    tokens_left: int | None = None
    """The rest of the token budget; a stage that reaches it stops with what it has."""
    data_digests: dict[str, str] = Field(default_factory=dict)
    """sha256 of each split's content as `check` saw it; a stage that sees another refuses."""
    status: Status | None = None
    """final: the status so far, for the report; every stage of a run that MLflow is told of."""

    @property
    def layout(self) -> RunLayout:
        """Where the run's objects lie."""
        return RunLayout(self.storage.prefix, self.namespace, self.name, self.uid)

    @property
    def stage_layout(self) -> StageLayout:
        """Where this stage's objects lie."""
        return self.layout.stage(self.index, self.kind, self.stage)


class EpochDigest(Message):
    """An adapter of `StageLayout.epoch_adapter`, known by its content; short, because a result holds several."""

    epoch: Annotated[int, Field(ge=1, le=2**31)]
    sha256: Sha256


class CandidateScore(Message):
    """A prompt set's score under the served model."""

    prompts: Artifact | None = None
    """None: the original prompts."""
    score: Share
    low: Share
    high: Share
    n: Count
    errors: Count = 0


class StageResult(Message):
    """What a stage came to. At most `MAX_RESULT_BYTES` as JSON; the bulk lies in S3."""

    version: Literal[1] = 1
    outcome: Outcome = "done"
    """skipped: nothing to do, for `reason`; stopped: the budget ended it, and what it has is valid."""
    reason: str | None = None
    message: str | None = None
    scores: Annotated[tuple[CandidateScore, ...], Field(max_length=8)] = ()
    prompt_set: Artifact | None = None
    traces: Artifact | None = None
    adapter: Artifact | None = None
    """train: the last epoch's; select: the one that is served, if it is the best so far."""
    epochs: Annotated[tuple[EpochDigest, ...], Field(max_length=len(SELECT_STAGES) - 1)] = ()
    """train: adapters of earlier epochs, in order, where the step chooses among them."""
    bundle: Artifact | None = None
    usage: SpentUsage = Usage()
    """Of all attempts of the stage."""
    facts: dict[str, Count | FactText] = Field(default_factory=dict, max_length=32)

    def to_message(self) -> str:
        """The termination message. Raises ValueError if it is larger than `MAX_RESULT_BYTES`."""
        text = canonical_json(self.model_dump(mode="json", by_alias=True, exclude_defaults=True))
        if len(text.encode()) > MAX_RESULT_BYTES:
            raise ValueError(f"a stage result of {len(text.encode())} bytes; at most {MAX_RESULT_BYTES} are allowed")
        return text


class StageFailure(Message):
    """The termination message of a worker that failed: why, for the status."""

    version: Literal[1] = 1
    error: str
    """A CamelCase reason."""
    message: str
    usage: SpentUsage = Usage()


class Progress(Message):
    """What a worker is doing now; written often, never relied on. What cannot be is put right, not refused: neither
    the worker nor the platform may stumble over it."""

    done: Annotated[int, AfterValidator(lambda count: max(0, count))] = 0
    total: Annotated[int, AfterValidator(lambda count: max(0, count))] = 0
    eta_seconds: Annotated[float | None, AfterValidator(_possible)] = None
    message: str = ""
    score: float | None = None
    loss: float | None = None
    usage: Usage = Usage()


def parse_termination(text: str) -> StageResult | StageFailure | None:
    """The worker's last word, or None when there is none that we understand (a crash before it was written)."""
    for model in (StageResult, StageFailure):
        try:
            parsed: Any = model.model_validate_json(text)
        except ValueError:
            continue
        return parsed  # type: ignore[no-any-return]
    return None
