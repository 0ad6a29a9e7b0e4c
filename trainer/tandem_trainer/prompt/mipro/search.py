"""MIPRO (arXiv 2406.11695): instructions and demos of all predictors, searched together by Bayesian optimization.

    demo sets + proposed instructions -> TPE picks a combination -> scored on a minibatch -> TPE is told
                                              every S trials: the best mean is evaluated in full -> the best of these

Section 3.4, step by step: bootstrap and propose (`demo_sets.py`, `grounding.py`, `proposer.py`), pick (`sources.py`,
`study.py`), score (`board.py`), and return the best combination that was evaluated in full. MIPRO proposes before
anything is scored, so that `grounding.history` is for module-opro and mipro++.

Costs, for T trials in batches of 5, a minibatch of B, a full evaluation every S trials, V examples to search on, and a
winner that is clearly better than the start. Runs of the program: bootstrapping, B for the starting prompts, about
2/5 T B for the trials (B for each that is the best of its batch, B / 5 for half of them) and V - B for each of the
T / S full evaluations. Where the start is as good, V - B more. With `exhaustive`: V for the start, T B for the trials
and up to V - B for each full evaluation. Calls of the proposer: those of `grounding.py`, and one for each instruction
but the own one of every predictor; module-opro and mipro++ write one for each predictor and trial, and others in the
place of useless ones.
"""

from __future__ import annotations

import random
import textwrap
from collections.abc import Iterable, Mapping

from tandem_api.canonical import seed_from
from tandem_api.errors import DataError
from tandem_api.v1alpha1.prompt_optimizers import Mipro
from tandem_trainer.evaluate.evaluator import Scorer
from tandem_trainer.evaluate.examples import Example
from tandem_trainer.lm.failures import BudgetExhausted
from tandem_trainer.lm.writer import Writer, Writing
from tandem_trainer.prompt.bootstrap import Bootstrap
from tandem_trainer.prompt.candidates import Candidate, Scored
from tandem_trainer.prompt.demos import build_pool
from tandem_trainer.prompt.finalists import Finals, compare
from tandem_trainer.prompt.mipro.board import Board, Tried
from tandem_trainer.prompt.mipro.demo_sets import bootstrap, called, demo_sets
from tandem_trainer.prompt.mipro.grounding import Grounds, ground
from tandem_trainer.prompt.mipro.proposer import InstructionProposer
from tandem_trainer.prompt.mipro.sources import Combinations, LearnedProposer, ModuleHistory, Source
from tandem_trainer.prompt.mipro.space import sizes_of, space_of
from tandem_trainer.prompt.mipro.together import together
from tandem_trainer.prompt.mipro.training import ScoredOnTrain, TrainingEvaluator
from tandem_trainer.prompt.mipro.wording import STOP
from tandem_trainer.prompt.optimizer import Found, SearchTask

#: Trials that are asked for before their scores are told: enough to fill the slots, and never their number, on which
#: no result may depend.
BATCH = 5
#: Foreign text in a message is cut to this many characters, a list of names to that many.
MAX_DETAIL, MAX_NAMES = 200, 350


async def optimize(task: SearchTask, settings: Mipro) -> Found:
    """Search for better instructions and demos than the starting prompts have.

    Raises ConfigurationError when the proposer's key is missing and DataError when there is nothing to search on, both
    before the model is called; ServingError when a model server stays away.
    """
    search = _Search(task, settings)
    try:
        await search.run()
        ended = None
    except BudgetExhausted as error:
        ended = str(error)
    finals = await search.finals(may_run=ended is None)
    if ended is None and not finals.is_complete:
        ended = "the token budget ended it before the last comparison"
    await task.table.show(search.scored(finals))
    return search.found(finals, ended)


def not_shown(failures: Mapping[str, str]) -> str:
    """One warning for all sources of grounding that failed, with the first one's reason; at most 600 characters."""
    first = min(failures)
    return f"the proposer was not shown: {_names(failures)} ({failures[first][:MAX_DETAIL]})"


def _names(failures: Iterable[str]) -> str:
    return textwrap.shorten(", ".join(sorted(failures)), MAX_NAMES, placeholder=" ...")


class _Search:
    """One search, and what is known of it when it ends."""

    def __init__(self, task: SearchTask, settings: Mipro) -> None:
        self._task = task
        self._settings = settings
        self._sizes = sizes_of(settings, len(task.start.predictors))
        self._seed = (task.seed, task.step, "mipro")
        self._bootstrap = Bootstrap(build_pool(task.fields, task.train, ()), examples=0, passed=0)
        self._grounds = Grounds()
        self._proposer: InstructionProposer | None = None
        self._is_dry = False
        """Whether it ended before all trials were made because there was nothing new to try."""
        self._board = self._new_board()

    def _new_board(self) -> Board:
        task = self._task
        scorer: Scorer = task.evaluator
        examples: list[Example] = list(task.subset)
        if self._settings.search_on == "train":
            if not task.train:
                raise DataError(
                    "promptOptimizer.searchOn: found train, but there are no training examples whose inputs are not "
                    "those of validation examples, too; give some, or search on validation"
                )
            examples = list(task.train)
            scorer = TrainingEvaluator(task.evaluator, task.inputs)
        # One order for all: every comparison is made on the same examples.
        random.Random(seed_from(*self._seed, "examples")).shuffle(examples)
        return Board(scorer, examples, self._settings, self._seed, self._report)

    async def run(self) -> None:
        """Initialize, then search. Raises BudgetExhausted."""
        board, every = self._board, self._settings.full_evaluation_every
        source = await self._initialize()
        while size := self._batch_size():
            batch = await source.ask(size, board.is_settled)
            if not batch:
                self._is_dry = True
                break
            source.tell(await board.try_out(batch))
            if board.trials % every == 0:
                await self._promote(source)
            await self._show()
        if board.trials % every:
            await self._promote(source)

    def _batch_size(self) -> int:
        """Trials up to the next full evaluation; the paper's procedure has one trial after another."""
        left = self._sizes.trials - self._board.trials
        every = self._settings.full_evaluation_every
        return min(1 if self._settings.exhaustive else BATCH, left, every - self._board.trials % every)

    async def _promote(self, source: Source) -> None:
        promoted = await self._board.promote()
        if promoted is not None and promoted.is_full and not self._settings.exhaustive:
            source.learn(promoted.candidate, promoted.mean)

    async def _initialize(self) -> Source:
        """Bootstrap, propose, and score the start: what needs no other is done at the same time."""
        task, settings = self._task, self._settings
        # Asked for first: a key that is missing is told of before anything is paid for.
        writer = await task.writer(settings.proposer, "mipro") if settings.variant != "bayesian-bootstrap" else None
        await together(self._bootstrap_and_start(), *([self._ground(writer)] if writer else []))
        predictors = called(task)
        if writer is not None:
            self._proposer = InstructionProposer(task, settings, writer, self._grounds, self._bootstrap.pool)
        source = await self._source(predictors)
        start = self._board.tried[0]
        source.learn(start.candidate, start.mean)
        await self._show()
        return source

    async def _bootstrap_and_start(self) -> None:
        task, settings = self._task, self._settings
        if self._chooses_demos or settings.grounding.demos:
            self._bootstrap = await bootstrap(task, settings, self._sizes.demo_sets, self._report_bootstrap)
        await self._board.start(Candidate("starting", task.start))

    async def _ground(self, writer: Writer) -> None:
        proposer = self._settings.proposer
        how = Writing(float(proposer.temperature), proposer.max_tokens, stop=(STOP,))
        self._grounds = await ground(self._task, self._settings.grounding, writer, how)

    async def _source(self, predictors: tuple[str, ...]) -> Source:
        """What the variant chooses from."""
        task, settings, sizes, proposer = self._task, self._settings, self._sizes, self._proposer
        if settings.variant == "module-opro" and proposer is not None:
            return ModuleHistory(task, proposer, predictors)
        if settings.variant == "mipro++" and proposer is not None:
            return LearnedProposer(task, settings, proposer, predictors, sizes.trials)
        proposed: dict[str, list[str]] = {name: [] for name in predictors}
        if proposer is not None:
            requests = [proposer.request(name, nth) for name in predictors for nth in range(1, sizes.instructions)]
            for request, text in zip(requests, await proposer.propose(requests), strict=True):
                if text is not None:
                    proposed[request.predictor].append(text)
        sets = demo_sets(task, settings, self._bootstrap.pool, sizes.demo_sets) if self._chooses_demos else {}
        space = space_of(task.start, proposed, {name: sets.get(name, []) for name in predictors})
        return Combinations(task, space, sizes.trials)

    @property
    def _chooses_demos(self) -> bool:
        return self._settings.variant in ("mipro", "bayesian-bootstrap")

    async def finals(self, *, may_run: bool) -> Finals:
        """The start and the best on all of validation; after the budget's end whatever was scored on all of it."""
        chosen = [tried for tried in self._board.tried if tried.is_full]
        if may_run:
            start, best = self._board.tried[0], self._board.rival
            is_settled = start.dropped and self._searched_all
            chosen = [best] if is_settled or best is start else [start, best]
        return await compare(self._task, [each.candidate for each in chosen], may_run=may_run, done=self._runs)

    def scored(self, finals: Finals | None = None) -> list[Scored]:
        """All combinations for the trial table, in the order in which they were first tried."""
        known = {each.candidate.prompts.sha256: each for each in (finals.scored if finals else ())}
        return [self._scored(tried, known.get(tried.candidate.prompts.sha256)) for tried in self._board.tried]

    def _scored(self, tried: Tried, final: Scored | None) -> Scored:
        parameters = {**tried.candidate.parameters, "trials": tried.trials}
        candidate = Candidate(tried.candidate.kind, tried.candidate.prompts, parameters)
        records = tuple(tried.records)
        if self._settings.search_on == "train":
            rest = None if final is None else (*final.records, *(final.rest or ()))
            return ScoredOnTrain(candidate, records, rest, tried.dropped)
        return Scored(candidate, records, () if self._searched_all else final.rest if final else None, tried.dropped)

    @property
    def _searched_all(self) -> bool:
        """Whether the search scores on all of validation."""
        return self._settings.search_on == "validation" and len(self._task.subset) == len(self._task.validation)

    async def _show(self) -> None:
        await self._task.table.show(self.scored())

    def found(self, finals: Finals, ended: str | None) -> Found:
        """The result; `ended`: what ended the search early."""
        board, best = self._board, finals.best
        facts: dict[str, int | str] = {
            **self._bootstrap.facts,
            "variant": self._settings.variant,
            "trials": board.trials,
            "candidates": len(board.tried),
            "scored": sum(each.is_full for each in board.tried),
            "search_set": self._settings.search_on,
            "search_examples": len(board.tried[0].records) if board.tried else 0,
            "selection_set": "validation",
        }
        if self._proposer is not None:
            counts = self._proposer.counts
            facts |= {"proposals": counts.asked, "proposals_kept": counts.kept}
            facts |= {"proposals_dropped": counts.dropped, "proposals_failed": counts.failed}
        if self._grounds.failures:
            facts["grounding_failed"] = _names(self._grounds.failures)
        messages = (
            [f"{ended}; {facts['scored']} of {len(board.tried)} combinations were evaluated in full"] if ended else []
        )
        message = "; ".join([*messages, *self._warnings()]) or None
        if best is None or best.full is None:
            return Found(is_complete=ended is None, message=message, facts=facts)
        winner = best.candidate.prompts
        facts["winner"] = [tried.candidate.prompts.sha256 for tried in board.tried].index(winner.sha256)
        facts["winner_kind"] = best.candidate.kind
        return Found(winner, best.full, ended is None, message, facts)

    def _warnings(self) -> list[str]:
        """What a user should know of the material of the search."""
        found = []
        boot, settings = self._bootstrap, self._settings
        if boot.examples and not boot.passed and not boot.retry_passed:
            found.append(
                f"none of {boot.examples} training examples reached the threshold {settings.threshold} "
                "(promptOptimizer.threshold): there are no bootstrapped demos"
            )
        if self._grounds.failures:
            found.append(not_shown(self._grounds.failures))
        if self._proposer is not None:
            counts = self._proposer.counts
            if counts.failed:
                found.append(f"{counts.failed} of {counts.asked} proposals were refused: {counts.failure[:MAX_DETAIL]}")
            if counts.asked and not counts.kept:
                found.append("no new instruction was proposed, so that the program's own were kept")
        if self._is_dry:
            writes = settings.variant in ("module-opro", "mipro++")
            why = "the proposer wrote nothing new any more" if writes else "there was nothing new to try"
            found.append(f"only {self._board.trials} of {self._sizes.trials} trials were made: {why}")
        return found

    @property
    def _runs(self) -> int:
        return self._bootstrap.runs + self._board.runs

    def _expected(self) -> int:
        """Runs there may be at most, but for bootstrapping's second round."""
        examples = len(self._task.train if self._settings.search_on == "train" else self._task.subset)
        every = self._settings.full_evaluation_every
        trials = self._sizes.trials * min(self._settings.minibatch_size, examples)
        return self._bootstrap.runs + trials + examples * (1 + -(-self._sizes.trials // every))

    def _report(self, done: int, message: str, score: float | None) -> None:
        self._task.report(self._bootstrap.runs + done, self._expected(), message, score)

    def _report_bootstrap(self, done: int, message: str, score: float | None) -> None:
        self._task.report(done, len(self._task.train) + self._expected(), message, score)
