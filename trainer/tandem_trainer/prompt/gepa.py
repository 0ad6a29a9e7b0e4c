"""GEPA: instructions that a model rewrites after reflecting on runs of the program, by the gepa library.

Source: GEPA (arXiv 2507.19457). A step takes a candidate from the Pareto front of the search's validation examples,
runs it on a minibatch of training examples, has a model rewrite one predictor's instruction from what happened there,
and keeps the new candidate if it does better on that minibatch; what is kept is scored on the validation examples.

The library runs in a thread and decides; what it asks for is run on the event loop, by the stage's evaluator and
writer, which keep it. With the same seed it asks for the same, so that a stage that starts again replays.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from gepa.api import optimize as run_gepa
from gepa.core.adapter import EvaluationBatch

from tandem_api.canonical import digest, seed_from
from tandem_api.errors import ConfigurationError
from tandem_api.records import PredictorPrompt, PromptSet, ScoredExample
from tandem_api.v1alpha1.prompt_optimizers import Gepa
from tandem_trainer.evaluate.evaluator import Job
from tandem_trainer.evaluate.examples import Example
from tandem_trainer.lm.bridge import Bridge
from tandem_trainer.lm.client import BudgetExhausted, CallFailedError
from tandem_trainer.lm.writer import Writer, Writing
from tandem_trainer.prompt.candidates import Candidate, Scored
from tandem_trainer.prompt.demos import without_own_demos
from tandem_trainer.prompt.finalists import compare
from tandem_trainer.prompt.optimizer import Found, SearchTask
from tandem_trainer.prompt.reflection import reflective_dataset
from tandem_trainer.prompt.selection import best, not_in

logger = logging.getLogger(__name__)

#: New candidates that `auto` has room for.
CANDIDATES = {"light": 6, "medium": 12, "heavy": 18}

#: gepa's names of `candidateSelection`.
SELECTIONS: dict[str, Literal["pareto", "current_best", "epsilon_greedy"]] = {
    "pareto": "pareto",
    "current-best": "current_best",
    "epsilon-greedy": "epsilon_greedy",
}

#: gepa's candidate: the instruction of every predictor, by its name.
Instructions = Mapping[str, str]
Run = tuple[Example, ScoredExample]


def check(settings: Gepa) -> None:
    """Raises ConfigurationError for settings with which nothing could be found."""
    least = 1 + 2 * settings.reflection_minibatch_size
    if settings.max_metric_calls is not None and settings.max_metric_calls < least:
        raise ConfigurationError(
            f"promptOptimizer.maxMetricCalls: found {settings.max_metric_calls}; allowed: at least {least}, for the "
            f"starting prompts and one reflection (2 x reflectionMinibatchSize {settings.reflection_minibatch_size})"
        )


def run_limit(settings: Gepa, *, predictors: int, examples: int) -> int:
    """Runs of the program that the search may make; `examples`: the search's validation examples.

    `maxMetricCalls`, or examples + candidates x (examples + 4 x minibatch x predictors), with 6, 12 or 18 candidates:
    the starting prompts, and for each new candidate one full evaluation and two tries per predictor, each of which
    runs a minibatch before the change and after it.
    """
    if settings.max_metric_calls is not None:
        return settings.max_metric_calls
    tries = 4 * settings.reflection_minibatch_size * predictors
    return examples + CANDIDATES[settings.auto] * (examples + tries)


async def optimize(task: SearchTask, settings: Gepa) -> Found:
    """Search for better instructions; the demos stay those of the starting prompts."""
    check(settings)
    writer = await task.writer(settings.proposer, "gepa")
    limit = run_limit(settings, predictors=len(task.start.predictors), examples=len(task.subset))
    search = _Search(task, writer, settings, limit)
    is_complete = True
    if task.train:
        try:
            await search.bridge.run_in_thread(search.run)
        except BudgetExhausted:
            is_complete = False
    pool = search.pool or [Scored(Candidate("starting", task.start), ())]
    leader = best([each.score.score if each.score else 0.0 for each in pool])
    finals = await compare(task, [pool[0].candidate, pool[leader].candidate], may_run=is_complete, done=search.runs)
    shown = list(pool)
    shown[0], shown[leader] = finals.scored
    await task.table.show(shown)
    facts: dict[str, int | str] = {
        "candidates": len(pool),
        "metric_calls": search.runs,
        "reflections": search.reflections,
        "search_examples": len(task.subset),
    }
    message = None
    if task.train:
        message = _no_room(settings, limit, train=len(task.train), examples=len(task.subset))
    if not finals.is_complete:
        message = f"the token budget ended the search after {search.runs} of {limit} runs; {len(pool)} candidates"
    if finals.best is None:
        return Found(is_complete=False, message=message, facts=facts)
    facts |= {"winner": leader if finals.winner else 0, "winner_kind": finals.best.candidate.kind}
    return Found(finals.best.candidate.prompts, finals.best.full, finals.is_complete, message, facts)


def _no_room(settings: Gepa, limit: int, *, train: int, examples: int) -> str | None:
    """Why nothing but the starting prompts could be found; None where the limit leaves room for one new candidate."""
    minibatch = min(settings.reflection_minibatch_size, train)
    least = 2 * examples + 2 * minibatch
    if limit >= least:
        return None
    return (
        f"promptOptimizer.maxMetricCalls: found {limit}; no new candidate fits: the starting prompts take {examples} "
        f"runs, one reflection {2 * minibatch} and a new candidate {examples}; allowed: at least {least}"
    )


@dataclass(frozen=True)
class _Case:
    """An example as gepa handles it."""

    example: Example
    is_training: bool
    """Its runs are reflected on, so that their traces are wanted."""


class _LimitReached(Exception):  # noqa: N818 - not a fault: the signal that the library's search ends
    """The next evaluation would make more runs than the search may make."""


class _Log:
    """gepa's log in ours; it tells every instruction in full."""

    def log(self, message: str) -> None:
        logger.debug("%s", message)


class _Search:
    """What gepa calls an adapter, and its reflection model. `run` and what it calls happen in a worker thread."""

    #: gepa's own proposer writes the instructions.
    propose_new_texts = None

    def __init__(self, task: SearchTask, writer: Writer, settings: Gepa, limit: int) -> None:
        self.bridge = Bridge()
        self.pool: list[Scored] = []
        """Candidates scored on all examples of the search, in the order in which they were found; first the start."""
        self.runs = 0
        self.reflections = 0
        self._task = task
        self._writer = writer
        self._settings = settings
        self._limit = limit
        self._failure: Exception | None = None
        self._prompts: dict[str, PromptSet] = {}
        self._merged: set[str] = set()
        self._asked: Counter[str] = Counter()

    def run(self) -> None:
        """Search until the limit. Raises the fault of a model server, also where gepa swallows it."""
        task, settings = self._task, self._settings
        try:
            run_gepa(
                seed_candidate={name: prompt.instruction for name, prompt in task.start.predictors.items()},
                trainset=[_Case(example, True) for example in task.train],
                valset=[_Case(example, False) for example in task.subset],
                adapter=cast(Any, self),
                reflection_lm=self.reflect,
                candidate_selection_strategy=SELECTIONS[settings.candidate_selection],
                reflection_minibatch_size=min(settings.reflection_minibatch_size, len(task.train)),
                use_merge=settings.merge and len(task.start.predictors) > 1,
                max_metric_calls=self._limit,
                logger=_Log(),
                track_best_outputs=False,
                seed=seed_from(task.seed, task.step, "gepa"),
            )
        except _LimitReached:
            logger.info("GEPA has made its %d runs of the program", self.runs)
        if self._failure is not None:
            raise self._failure

    def batch_evaluate(self, items: Sequence[tuple[Instructions, Sequence[_Case]]]) -> list[Any]:
        """gepa's call for minibatches and for full evaluations."""
        return [self._evaluate(cases, candidate) for candidate, cases in items]

    def evaluate(self, batch: Sequence[_Case], candidate: Instructions, capture_traces: bool = False) -> Any:
        """gepa's call for the starting prompts, and to try a merged candidate on a few validation examples."""
        if self.pool:
            self._merged.add(digest(dict(candidate)))
        return self._evaluate(batch, candidate)

    def make_reflective_dataset(
        self, candidate: Instructions, eval_batch: Any, components_to_update: list[str]
    ) -> dict[str, list[dict[str, Any]]]:
        """gepa's call for what the reflection is shown."""
        return reflective_dataset(eval_batch.trajectories, components_to_update, self._task.inputs)

    def reflect(self, prompt: str | list[dict[str, Any]]) -> str:
        """What the reflection model writes. Asked the same again, it writes something else, and on replay the same."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        name = digest(messages)
        nth = self._asked[name]
        self._asked[name] += 1
        proposer = self._settings.proposer
        how = Writing(temperature=float(proposer.temperature), max_tokens=proposer.max_tokens)
        try:
            (text,) = self.bridge.call(lambda: self._writer.write(messages, how, key=["reflection", nth]))
        except CallFailedError:
            raise  # this reflection's own failure: gepa goes on without it
        except Exception as error:
            self._failure = error  # gepa would go on without it, too
            raise
        self.reflections += 1
        return text

    def _evaluate(self, cases: Sequence[_Case], candidate: Instructions) -> Any:
        if self._failure is not None:
            raise self._failure
        if self.pool and self.runs + len(cases) > self._limit:
            raise _LimitReached
        records = self.bridge.call(lambda: self._run(cases, candidate))
        self.runs += len(cases)
        return EvaluationBatch(
            outputs=[record.prediction for record in records],
            scores=[record.score for record in records],
            trajectories=[(case.example, record) for case, record in zip(cases, records, strict=True)],
        )

    async def _run(self, cases: Sequence[_Case], candidate: Instructions) -> list[ScoredExample]:
        prompts, task = self._prompt_set(candidate), self._task
        jobs = [Job(without_own_demos(prompts, case.example, task.inputs), case.example) for case in cases]
        top = max((each.score.score for each in self.pool if each.score), default=None)
        message = f"{len(self.pool)} candidates, {self.reflections} reflections"
        before = self.runs
        records = await task.evaluator.run(
            jobs,
            keep_calls=any(case.is_training for case in cases),
            progress=lambda finished, _, __: task.report(before + finished, self._limit, message, top),
        )
        if [case.example.id for case in cases] == [example.id for example in task.subset] and not cases[0].is_training:
            rest = None if not_in(task.subset, task.validation) else ()
            await self._keep(Scored(Candidate(self._kind(candidate), prompts), tuple(records), rest))
        return records

    async def _keep(self, scored: Scored) -> None:
        if all(known.candidate.prompts is not scored.candidate.prompts for known in self.pool):
            self.pool.append(scored)
            await self._task.table.show(self.pool)

    def _kind(self, candidate: Instructions) -> str:
        if not self.pool:
            return "starting"
        return "merged" if digest(dict(candidate)) in self._merged else "reflected"

    def _prompt_set(self, candidate: Instructions) -> PromptSet:
        """One object for equal candidates: programs are prepared and keys are made per object."""
        name = digest(dict(candidate))
        if name not in self._prompts:
            self._prompts[name] = PromptSet(
                predictors={
                    predictor: PredictorPrompt(instruction=candidate[predictor], demos=prompt.demos)
                    for predictor, prompt in self._task.start.predictors.items()
                }
            )
        return self._prompts[name]
