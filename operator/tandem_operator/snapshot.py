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
    restart: int = 0
    """The number of the restart that it was started for (`EnsureServing.restart`)."""
    reason: str = ""
    """What it waits for, in one CamelCase word: PullingImage, Unschedulable, LoadingAdapter; empty: it is loading."""


@dataclass(frozen=True)
class TaskObservation:
    """One attempt of a stage as it is."""

    state: Literal["running", "succeeded", "failed"]
    exit_code: int | None = None
    reason: str = ""
    """The platform's own cause, such as OOMKilled or DeadlineExceeded; empty when there is none."""
    termination: str = ""
    """The worker's termination message; empty when it was lost."""
    message: str = ""
    """The platform's own words for why it failed, where it knows better than the worker's log."""
    is_permanent: bool = False
    """The failure is one that no other attempt can change."""
    log_tail: str = ""
    """The last lines of the worker's log, for a failure without a message."""
    progress: Progress | None = None
    waiting: str = ""
    """What a running attempt waits for before it can work, in one CamelCase word; empty: it works."""
    waiting_message: str = ""
    lacks_request: bool = False
    """It waits because what it is asked to do is gone: somebody has deleted it."""


@dataclass(frozen=True)
class Blocked:
    """The platform could not make what it was asked for."""

    reason: str
    """One CamelCase word."""
    message: str
    is_permanent: bool = False
    """Asking again changes nothing."""


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
    blocked: Blocked | None = None
    """What went wrong when the current stage's task or server was last asked for."""
    ignored_changes: str = ""
    """Changes of the spec that came too late and change nothing, for people; empty when there are none."""
    has_gpu: bool = False
    """Whether models are served on an accelerator; chooses the default of `serving.adapters`."""
    serving_accelerators: int = 0
    """Accelerators of one serving pod."""
    training_accelerators: int = 0
    """Accelerators of one training pod."""
