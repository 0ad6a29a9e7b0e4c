"""`select-1`, `select-2`, ...: one epoch's adapter is scored against the best so far (`checkpoint: best`).

The engine serves the adapters of a training one after another, the last epoch's first, each in a stage of its own. The
first is scored on all of validation, with the program's original prompts. Each other one races the best so far: it is
scored on the same examples in the same order, in rounds, and is dropped once it is clearly worse. One that gets
through with at least the same score is the best so far: of equal ones the earlier epoch, which has moved the weights
less.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from tandem_api.canonical import seed_from
from tandem_api.contract import StageRequest, StageResult
from tandem_api.errors import DataError, ErrorRateError
from tandem_api.records import ScoredExample
from tandem_api.v1alpha1.prompt_optimizers import Racing
from tandem_trainer.context import StageContext
from tandem_trainer.evaluate.evaluator import Job, summarize
from tandem_trainer.evaluate.examples import Example
from tandem_trainer.evaluate.ledger import Ledger
from tandem_trainer.lm.client import BudgetExhausted
from tandem_trainer.prompt.racing import Rules, looks_at, losers
from tandem_trainer.stages.session import Session, open_session

BEST: Final = "best so far"


def run(context: StageContext) -> StageResult:
    """Score the adapter that is served. `adapter` and `scores` are given if it is the best so far."""
    return context.run(_select(context))


async def _select(context: StageContext) -> StageResult:
    request = context.request
    async with open_session(context) as session:
        examples = in_order(session.splits.validation, request)
        best = _best_so_far(session, examples)
        facts: dict[str, int | str] = {"epoch": request.epoch or 0}
        try:
            records = await _race(session, examples, best)
            session.evaluator.check_error_rate()
        except BudgetExhausted as error:
            message = f"{error}; it ended while the adapter of epoch {request.epoch} was being scored"
            return StageResult(
                outcome="stopped", reason=BudgetExhausted.code, message=message, usage=session.usage, facts=facts
            )
        except ErrorRateError as error:
            # Another epoch may do better: that no adapter is good enough is for the evaluation to say.
            facts["standing"] = "failed"
            return StageResult(message=str(error), usage=session.usage, facts=facts)
        score = summarize(records)
        facts |= {"score": f"{score.score:.4f}", "examples": score.n, "standing": _standing(records, best)}
        if facts["standing"] != BEST:
            return StageResult(usage=session.usage, facts=facts)
        assert request.endpoint is not None
        return StageResult(scores=(score,), adapter=request.endpoint.adapter, usage=session.usage, facts=facts)


def _standing(records: Sequence[ScoredExample], best: Sequence[float] | None) -> str:
    """How the adapter stands to the best one before it."""
    if best is None:
        return BEST
    if len(records) < len(best):
        return "dropped"
    return "worse" if math.fsum(record.score for record in records) < math.fsum(best) else BEST


def in_order(examples: Sequence[Example], request: StageRequest) -> list[Example]:
    """The order in which all adapters of a step meet the examples: shuffled, so that every round is a fair sample."""
    shuffled = list(examples)
    random.Random(seed_from(request.spec.seed, request.index, "select")).shuffle(shuffled)
    return shuffled


async def _race(session: Session, examples: Sequence[Example], best: Sequence[float] | None) -> list[ScoredExample]:
    """The records of the adapter that is served, in the order of `examples`; fewer if it was dropped."""
    settings = session.request.weight_optimizer or session.request.spec.weights_of(session.request.index)
    rules = race_rules(settings.kept_epochs, is_first=best is None)
    jobs = [Job(session.program.vanilla, example) for example in examples]
    message = f"the adapter of epoch {session.request.epoch} of {settings.epochs}"
    records: list[ScoredExample] = []
    for look in looks_at(len(jobs), rules):
        report = session.reporter(message, done=len(records), total=len(jobs))
        records += await session.evaluator.run(jobs[len(records) : look], progress=report)
        if best is not None:
            scores = np.array([best[:look], [record.score for record in records]])
            if 1 in losers(scores, (0, 1), len(jobs), rules):
                break
    return records


def race_rules(epochs: Sequence[int], *, is_first: bool) -> Rules:
    """The rules of each race of two: the stated error rate is that of all races of the step together."""
    rules = Rules.of(Racing(), exhaustive=is_first)
    return replace(rules, error_rate=rules.error_rate / max(1, len(epochs) - 1))


def _best_so_far(session: Session, examples: Sequence[Example]) -> list[float] | None:
    """The scores of the best adapter so far, in the order of `examples`; None: there is none yet.

    Raises DataError when the stage that scored it has lost some of them.
    """
    stage = session.request.best_stage
    if stage is None:
        return None
    request = session.request
    prefix = request.layout.stage(request.index, request.kind, stage).ledger
    ledger = Ledger(session.context.store, prefix).load()
    scores = {record.example: record.score for record in ledger.values()}
    missing = [example.id for example in examples if example.id not in scores]
    if missing:
        raise DataError(
            f"{session.context.store.uri(prefix)} lacks {len(missing)} of {len(examples)} validation examples "
            f"(first: {missing[0]!r}), though stage {stage} has ended; the object was damaged: start a new run"
        )
    return [scores[example.id] for example in examples]
