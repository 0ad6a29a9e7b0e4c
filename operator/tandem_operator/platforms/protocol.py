"""What `decide`'s actions need of a place. The kubernetes and the local platform are the two of them."""

from __future__ import annotations

from typing import Protocol

from tandem_api.v1alpha1 import OptimizationRun, Status
from tandem_operator.actions import Action
from tandem_operator.snapshot import Observed


class Platform(Protocol):
    """One run's surroundings."""

    def load(self) -> OptimizationRun:
        """The resource as it is stored now, its status included."""

    def observe(self, run: OptimizationRun) -> Observed:
        """One look at the children. Never changes anything."""

    def save(self, run: OptimizationRun, status: Status) -> None:
        """Store the status, whole and durable, before it returns."""

    def execute(self, run: OptimizationRun, action: Action) -> None:
        """Carry one action out; idempotent."""
