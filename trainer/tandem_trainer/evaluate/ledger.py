"""The ledger of a stage: every scored example, of all its attempts."""

from __future__ import annotations

from tandem_api.records import ScoredExample
from tandem_api.store import ObjectStore
from tandem_trainer.journal import Journal


class Ledger(Journal[ScoredExample]):
    """The journal of scored examples."""

    def __init__(self, store: ObjectStore, prefix: str, *, batch: int = 32, writer: str | None = None) -> None:
        """As `Journal`."""
        super().__init__(ScoredExample, store, prefix, batch=batch, writer=writer)
