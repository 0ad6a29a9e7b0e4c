"""What workers write down: prompt sets, traces and scored examples. Plain frozen values, stored as JSON lines."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from tandem_api.canonical import digest
from tandem_api.contract import CandidateScore
from tandem_api.v1alpha1.status import Artifact, Usage


class Record(BaseModel):
    """Base of stored records: snake_case as stored, unknown fields refused, frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PredictorPrompt(Record):
    """The prompt state of one predictor."""

    instruction: str
    demos: tuple[dict[str, Any], ...] = ()
    """Field values by field name; a value is whatever JSON holds."""


class PromptSet(Record):
    """The prompt state of all predictors of a program, by predictor name."""

    predictors: dict[str, PredictorPrompt]

    @property
    def sha256(self) -> str:
        """The content's digest: equal prompt sets have equal digests."""
        return digest(self.model_dump(mode="json"))


class PredictorCall(Record):
    """One call of one predictor inside a run of the program."""

    predictor: str
    inputs: dict[str, Any]
    """What the predictor was given (values that JSON cannot hold are kept as text)."""
    messages: tuple[dict[str, Any], ...]
    """The rendered prompt: chat messages; the plain adapter's single prompt is one user message."""
    completion: str
    """The raw completion."""
    outputs: dict[str, Any] | None = None
    """The parsed outputs; None when the completion could not be parsed."""
    own_lm: bool = False
    """The program gave this predictor a model of its own: the call is no example of what the served model does."""


ExampleStatus = Literal["ok", "unparsable", "call_failed", "program_failed", "metric_failed"]


class PaidRecord(Record):
    """What a stage has paid for, kept under a key that names all that it depends on."""

    key: str
    usage: Usage = Usage()


class WrittenText(PaidRecord):
    """What a model wrote outside of the program: an instruction, a summary, a reflection."""

    text: str = ""
    refused: str | None = None
    """Why there is no text: the server refused this call. Asked again it might not, and a replay would differ."""
    too_long: bool = False
    """It was refused because the prompt does not fit into the model's context."""


class ScoredExample(PaidRecord):
    """One run of a candidate on one example: a line of a stage's ledger. Its key names the candidate, model, adapter,
    example, sample, sampling and seed."""

    candidate: str
    example: str
    """The example's id."""
    example_sha256: str = ""
    """Digest of its content: two splits may have the same ids. Empty in ledgers of before."""
    sample: int = 0
    status: ExampleStatus = "ok"
    score: float = 0.0
    """In [0, 1]; 0 where the status is not ok, and then counted as an error, too."""
    error: str | None = None
    feedback: str | None = None
    """What the metric says of the answer beside the score, where it says something; at most 2,000 characters."""
    prediction: dict[str, Any] | None = None
    """The program's answer, for people."""
    seconds: float = 0.0
    own_usage: Usage = Usage()
    """Of models that the program brings itself, as far as they tell it; `usage` and the budget are without it."""
    calls: tuple[PredictorCall, ...] = ()
    """The trace; kept only where a stage needs it."""


class TraceRow(Record):
    """One kept trace, a line of `traces/*.jsonl.zst`."""

    example: str
    sample: int
    score: float
    calls: tuple[PredictorCall, ...]
    vanilla: tuple[tuple[dict[str, Any], ...], ...] = Field(
        default=(), description="For each call the messages that the program's original prompt would have rendered."
    )


class Trial(Record):
    """One candidate of a search and its score on the examples of the search: a line of `trials.jsonl`."""

    index: int
    kind: str
    prompts: Artifact
    """The prompt set, an object of its own; `count` is the number of its demos."""
    parameters: dict[str, Any] = Field(default_factory=dict)
    """What the search chose to make it."""
    n: int
    """Examples scored. Fewer than in other trials: it was dropped, or the budget ended before it was done."""
    score: float | None
    """Over those `n`; None when there are none, and then `low` and `high`, too."""
    low: float | None
    high: float | None
    errors: int
    tokens: int
    """Prompt and completion tokens of all its runs."""
    dropped: bool = False
    """The race has dropped it."""
    full: CandidateScore | None = None
    """The score on all of validation, where it was scored on all of it."""
