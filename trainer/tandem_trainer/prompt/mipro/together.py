"""Several coroutines at once."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from tandem_trainer.lm.failures import BudgetExhausted

T = TypeVar("T")


async def together(*work: Coroutine[Any, Any, T]) -> list[T]:
    """The results, in the order of `work`. The first failure ends all others and is raised.

    BudgetExhausted is raised after the others have ended: they meet the same budget, and what they have paid for is
    kept, which is lost where they are cancelled.
    """
    tasks = [asyncio.ensure_future(_up_to_the_budget(each)) for each in work]
    try:
        ended = await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    results = []
    for each in ended:
        if isinstance(each, BudgetExhausted):
            raise each
        results.append(each)
    return results


async def _up_to_the_budget(work: Coroutine[Any, Any, T]) -> T | BudgetExhausted:
    try:
        return await work
    except BudgetExhausted as error:
        return error
