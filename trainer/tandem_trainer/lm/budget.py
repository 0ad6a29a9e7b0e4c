"""The token budget of a stage, shared by all models that it calls."""

from __future__ import annotations

from tandem_trainer.lm.failures import BudgetExhausted


class TokenBudget:
    """Tokens that may still be used; None: as many as it takes. Used on one event loop."""

    def __init__(self, tokens: int | None = None) -> None:
        self._tokens = tokens
        self._used = 0

    def spend(self, tokens: int) -> None:
        """Count what a finished call has used."""
        self._used += tokens

    def check(self) -> None:
        """Raises BudgetExhausted when nothing is left: to be asked before every call."""
        if self._tokens is not None and self._used >= self._tokens:
            raise BudgetExhausted(f"the token budget is used up: {self._used} of {self._tokens} tokens")
