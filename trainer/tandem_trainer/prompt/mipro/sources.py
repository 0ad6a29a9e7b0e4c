"""Where the combinations that are tried come from: one class for each way to assign credit (MIPRO, section 3.3).

A source is asked for a batch of candidates and told their scores. It depends on nothing else, so that it repeats itself
when a stage starts again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Protocol

from optuna.trial import Trial

from tandem_api.canonical import seed_from
from tandem_api.records import PredictorPrompt, PromptSet
from tandem_api.v1alpha1.prompt_optimizers import Mipro
from tandem_trainer.prompt.candidates import Candidate
from tandem_trainer.prompt.mipro import wording
from tandem_trainer.prompt.mipro.proposer import InstructionProposer, Request
from tandem_trainer.prompt.mipro.space import Space
from tandem_trainer.prompt.mipro.study import Study
from tandem_trainer.prompt.optimizer import SearchTask

#: Suggestions in a row that teach nothing new, after which the search is content with what it has.
MAX_SKIPPED = 64
#: The same for proposals, each of which costs a call for every predictor; the batch that reaches it is the last.
MAX_USELESS = 32
#: Draws of demos that a learned proposer chooses from, and factors of its temperature.
DEMO_DRAWS, TEMPERATURES = 3, (0.5, 1.0, 1.5)

#: Whether a prompt set's score would not change if it were tried again.
IsSettled = Callable[[PromptSet], bool]


class Source(Protocol):
    """Gives candidates and learns from their scores."""

    async def ask(self, count: int, is_settled: IsSettled) -> list[Candidate]:
        """Candidates to try next, 1 to `count` different ones, none of them settled; none: there is nothing new.

        `count`: at least 1.
        """
        ...

    def tell(self, scores: Sequence[float]) -> None:
        """The scores of what the last `ask` gave, in its order."""
        ...

    def learn(self, candidate: Candidate, score: float) -> None:
        """A better-founded score of a candidate: the starting point's, or one evaluated in full."""
        ...


def random_trials(trials: int) -> int:
    """Trials before the surrogate takes over."""
    return min(10, max(3, trials // 3))


class Combinations:
    """MIPRO, its 0-shot variant and Bayesian bootstrap: a surrogate over instructions and demo sets made before."""

    def __init__(self, task: SearchTask, space: Space, trials: int) -> None:
        self._space = space
        seed = seed_from(task.seed, task.step, "mipro", "study")
        self._study = Study(space.variables, seed=seed, random_trials=random_trials(trials))
        self._open: list[Trial] = []

    async def ask(self, count: int, is_settled: IsSettled) -> list[Candidate]:
        found: dict[str, Candidate] = {}
        self._open = []
        skipped: list[Trial] = []
        while len(found) < count and len(skipped) < MAX_SKIPPED:
            trial = self._study.ask()
            prompts = self._space.prompts(trial.params)
            if prompts.sha256 in found or is_settled(prompts):
                skipped.append(trial)
                continue
            self._open.append(trial)
            found[prompts.sha256] = Candidate("combination", prompts, dict(trial.params))
        for trial in skipped:
            self._study.skip(trial)
        return list(found.values())

    def tell(self, scores: Sequence[float]) -> None:
        for trial, score in zip(self._open, scores, strict=True):
            self._study.tell(trial, score)

    def learn(self, candidate: Candidate, score: float) -> None:
        self._study.add(candidate.parameters, score)


class ModuleHistory:
    """Module-level OPRO: each round writes every predictor new instructions, seeing the scores of the earlier ones.

    The score of the whole program is that of each of its instructions.
    """

    def __init__(self, task: SearchTask, proposer: InstructionProposer, predictors: Sequence[str]) -> None:
        self._proposer = proposer
        self._history = _History(task.start, predictors)
        self._asked = 0
        self._open: list[Candidate] = []

    async def ask(self, count: int, is_settled: IsSettled) -> list[Candidate]:
        found: dict[str, Candidate] = {}
        last = self._asked + MAX_USELESS
        while not found and self._asked < last:
            numbers = range(self._asked + 1, self._asked + count + 1)
            self._asked += count
            scores = self._history.scores
            requests = [self._proposer.request(name, number, scores[name]) for number in numbers for name in scores]
            texts = await self._proposer.propose(requests)
            for number, proposed in zip(numbers, _grouped(texts, len(scores)), strict=True):
                prompts = self._history.prompts(proposed)
                if prompts.sha256 not in found and not is_settled(prompts):
                    found[prompts.sha256] = Candidate("proposed", prompts, {"proposal": number})
        self._open = list(found.values())
        return self._open

    def tell(self, scores: Sequence[float]) -> None:
        for candidate, score in zip(self._open, scores, strict=True):
            self.learn(candidate, score)

    def learn(self, candidate: Candidate, score: float) -> None:
        self._history.learn(candidate, score)


class LearnedProposer:
    """0-shot MIPRO++: the proposer's own settings are the variables; each trial proposes with those it is given."""

    def __init__(
        self, task: SearchTask, settings: Mipro, proposer: InstructionProposer, predictors: Sequence[str], trials: int
    ) -> None:
        self._proposer = proposer
        self._history = _History(task.start, predictors)
        grounding = settings.grounding
        self._values: dict[str, Sequence[Any]] = {
            "data": (False, True) if grounding.data else (),
            "program": (False, True) if grounding.program else (),
            "demos": (None, *range(DEMO_DRAWS)) if grounding.demos else (),
            "tip": tuple(wording.TIPS) if grounding.tips else (),
            "history": (False, True) if grounding.history else (),
            "temperature": [round(factor * float(settings.proposer.temperature), 3) for factor in TEMPERATURES],
        }
        self._study = Study(
            {name: len(values) for name, values in self._values.items() if values},
            seed=seed_from(task.seed, task.step, "mipro", "study"),
            random_trials=random_trials(trials),
        )
        self._asked = 0
        self._open: list[tuple[Trial, Candidate]] = []
        self._chosen: dict[str, dict[str, int]] = {}
        """By prompt set: the settings that wrote it."""

    async def ask(self, count: int, is_settled: IsSettled) -> list[Candidate]:
        self._open = []
        last = self._asked + MAX_USELESS
        while not self._open and self._asked < last:
            await self._propose(count, is_settled)
        return [candidate for _, candidate in self._open]

    async def _propose(self, count: int, is_settled: IsSettled) -> None:
        """One batch of proposals, of which those that teach something new are kept."""
        trials = [self._study.ask() for _ in range(count)]
        settings = [{name: self._values[name][index] for name, index in trial.params.items()} for trial in trials]
        requests = []
        for number, chosen in enumerate(settings, start=self._asked + 1):
            requests += [self._request(name, number, chosen) for name in self._history.scores]
        self._asked += count
        texts = await self._proposer.propose(requests)
        found: set[str] = set()
        for trial, chosen, proposed in zip(trials, settings, _grouped(texts, len(self._history.scores)), strict=True):
            prompts = self._history.prompts(proposed)
            if prompts.sha256 in found or is_settled(prompts):
                self._study.skip(trial)
            else:
                found.add(prompts.sha256)
                self._open.append((trial, Candidate("proposed", prompts, chosen)))
                self._chosen[prompts.sha256] = dict(trial.params)

    def tell(self, scores: Sequence[float]) -> None:
        for (trial, candidate), score in zip(self._open, scores, strict=True):
            self._study.tell(trial, score)
            self._history.learn(candidate, score)

    def learn(self, candidate: Candidate, score: float) -> None:
        self._history.learn(candidate, score)
        chosen = self._chosen.get(candidate.prompts.sha256)
        if chosen is not None:
            self._study.add(chosen, score)

    def _request(self, predictor: str, number: int, chosen: dict[str, Any]) -> Request:
        scores = self._history.scores[predictor] if chosen.get("history") else {}
        changes = {name: value for name, value in chosen.items() if name != "history"}
        return replace(self._proposer.request(predictor, number, scores), **changes)


class _History:
    """The instructions of every predictor that were scored, and prompt sets made of new ones."""

    def __init__(self, start: PromptSet, predictors: Sequence[str]) -> None:
        self._start = start
        self.scores: dict[str, dict[str, float]] = {name: {} for name in predictors}

    def learn(self, candidate: Candidate, score: float) -> None:
        for name, scores in self.scores.items():
            scores[candidate.prompts.predictors[name].instruction] = score

    def prompts(self, proposed: Sequence[str | None]) -> PromptSet:
        """The starting prompts with these instructions, one for each predictor; for None the best so far."""
        changed = dict(self._start.predictors)
        for (name, scores), text in zip(self.scores.items(), proposed, strict=True):
            best = max(scores, key=lambda known: scores[known], default=changed[name].instruction)
            changed[name] = PredictorPrompt(instruction=text or best, demos=changed[name].demos)
        return PromptSet(predictors=changed)


def _grouped(texts: Sequence[str | None], size: int) -> list[Sequence[str | None]]:
    return [texts[begin : begin + size] for begin in range(0, len(texts), size)]
