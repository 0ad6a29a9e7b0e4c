"""What is known of every combination, and the runs that find out more (MIPRO, section 3.4).

By default all combinations are scored on the same examples in the same seeded order, so that every comparison is
paired and no run is wasted:

* The starting point is scored on a minibatch, and every batch of trials against it by successive halving: after 7, 14,
  28 and 35 examples the worse half is stopped, and of the others those behind the best one known in full (else the
  starting point), but for the first. Nothing is decided for good here: a combination that is asked for again goes on
  where it stopped, and beyond the minibatch.
* The combination with the best mean goes on to all examples, in a race against the best one known in full, else the
  starting point, which the race drops only where it is worse beyond the stated doubt.

`exhaustive: true` is the paper's procedure to the letter: a fresh random minibatch for every trial, and all examples
for the combination with the best mean of its minibatches.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean
from typing import Any

from tandem_api.canonical import seed_from
from tandem_api.records import PromptSet, ScoredExample
from tandem_api.v1alpha1.prompt_optimizers import Mipro
from tandem_trainer.evaluate.evaluator import Job, Scorer
from tandem_trainer.evaluate.examples import Example
from tandem_trainer.lm.failures import BudgetExhausted
from tandem_trainer.prompt.candidates import Candidate
from tandem_trainer.prompt.race import race
from tandem_trainer.prompt.racing import Rules

#: The first look at a batch of trials comes after this part of a minibatch, and after so many examples at least.
LOOKS, MIN_LOOK = 5, 5

#: Called with the runs so far, what is going on, and the best mean of those known in full.
OnRuns = Callable[[int, str, float | None], None]


def looks_at(minibatch: int) -> tuple[int, ...]:
    """After how many examples a batch of trials is halved; the last look is after the whole minibatch."""
    looks = []
    look = max(MIN_LOOK, minibatch // LOOKS)
    while look < minibatch:
        looks.append(look)
        look *= 2
    return (*looks, minibatch)


@dataclass
class Tried:
    """A combination and what is known of it."""

    candidate: Candidate
    records: list[ScoredExample | None]
    """Of every example of the search, in the seeded order."""
    trials: list[int] = field(default_factory=list)
    """The trials that asked for it; the starting point's is 0."""
    means: list[float] = field(default_factory=list)
    """With `exhaustive`: of its minibatches."""
    dropped: bool = False
    """A race on all examples has dropped it."""

    @property
    def known(self) -> int:
        """Examples that it was scored on."""
        return sum(record is not None for record in self.records)

    @property
    def is_full(self) -> bool:
        return self.known == len(self.records)

    @property
    def mean(self) -> float:
        """Over all examples that it was scored on."""
        return fmean(record.score for record in self.records if record is not None)

    @property
    def told(self) -> float:
        """What the search takes for its score: the mean of its minibatches, else that of its examples."""
        return fmean(self.means) if self.means else self.mean

    def total(self, length: int) -> float:
        """The sum of its scores on the first examples."""
        return sum(record.score for record in self.records[:length] if record is not None)

    def lead(self, rival: Tried) -> float:
        """By how much its mean is above that of `rival` on the same examples; `rival` is known on all of these."""
        pairs = zip(self.records, rival.records, strict=True)
        return fmean(mine.score - other.score for mine, other in pairs if mine is not None and other is not None)

    def keep(self, records: Iterable[ScoredExample | None]) -> None:
        """Take over records that are there."""
        self.records = [new or old for new, old in zip(records, self.records, strict=True)]


class Board:
    """All combinations that were tried. When the budget ends, BudgetExhausted is raised and what was scored is kept."""

    def __init__(
        self, evaluator: Scorer, examples: Sequence[Example], settings: Mipro, seed: tuple[Any, ...], on_runs: OnRuns
    ) -> None:
        """`examples`: of the search, in seeded order."""
        self._evaluator = evaluator
        self._examples = examples
        self._exhaustive = settings.exhaustive
        self._seed = seed
        self._on_runs = on_runs
        self._rules = Rules.of(settings.racing, settings.exhaustive)
        self._minibatch = min(settings.minibatch_size, len(examples))
        self._tried: dict[str, Tried] = {}
        self.trials = 0

    @property
    def tried(self) -> list[Tried]:
        """All, in the order in which they were first asked for; the starting point is the first."""
        return list(self._tried.values())

    @property
    def best(self) -> Tried | None:
        """The best one known in full; of equal ones the earliest."""
        return max((each for each in self.tried if each.is_full), key=lambda each: each.mean, default=None)

    @property
    def rival(self) -> Tried:
        """What a combination has to be better than: the best one known in full, or the starting point."""
        return self.best or self.tried[0]

    @property
    def runs(self) -> int:
        return sum(each.known for each in self.tried)

    def is_settled(self, prompts: PromptSet) -> bool:
        """Whether trying it again would tell nothing new; with `exhaustive` it always does, on another minibatch."""
        tried = self._tried.get(prompts.sha256)
        return tried is not None and not self._exhaustive and (tried.is_full or tried.dropped or tried is self.rival)

    async def start(self, candidate: Candidate) -> float:
        """Score the starting point: on the common minibatch, and with `exhaustive` on all examples."""
        tried = self._entry(candidate, 0)
        length = len(self._examples) if self._exhaustive else self._minibatch
        await self._score([(tried, range(length))], "the starting prompts")
        return tried.mean

    async def try_out(self, candidates: Sequence[Candidate]) -> list[float]:
        """The scores that a batch of trials gives its combinations."""
        batch = []
        for candidate in candidates:
            self.trials += 1
            batch.append(self._entry(candidate, self.trials))
        await (self._try_minibatches(batch) if self._exhaustive else self._halve(batch))
        return [tried.means[-1] if self._exhaustive else tried.mean for tried in batch]

    async def promote(self) -> Tried | None:
        """Evaluate the combination with the best mean in full; None when none is better than the best known in full.

        A combination that the race drops is not asked for again.
        """
        rival = self.rival
        open_ones = [each for each in self.tried if not (each.is_full or each.dropped or each is rival)]
        if self._exhaustive:
            challenger = max(open_ones, key=lambda each: each.told, default=None)
        else:
            # A mean over less than a minibatch is mostly luck.
            leads = [each for each in open_ones if each.known >= self._minibatch and each.lead(rival) > 0]
            challenger = max(leads, key=lambda each: each.lead(rival), default=None)
        if challenger is None:
            return None
        before = self.runs - rival.known - challenger.known
        outcome = await race(
            self._evaluator,
            [rival.candidate, challenger.candidate],
            self._examples,
            self._rules_against(challenger),
            on_run=lambda done, _total, _message, score: self._on_runs(before + done, "a full evaluation", score),
        )
        for tried, scored in zip((rival, challenger), outcome.scored, strict=True):
            tried.keep(scored.records)
            tried.dropped = scored.dropped and not tried.is_full
        if not outcome.is_complete:
            raise BudgetExhausted("the token budget is used up")
        return challenger

    def _rules_against(self, challenger: Tried) -> Rules:
        """It is the best of all that were tried: its lead is partly luck, and the error rate is shared among these.

        A look before the end of what is known of it would tell nothing.
        """
        share = self._rules.error_rate / max(1, len(self._tried) - 1)
        return replace(self._rules, error_rate=share, first_round=max(self._rules.first_round, challenger.known))

    async def _try_minibatches(self, batch: Sequence[Tried]) -> None:
        """The paper's trial: a random minibatch of its own for each."""
        for tried in batch:
            draw = random.Random(seed_from(*self._seed, "minibatch", tried.trials[-1]))
            chosen = draw.sample(range(len(self._examples)), self._minibatch)
            await self._score([(tried, chosen)], f"trial {self.trials}")
            tried.means.append(fmean(record.score for index in chosen if (record := tried.records[index]) is not None))

    async def _halve(self, batch: Sequence[Tried]) -> None:
        """Successive halving on the common examples (Jamieson and Talwalkar, arXiv 1502.07943)."""
        repeated = [tried for tried in batch if tried.known >= self._minibatch]
        alive = list(batch)
        for length in looks_at(self._minibatch):
            await self._score([(tried, range(length)) for tried in alive], f"trial {self.trials}")
            alive = self._better(alive, length)
        more = [
            (tried, range(min(tried.known + self._minibatch, len(self._examples))))
            for tried in alive
            if tried in repeated
        ]
        await self._score(more, f"trial {self.trials}")

    def _better(self, alive: Sequence[Tried], length: int) -> list[Tried]:
        """The best one, and of the better half those not behind the rival; ties keep the earlier."""
        ranked = sorted(alive, key=lambda tried: -tried.total(length))
        least = self.rival.total(length)
        return ranked[:1] + [tried for tried in ranked[1 : len(alive) // 2] if tried.total(length) >= least]

    def _entry(self, candidate: Candidate, trial: int) -> Tried:
        unknown: list[ScoredExample | None] = [None] * len(self._examples)
        tried = self._tried.setdefault(candidate.prompts.sha256, Tried(candidate, unknown))
        tried.trials.append(trial)
        return tried

    async def _score(self, wanted: Sequence[tuple[Tried, Sequence[int]]], message: str) -> None:
        """Run what is not known yet."""
        todo = [(tried, index) for tried, indexes in wanted for index in indexes if tried.records[index] is None]
        jobs = [Job(tried.candidate.prompts, self._examples[index]) for tried, index in todo]
        before, best = self.runs, self.best
        score = best.mean if best else None
        try:
            await self._evaluator.run(jobs, progress=lambda done, _, __: self._on_runs(before + done, message, score))
        finally:
            for (tried, index), record in zip(todo, self._evaluator.scored(jobs), strict=True):
                tried.records[index] = record
