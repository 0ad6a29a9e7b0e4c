"""`OptimizationRun.status`: what is known. Small and bounded; the bulk lies in S3.

The status is also the engine's only memory: `decide` reads it, and everything it must not forget is written here
before it acts. Scores are decimal strings, times are UTC.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal, get_args

from pydantic import Field

from tandem_api.v1alpha1.base import Model, Sha256

StageName = Literal[
    "check",
    "evaluate",
    "optimize",
    "traces",
    "train",
    "select-1",
    "select-2",
    "select-3",
    "select-4",
    "select-5",
    "select-6",
    "select-7",
    "select-8",
]
#: Where a `w` step may choose among the epochs of its training: one stage an adapter.
SELECT_STAGES: tuple[StageName, ...] = tuple(name for name in get_args(StageName) if name.startswith("select-"))
StepKindName = Literal["baseline", "p", "w", "final"]
StepState = Literal["Pending", "Running", "Succeeded", "Skipped", "Stopped", "Failed"]

#: Foreign text (an exception, a log's end) is cut to this many characters before it enters the status.
MAX_MESSAGE = 2048
#: A score as a fixed-point string.
Score = Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+$", max_length=16)]
#: A fact is a count or a short text, under a name such as `kept` or `digest.train`.
FactText = Annotated[str, Field(max_length=MAX_MESSAGE)]


class Condition(Model):
    """A Kubernetes condition (API conventions, metav1.Condition)."""

    type: str = Field(max_length=64)
    """Succeeded, Accepted, ServingReady, Progressing, Suspended; Ready and Stalled repeat the first for other tools."""
    status: Literal["True", "False", "Unknown"]
    """Whether it holds."""
    reason: str = Field(min_length=1, max_length=128, pattern=r"^[A-Za-z][A-Za-z0-9]*$")
    """Why, in one CamelCase word that programs may read."""
    message: str = Field("", max_length=32768)
    """Why, for people."""
    last_transition_time: datetime
    """When `status` last changed."""
    observed_generation: int = 0
    """The `metadata.generation` that this is about."""


class Artifact(Model):
    """An object in S3, or a folder of objects, known by its content."""

    uri: str = Field(max_length=1024)
    """Where it lies; a folder ends in a slash."""
    sha256: Sha256
    """Of the content; of a folder its list of files and their digests."""
    count: int | None = None
    """How many things it holds (traces, demos), where that means something."""
    adapters: int | None = None
    """In a folder with adapters of several predictors: their number. They lie in its subfolders 0, 1, ..."""


class EpochAdapter(Model):
    """The adapter as it was after one epoch of a training."""

    epoch: int
    """From 1."""
    adapter: Artifact
    """Where it lies."""


class Candidate(Model):
    """A (prompt set, adapter) pair with its validation score."""

    id: str = Field(max_length=64)
    """`vanilla` or the first digits of the prompt set's digest, `@` and `base` or those of the adapter's."""
    step: int
    """The step that found it."""
    prompt_set: Artifact | None = None
    """Absent: the program's original prompts."""
    adapter: Artifact | None = None
    """Absent: the base model."""
    score: Score
    """Mean over the validation set."""
    low: Score
    """Lower end of the 95% confidence interval."""
    high: Score
    """Upper end of the 95% confidence interval."""
    n: int
    """Examples scored."""
    errors: int = 0
    """Examples that failed and counted as 0."""


class Usage(Model):
    """What was spent."""

    calls: int = 0
    """LM calls paid for (those repeated from a ledger are not counted again)."""
    prompt_tokens: int = 0
    """Tokens read."""
    completion_tokens: int = 0
    """Tokens written."""
    gpu_seconds: int = 0
    """Seconds of all accelerators that were held."""

    @property
    def tokens(self) -> int:
        """Prompt and completion tokens."""
        return self.prompt_tokens + self.completion_tokens

    def plus(self, other: Usage) -> Usage:
        """The sum of both."""
        return Usage(
            calls=self.calls + other.calls,
            prompt_tokens=self.prompt_tokens + other.prompt_tokens,
            completion_tokens=self.completion_tokens + other.completion_tokens,
            gpu_seconds=self.gpu_seconds + other.gpu_seconds,
        )


class StageStatus(Model):
    """One stage of a step and its attempts."""

    name: StageName
    """What it does."""
    state: StepState = "Pending"
    """How it stands; `Stopped`: a budget ended it, and what it has is valid."""
    attempt: int = 0
    """Ordinal of the current or last attempt, from 1; 0 before the first."""
    failures: int = 0
    """Attempts that failed and count against `spec.attempts`."""
    reason: str | None = Field(None, max_length=128)
    """Why it is in this state, in one word; of a stage that is tried again, why the last attempt failed."""
    message: str | None = Field(None, max_length=MAX_MESSAGE)
    """The same for people."""
    requested: datetime | None = None
    """When the stage's turn came."""
    ready: datetime | None = None
    """When all that it needs was there, the model server above all."""
    started: datetime | None = None
    """When the first attempt was started."""
    attempt_started: datetime | None = None
    """Since when the current attempt works; absent while it waits or is held."""
    finished: datetime | None = None
    """When the last attempt ended."""
    usage: Usage = Usage()
    """What all its attempts spent."""
    facts: dict[str, int | FactText] = Field(default_factory=dict, max_length=32)
    """Counts that the stage reports: kept traces, trained rows, warnings."""


class StepStatus(Model):
    """One step of the strategy (0 is the baseline, the last is the final test)."""

    index: int
    """Its place in the run, from 0."""
    kind: StepKindName
    """`p` and `w` are the strategy's; `baseline` comes before them, `final` after them."""
    state: StepState = "Pending"
    """How it stands; `Skipped`: there was nothing to do, for `reason`."""
    reason: str | None = Field(None, max_length=128)
    """Why it is in this state, in one word."""
    message: str | None = Field(None, max_length=MAX_MESSAGE)
    """The same for people."""
    started: datetime | None = None
    """When its turn came."""
    finished: datetime | None = None
    """When its last stage ended."""
    attempts: int = 0
    """Attempts of all its stages."""
    score: Score | None = None
    """The best validation score among the step's candidates."""
    errors: int = 0
    """Failed examples of the step's evaluations."""
    tokens: int = 0
    """Prompt and completion tokens of all its stages."""
    gpu_seconds: int = 0
    """Accelerator seconds of all its stages."""
    prompt_set: Artifact | None = None
    """What a `p` step found; absent if the original prompts stayed best."""
    adapter: Artifact | None = None
    """What a `w` step trained; where it chooses among epochs, the best so far."""
    epochs: tuple[EpochAdapter, ...] = Field((), max_length=8)
    """What a `w` step chooses from (`checkpoint: best`), in the order of its `select` stages: the last epoch first."""
    traces: Artifact | None = None
    """What a `w` step trained on."""
    candidates: tuple[Candidate, ...] = Field((), max_length=8)
    """What it scored on the whole validation set."""
    stages: tuple[StageStatus, ...] = Field((), max_length=12)
    """Its stages, in order."""

    @property
    def selects(self) -> dict[StageName, EpochAdapter]:
        """What each `select` stage scores."""
        return dict(zip(SELECT_STAGES, self.epochs, strict=False))

    @property
    def chosen_epoch(self) -> str | None:
        """Which epoch's adapter was chosen, for people; None where it chose none, or scored none of them."""
        epoch = next((one.epoch for one in self.epochs if one.adapter == self.adapter), None)
        if epoch is None or not self.candidates:
            return None
        return f"with the adapter of epoch {epoch} of {self.epochs[0].epoch}"


class CurrentStep(Model):
    """What is going on, for people and progress bars."""

    index: int
    """The step's place in the run."""
    kind: StepKindName
    """The step's kind."""
    stage: StageName | None = None
    """The stage that is worked on."""
    attempt: int = 0
    """Which try of it, from 1; 0 while it waits."""
    progress: int | None = Field(None, ge=0, le=100)
    """Percent of the stage."""
    eta: datetime | None = None
    """When the stage is expected to end."""
    message: str = Field("", max_length=MAX_MESSAGE)
    """What the worker says it is doing."""


class ServingStatus(Model):
    """The model server as the engine wants it."""

    name: str | None = Field(None, max_length=128)
    """The served model name that workers call; absent: nothing is to be served."""
    failures: int = 0
    """How often it failed since it was last ready."""
    restarts: int = 0
    """How often the run's servers were started anew after a failure, all together."""
    since: datetime | None = None
    """When this server was asked for."""
    ready_since: datetime | None = None
    """When it was first seen ready."""
    load_seconds: int = 0
    """Time spent waiting for model servers, all together."""


class TestScore(Model):
    """The best program's score on the test set."""

    __test__ = False  # not a pytest class

    score: Score
    """Mean over the test set."""
    low: Score
    """Lower end of the 95% confidence interval."""
    high: Score
    """Upper end of the 95% confidence interval."""
    n: int
    """Examples scored."""
    errors: int = 0
    """Examples that failed and counted as 0."""
    baseline: Score | None = None
    """The unchanged program's score on the same set, where it was measured."""


class Status(Model):
    """What the engine knows of the run."""

    observed_generation: int = 0
    """The `metadata.generation` that the engine has seen."""
    conditions: tuple[Condition, ...] = Field(
        (),
        max_length=16,
        json_schema_extra={"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["type"]},
    )
    """`Succeeded` is the summary; the others say why."""
    phase: str = Field("Pending", max_length=32)
    """Derived from the conditions, for people; nothing branches on it."""
    strategy: str | None = Field(None, max_length=256)
    """The strategy's steps in one line, groups unrolled, for tables: "p -> w -> p"."""
    step: CurrentStep | None = None
    """What is going on; absent before the first step and after the last."""
    steps: tuple[StepStatus, ...] = Field((), max_length=64)
    """Every step of the run, also those still to come."""
    baseline: Candidate | None = None
    """The unchanged program."""
    best: Candidate | None = None
    """The best candidate so far; ties keep the earlier."""
    usage: Usage = Usage()
    """What all stages spent."""
    serving: ServingStatus = ServingStatus()
    """The model server."""
    result: Artifact | None = None
    """The result bundle."""
    test: TestScore | None = None
    """The best program on the test set, at the end."""
    started: datetime | None = None
    """When the run's first step began."""
    finished: datetime | None = None
    """When the run ended, for better or worse."""
