"""Several coroutines at once, and how they end."""

from __future__ import annotations

import asyncio

import pytest

from tandem_trainer.lm.failures import BudgetExhausted
from tandem_trainer.prompt.mipro.together import together


class Part:
    """Works for three turns of the loop."""

    def __init__(self) -> None:
        self.has_ended = False

    async def work(self) -> str:
        for _ in range(3):
            await asyncio.sleep(0)
        self.has_ended = True
        return "done"


async def failing(error: Exception) -> str:
    raise error


def test_results_are_in_order() -> None:
    async def quick() -> str:
        return "quick"

    async def run() -> list[str]:
        return await together(Part().work(), quick())

    assert asyncio.run(run()) == ["done", "quick"]


@pytest.mark.parametrize(("error", "has_ended"), [(BudgetExhausted("no tokens"), True), (ValueError("wrong"), False)])
def test_the_budgets_end_lets_the_others_end_and_any_other_failure_cancels_them(
    error: Exception, has_ended: bool
) -> None:
    part = Part()

    async def run() -> None:
        await together(failing(error), part.work())

    with pytest.raises(type(error)):
        asyncio.run(run())
    assert part.has_ended is has_ended


def test_another_failure_goes_before_the_budgets_end() -> None:
    async def late() -> str:
        await Part().work()
        raise ValueError("wrong")

    async def run() -> None:
        await together(failing(BudgetExhausted("no tokens")), late())

    with pytest.raises(ValueError, match="wrong"):
        asyncio.run(run())
