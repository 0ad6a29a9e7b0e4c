"""`OptimizationRun.status`: what is known. Small and bounded; the bulk lies in S3.

The status is also the engine's only memory: `decide` reads it, and everything it must not forget is written here
before it acts. Scores are decimal strings, times are UTC.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from tandem_api.v1alpha1.base import Model, Sha256

StageName = Literal["check", "evaluate", "optimize", "traces", "train"]
StepKindName = Literal["baseline", "p", "w", "final"]
StepState = Literal["Pending", "Running", "Succeeded", "Skipped", "Stopped", "Failed"]

#: Foreign text (an exception, a log's end) is cut to this many characters before it enters the status.
MAX_MESSAGE = 2048
#: A score as a fixed-point string.
Score = Annotated[str, Field(pattern=r"^[0-9]+\.[0-9]+$", max_length=16)]


class Condition(Model):
    """A Kubernetes condition (API conventions, metav1.Condition)."""

    type: str = Field(max_length=64)
    status: Literal["True", "False", "Unknown"]
    reason: str = Field(min_length=1, max_length=128, pattern=r"^[A-Za-z][A-Za-z0-9]*$")
    message: str = Field("", max_length=32768)
    last_transition_time: datetime
    observed_generation: int = 0


class Artifact(Model):
    """An object in S3, or a folder of objects, known by its content."""

    uri: str = Field(max_length=1024)
    sha256: Sha256
    count: int | None = None
    """How many things it holds (traces, demos), where that means something."""


class Candidate(Model):
    """A (prompt set, adapter) pair with its validation score."""

    id: str = Field(max_length=64)
    """`vanilla` or the first digits of the prompt set's digest, `@` and `base` or those of the adapter's."""
    step: int
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
    completion_tokens: int = 0
    gpu_seconds: int = 0

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
    state: StepState = "Pending"
    attempt: int = 0
    """Ordinal of the current or last attempt, from 1; 0 before the first."""
    failures: int = 0
    """Attempts that failed and count against `spec.attempts`."""
    reason: str | None = Field(None, max_length=128)
    message: str | None = Field(None, max_length=MAX_MESSAGE)
    requested: datetime | None = None
    """When the stage's turn came."""
    ready: datetime | None = None
    """When all that it needs was there, the model server above all."""
    started: datetime | None = None
    """When the first attempt was started."""
    attempt_started: datetime | None = None
    """When the current attempt was started."""
    finished: datetime | None = None
    """When the last attempt ended."""
    usage: Usage = Usage()
    facts: dict[str, int | str] = Field(default_factory=dict, max_length=32)
    """Counts that the stage reports: kept traces, trained rows, warnings."""


class StepStatus(Model):
    """One step of the strategy (0 is the baseline, the last is the final test)."""

    index: int
    kind: StepKindName
    state: StepState = "Pending"
    reason: str | None = Field(None, max_length=128)
    message: str | None = Field(None, max_length=MAX_MESSAGE)
    started: datetime | None = None
    finished: datetime | None = None
    attempts: int = 0
    """Attempts of all its stages."""
    score: Score | None = None
    """The best validation score among the step's candidates."""
    errors: int = 0
    """Failed examples of the step's evaluations."""
    tokens: int = 0
    gpu_seconds: int = 0
    prompt_set: Artifact | None = None
    """What a `p` step found; absent if the original prompts stayed best."""
    adapter: Artifact | None = None
    """What a `w` step trained."""
    traces: Artifact | None = None
    candidates: tuple[Candidate, ...] = Field((), max_length=8)
    stages: tuple[StageStatus, ...] = Field((), max_length=8)


class CurrentStep(Model):
    """What is going on, for people and progress bars."""

    index: int
    kind: StepKindName
    stage: StageName | None = None
    attempt: int = 0
    progress: int | None = Field(None, ge=0, le=100)
    """Percent of the stage."""
    eta: datetime | None = None
    """When the stage is expected to end."""
    message: str = Field("", max_length=MAX_MESSAGE)


class ServingStatus(Model):
    """The model server as the engine wants it."""

    name: str | None = Field(None, max_length=128)
    """The served model name that workers call; absent: nothing is to be served."""
    failures: int = 0
    """How often it failed since it was last ready."""
    since: datetime | None = None
    """When this server was asked for."""
    ready_since: datetime | None = None
    load_seconds: int = 0
    """Time spent waiting for model servers, all together."""


class TestScore(Model):
    """The best program's score on the test set."""

    __test__ = False  # not a pytest class

    score: Score
    low: Score
    high: Score
    n: int
    errors: int = 0
    baseline: Score | None = None
    """The unchanged program's score on the same set, where it was measured."""


class Status(Model):
    """What the engine knows of the run."""

    observed_generation: int = 0
    conditions: tuple[Condition, ...] = Field((), max_length=16)
    phase: str = Field("Pending", max_length=32)
    """Derived from the conditions, for people; nothing branches on it."""
    step: CurrentStep | None = None
    steps: tuple[StepStatus, ...] = Field((), max_length=64)
    baseline: Candidate | None = None
    best: Candidate | None = None
    usage: Usage = Usage()
    serving: ServingStatus = ServingStatus()
    result: Artifact | None = None
    """The result bundle."""
    test: TestScore | None = None
    started: datetime | None = None
    finished: datetime | None = None
