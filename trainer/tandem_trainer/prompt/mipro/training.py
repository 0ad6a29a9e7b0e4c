"""Searching on the training set, as the paper does (`searchOn: train`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from tandem_api.contract import CandidateScore
from tandem_api.records import PromptSet, ScoredExample
from tandem_trainer.evaluate.evaluator import Evaluator, Job, ProgressCallback
from tandem_trainer.prompt.candidates import Scored
from tandem_trainer.prompt.demos import without_own_demos


class TrainingEvaluator:
    """Runs candidates on training examples, each without the demos that would show the example its own answer."""

    def __init__(self, evaluator: Evaluator, inputs: Sequence[str]) -> None:
        self._evaluator = evaluator
        self._inputs = inputs
        self._known: dict[str, PromptSet] = {}

    async def run(self, jobs: Sequence[Job], *, progress: ProgressCallback | None = None) -> list[ScoredExample]:
        return await self._evaluator.run(self._honest(jobs), progress=progress)

    def scored(self, jobs: Sequence[Job]) -> list[ScoredExample | None]:
        return self._evaluator.scored(self._honest(jobs))

    def _honest(self, jobs: Sequence[Job]) -> list[Job]:
        honest = []
        for job in jobs:
            prompts = without_own_demos(job.prompts, job.example, self._inputs)
            # One object for equal prompt sets: programs are prepared and keys are made per object.
            if prompts is not job.prompts:
                prompts = self._known.setdefault(prompts.sha256, prompts)
            honest.append(replace(job, prompts=prompts))
        return honest


@dataclass(frozen=True)
class ScoredOnTrain(Scored):
    """A candidate with its records on the training examples of the search; `rest` is all of validation."""

    @property
    def full(self) -> CandidateScore | None:
        return None if self.rest is None else Scored(self.candidate, self.rest).score
