"""What a platform saw of one run, as plain values: the third argument of `decide`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from tandem_api.contract import Progress, StorageRef


@dataclass(frozen=True)
class ServingObservation:
    """The model server as it is."""

    name: str
    """The served model name it was started for."""
    state: Literal["starting", "ready", "failed"]
    url: str = ""
    """Base URL, without /v1; known when ready."""
    message: str = ""
    """Why it failed, or what it waits for; for a failure with the last lines of its log."""
    permanent: bool = False
    """The failure is one that no restart can change (bad configuration, unknown model)."""


@dataclass(frozen=True)
class TaskObservation:
    """One attempt of a stage as it is."""

    state: Literal["running", "succeeded", "failed"]
    exit_code: int | None = None
    reason: str = ""
    """The platform's own cause, such as OOMKilled or DeadlineExceeded; empty when there is none."""
    termination: str = ""
    """The worker's termination message; empty when it was lost."""
    log_tail: str = ""
    """The last lines of the worker's log, for a failure without a message."""
    progress: Progress | None = None


@dataclass(frozen=True)
class Observed:
    """One consistent look at a run and its children."""

    namespace: str
    name: str
    uid: str
    generation: int
    now: datetime
    storage: StorageRef
    serving: ServingObservation | None = None
    tasks: Mapping[str, TaskObservation] = field(default_factory=dict)
    """By task name (`decide.names.task_name`)."""
    has_gpu: bool = False
    """Whether models are served on an accelerator; chooses the default of `serving.adapters`."""
