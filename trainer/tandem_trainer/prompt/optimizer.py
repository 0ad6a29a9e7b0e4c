"""What every prompt optimizer is given, and what it gives back.

An optimizer is an async function `optimize(task, settings) -> Found`. It never asks for the time, draws only from
seeds made of `task.seed`, `task.step` and its own names, and goes through `task.evaluator` for every run of the program
and through `task.writer` for every other call of a model: both keep what was paid for, so that an optimizer that is
started again with the same task gets the same answers and comes to the same end. It keeps nothing else.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tandem_api.contract import CandidateScore
from tandem_api.records import PromptSet
from tandem_api.v1alpha1.prompt_optimizers import Teacher
from tandem_trainer.evaluate.evaluator import Evaluator
from tandem_trainer.evaluate.examples import Example
from tandem_trainer.evaluate.metrics import Metric
from tandem_trainer.lm.client import LMClient
from tandem_trainer.lm.writer import Writer
from tandem_trainer.program.loading import LoadedProgram
from tandem_trainer.prompt.demos import PredictorFields
from tandem_trainer.prompt.trials import TrialTable

#: Called with the runs of the program finished so far, all that are expected, what is going on, and the best score.
Report = Callable[[int, int, str, float | None], None]


@dataclass(frozen=True)
class SearchTask:
    """One `p` step's search, settled before the model is called."""

    program: LoadedProgram
    metric: Metric
    evaluator: Evaluator
    client: LMClient
    """Of the model and adapter that are served now."""
    start: PromptSet
    """Where the search starts: the original prompts, or the previous step's."""
    fields: Mapping[str, PredictorFields]
    """Of every predictor, by its name."""
    inputs: tuple[str, ...]
    """The fields of an example that the program is given."""
    train: tuple[Example, ...]
    """To learn from: at most `trainSize` of the training set, none of which has the inputs of a validation example."""
    subset: tuple[Example, ...]
    """Of validation, in seeded order: what the search scores on (`validationSize`)."""
    validation: tuple[Example, ...]
    seed: int
    step: int
    table: TrialTable
    report: Report
    writer: Callable[..., Awaitable[Writer]]
    """`await writer(proposer, *purpose)`: the model that writes (`Session.writer`)."""
    teacher: Callable[[Teacher], Awaitable[tuple[LoadedProgram, Evaluator]]]
    """What bootstraps in the program's place: the program, and the evaluator that runs it (`Session.teacher`)."""


@dataclass(frozen=True)
class Found:
    """What a search came to."""

    winner: PromptSet | None = None
    """None when no candidate was scored on all of validation."""
    score: CandidateScore | None = None
    """The winner's, on all of validation."""
    is_complete: bool = True
    """False when the token budget ended the search."""
    message: str | None = None
    """What a user should know of it."""
    facts: dict[str, int | str] = field(default_factory=dict)
    """Counts for the stage's result; at most 24."""


Optimize = Callable[[SearchTask, Any], Awaitable[Found]]
