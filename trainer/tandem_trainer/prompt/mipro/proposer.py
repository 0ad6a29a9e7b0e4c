"""Proposing instructions (MIPRO, section 3.1): one call each, all of a round at once.

What is dropped is decided in the order of the requests, never in the order of the answers.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tandem_api.canonical import seed_from
from tandem_api.v1alpha1.prompt_optimizers import Mipro
from tandem_trainer.lm.failures import CallFailedError
from tandem_trainer.lm.writer import Writer, Writing
from tandem_trainer.prompt.demos import Demo, DemoPool
from tandem_trainer.prompt.mipro import wording
from tandem_trainer.prompt.mipro.grounding import Grounds
from tandem_trainer.prompt.mipro.together import together
from tandem_trainer.prompt.optimizer import SearchTask

#: Demos of a predictor that a proposal is shown, and earlier instructions (the best ones).
MAX_DEMOS, MAX_HISTORY = 3, 8


@dataclass(frozen=True)
class Request:
    """One proposal: what the proposer is shown, and how it writes."""

    predictor: str
    number: int
    """Sets requests apart, and draws the demos."""
    tip: str
    """A key of `wording.TIPS`."""
    temperature: float
    data: bool
    program: bool
    demos: int | None
    """Which draw of demos is shown; None: none."""
    history: Mapping[str, float]
    """Scored instructions of the predictor; empty: none are shown."""


@dataclass
class Counts:
    """What became of the proposals."""

    asked: int = 0
    kept: int = 0
    dropped: int = 0
    """Empty, or a repetition."""
    failed: int = 0
    """Refused by the proposer's server."""
    failure: str = ""
    """The first refusal."""


class InstructionProposer:
    """Writes instructions that were not there before."""

    def __init__(self, task: SearchTask, settings: Mipro, writer: Writer, grounds: Grounds, pool: DemoPool) -> None:
        self._task = task
        self._settings = settings
        self._writer = writer
        self._grounds = grounds
        self._pool = pool
        self._known = {name: {wording.normalized(prompt.instruction)} for name, prompt in task.start.predictors.items()}
        self.counts = Counts()

    def request(self, predictor: str, number: int, history: Mapping[str, float] | None = None) -> Request:
        """A request with all that is switched on; tips take turns in a seeded order, so that proposals differ."""
        grounding = self._settings.grounding
        tips = list(wording.TIPS)
        random.Random(seed_from(self._task.seed, self._task.step, "mipro", "tips", predictor)).shuffle(tips)
        return Request(
            predictor=predictor,
            number=number,
            tip=tips[number % len(tips)] if grounding.tips else "none",
            temperature=float(self._settings.proposer.temperature),
            data=grounding.data,
            program=grounding.program,
            demos=number if grounding.demos else None,
            history=(history or {}) if grounding.history else {},
        )

    async def propose(self, requests: Sequence[Request]) -> list[str | None]:
        """The instructions, in the order of `requests`; None for what was refused, empty or a repetition.

        Raises ServingError and BudgetExhausted.
        """
        answers = await together(*(self._ask(request) for request in requests))
        return [self._keep(request, answer) for request, answer in zip(requests, answers, strict=True)]

    async def _ask(self, request: Request) -> str | CallFailedError:
        name, grounds = request.predictor, self._grounds
        best = sorted(request.history.items(), key=lambda item: -item[1])[:MAX_HISTORY]
        message = wording.propose(
            signature=wording.signature_text(name, self._task.fields[name]),
            seed=self._task.start.predictors[name].instruction,
            data=grounds.data if request.data else "",
            program=grounds.program if request.program else "",
            role=grounds.roles.get(name, "") if request.program else "",
            demos=wording.rows_text(self._demos(request)),
            history=wording.history_text(dict(best)),
            tip=wording.TIPS[request.tip],
        )
        how = Writing(request.temperature, self._settings.proposer.max_tokens, stop=(wording.STOP,))
        try:
            (text,) = await self._writer.write(
                [{"role": "user", "content": message}], how, key=("mipro", name, request.number)
            )
        except CallFailedError as error:
            return error
        return wording.read_instruction(text)

    def _demos(self, request: Request) -> list[Demo]:
        if request.demos is None:
            return []
        offers = self._pool[request.predictor].bootstrapped
        draw = random.Random(seed_from(self._task.seed, self._task.step, "mipro", request.predictor, request.demos))
        return [offer.demos[0] for offer in draw.sample(offers, min(MAX_DEMOS, len(offers)))]

    def _keep(self, request: Request, answer: str | CallFailedError) -> str | None:
        counts = self.counts
        counts.asked += 1
        if isinstance(answer, CallFailedError):
            counts.failed += 1
            counts.failure = counts.failure or str(answer)
            return None
        known, text = self._known[request.predictor], wording.normalized(answer)
        if not text or text in known:
            counts.dropped += 1
            return None
        known.add(text)
        counts.kept += 1
        return answer
