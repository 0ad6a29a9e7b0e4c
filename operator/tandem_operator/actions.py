"""What a platform is asked to do. Every action is idempotent: carrying it out again changes nothing."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from tandem_api.contract import StageRequest, served_names
from tandem_api.v1alpha1.status import Artifact


@dataclass(frozen=True)
class EnsureServing:
    """Make the model server look like this, and nothing else be served."""

    name: str
    """The served model name that calls must use; with adapters of several predictors what their names begin with."""
    adapter: Artifact | None
    mode: Literal["base", "merged", "reload", "rollout"]
    restart: int = 0
    """How often the run's servers have been started anew: one that is there under a lower number has failed."""

    @property
    def names(self) -> tuple[str, ...]:
        """All names that must be served: one, or one for each of several predictors' adapters."""
        return served_names(self.name, self.adapter)


@dataclass(frozen=True)
class StopServing:
    """Serve nothing; done when its processes are gone."""


@dataclass(frozen=True)
class StartTask:
    """Run one attempt of a stage, unless a task of that name exists already."""

    name: str
    request: StageRequest


@dataclass(frozen=True)
class StopTask:
    """Ask a task to stop (SIGTERM); it checkpoints and ends with 143."""

    name: str


@dataclass(frozen=True)
class EmitEvent:
    """Tell people."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


Action = EnsureServing | StopServing | StartTask | StopTask | EmitEvent
