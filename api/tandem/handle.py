"""What can be done with a run, wherever it goes on."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path

from tandem.bundle import Bundle
from tandem.errors import RunFailedError, RunNotFinishedError, WaitTimeoutError
from tandem.state import Scores, State
from tandem_api.v1alpha1.status import Artifact


class Run(ABC):
    """One run. Every method asks anew; nothing is remembered but which run it is."""

    name: str
    """The run's name."""

    @abstractmethod
    def state(self) -> State:
        """The run as it is now."""

    @abstractmethod
    def watch(self, timeout: float | None = None) -> Iterator[State]:
        """The run as it is, and again after each change, until it has ended: the last state says how.

        Raises WaitTimeoutError after `timeout` seconds; the run goes on.
        """

    @abstractmethod
    def suspend(self) -> None:
        """Stop serving and training, and keep everything, until `resume`. Raises ConfigurationError after the end."""

    @abstractmethod
    def resume(self) -> None:
        """Go on with a suspended run. Raises ConfigurationError after the end."""

    @abstractmethod
    def cancel(self) -> None:
        """End a run that goes on and release what it holds; one that has ended is left as it is."""

    @abstractmethod
    def delete(self) -> None:
        """Remove it, ended or not. It is no error if it is gone already."""

    @abstractmethod
    def result(self, folder: str | Path | None = None) -> Bundle:
        """The result bundle, on this machine. Raises RunNotFinishedError while the run goes on, RunFailedError when it
        has none, DataError for one that is damaged."""

    def wait(self, timeout: float | None = None) -> State:
        """The state at the run's end, for better or worse. Raises WaitTimeoutError after `timeout` seconds."""
        state = None
        for state in self.watch(timeout):  # noqa: B007 - the last one is what is wanted
            pass
        assert state is not None
        return state

    def scores(self) -> Scores:
        """What it has measured so far, on validation and, at its end, on the test set."""
        return self.state().scores

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name}>"


class Deadline:
    """When to stop waiting."""

    def __init__(self, name: str, seconds: float | None) -> None:
        """`seconds`: from now; None: never."""
        self._name, self._seconds = name, seconds
        self._end = None if seconds is None else time.monotonic() + seconds

    def step(self, seconds: float) -> float:
        """How long to wait before the next look: at most so many seconds. Raises WaitTimeoutError when it is over."""
        if self._end is None:
            return seconds
        left = self._end - time.monotonic()
        if left <= 0:
            raise WaitTimeoutError(f"the run {self._name!r} has not ended within {self._seconds:g} s; it goes on")
        return min(seconds, left)


def result_of(state: State) -> Artifact:
    """Where the result lies. Raises RunNotFinishedError, or RunFailedError with the run's own reason."""
    if not state.has_ended:
        raise RunNotFinishedError(f"{state}: there is no result yet; wait() waits for it")
    if state.status.result is None:
        raise RunFailedError(f"the run {state.run.metadata.name!r} has no result: {state.reason}: {state.message}")
    return state.status.result
