"""Where the combinations come from when proposals are of no use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tandem_api.records import PredictorPrompt, PromptSet
from tandem_api.v1alpha1.prompt_optimizers import Mipro
from tandem_trainer.prompt.candidates import Candidate
from tandem_trainer.prompt.mipro.proposer import InstructionProposer, Request
from tandem_trainer.prompt.mipro.sources import MAX_USELESS, LearnedProposer, ModuleHistory, Source
from tandem_trainer.prompt.optimizer import SearchTask

START = PromptSet(predictors={"self": PredictorPrompt(instruction="own")})
TASK = cast(SearchTask, SimpleNamespace(start=START, seed=0, step=1))


class Scripted:
    """Proposes what a function says of a request's number."""

    def __init__(self, text: Callable[[int], str | None]) -> None:
        self.text = text
        self.numbers: list[int] = []

    def request(self, predictor: str, number: int, history: Mapping[str, float] | None = None) -> Request:
        return Request(predictor, number, "none", 0.7, data=True, program=True, demos=None, history=history or {})

    async def propose(self, requests: Sequence[Request]) -> list[str | None]:
        self.numbers += [request.number for request in requests]
        return [self.text(request.number) for request in requests]


def module_history(proposer: Scripted) -> Source:
    return ModuleHistory(TASK, cast(InstructionProposer, proposer), ["self"])


def learned_proposer(proposer: Scripted) -> Source:
    return LearnedProposer(TASK, Mipro(), cast(InstructionProposer, proposer), ["self"], 8)


both = pytest.mark.parametrize("source_of", [module_history, learned_proposer])


def instructions(candidates: Sequence[Candidate]) -> list[str]:
    return [candidate.prompts.predictors["self"].instruction for candidate in candidates]


def is_start(prompts: PromptSet) -> bool:
    return prompts == START


@both
@pytest.mark.parametrize("count", [1, 2])
def test_after_useless_proposals_it_goes_on_with_the_next(source_of: Any, count: int) -> None:
    proposer = Scripted(lambda number: "new" if number == 5 else None)
    source = source_of(proposer)
    assert instructions(asyncio.run(source.ask(count, is_start))) == ["new"]
    assert proposer.numbers == list(range(1, len(proposer.numbers) + 1)) and len(proposer.numbers) in (5, 6)
    source.tell([0.5])


@both
def test_a_proposer_that_has_nothing_new_ends_the_search(source_of: Any) -> None:
    proposer = Scripted(lambda _: None)
    assert asyncio.run(source_of(proposer).ask(1, is_start)) == []
    assert len(proposer.numbers) == MAX_USELESS


@both
def test_two_useless_proposals_of_a_batch_are_one_candidate(source_of: Any) -> None:
    source = source_of(Scripted(lambda number: "new" if number == 2 else None))
    assert instructions(asyncio.run(source.ask(3, lambda _: False))) == ["own", "new"]
    source.tell([0.5, 0.6])
