"""What a run looks like at one moment, and its scores as numbers. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tandem_api.conditions import SUCCEEDED, find, is_true
from tandem_api.v1alpha1 import OptimizationRun, Status
from tandem_api.v1alpha1.status import Candidate, Condition, CurrentStep


@dataclass(frozen=True)
class State:
    """A run as it was when it was read. `print` shows it in one line; everything else is in `run`."""

    run: OptimizationRun
    """The whole resource."""

    @property
    def status(self) -> Status:
        """What the engine knows of the run."""
        return self.run.status

    @property
    def phase(self) -> str:
        """For people: Pending, Working, Succeeded, Failed, ..."""
        return self.status.phase

    @property
    def step(self) -> CurrentStep | None:
        """What is going on; None before the first step and after the last."""
        return self.status.step

    @property
    def has_ended(self) -> bool:
        """For better or worse."""
        summary = self._summary
        return summary is not None and summary.status != "Unknown"

    @property
    def has_succeeded(self) -> bool:
        """Whether it has ended with a result."""
        return is_true(self.status.conditions, SUCCEEDED)

    @property
    def reason(self) -> str:
        """Why it is as it is, in one word, such as Completed or TooManyErrors; empty before it is taken up."""
        return self._summary.reason if self._summary is not None else ""

    @property
    def message(self) -> str:
        """The same for people."""
        return self._summary.message if self._summary is not None else ""

    @property
    def scores(self) -> Scores:
        """What has been measured so far."""
        return scores_of(self.status)

    @property
    def _summary(self) -> Condition | None:
        return find(self.status.conditions, SUCCEEDED)

    def __str__(self) -> str:
        parts = [f"{self.run.metadata.name}: {self.phase}"]
        if self.has_ended and not self.has_succeeded:
            parts.append(f"{self.reason}: {self.message}")
        elif self.step is not None:
            percent = f" {self.step.progress}%" if self.step.progress is not None else ""
            parts.append(f"step {self.step.index} ({self.step.kind}), {self.step.stage}{percent}")
        best = self.scores.best
        parts += [f"best {best.score:.3f}"] if best is not None else []
        return ", ".join(parts)


@dataclass(frozen=True)
class Row:
    """One program's score on the validation or the test set."""

    what: str
    """`baseline`, a candidate's name (`prompts@weights`), or `test`."""
    step: int | None
    """The step that made it; 0 for the baseline, None for the test."""
    score: float
    """Mean, in [0, 1]."""
    low: float
    """Lower end of the 95% confidence interval."""
    high: float
    """Upper end."""
    n: int
    """Examples scored."""
    errors: int
    """Examples that failed and counted as 0."""


@dataclass(frozen=True)
class Scores:
    """What a run has measured. Iterating gives every row: the baseline, the candidates, the test."""

    baseline: Row | None
    """The unchanged program on the validation set."""
    candidates: tuple[Row, ...]
    """What the steps found, on the validation set, in order."""
    best: Row | None
    """The best so far, on the validation set."""
    test: Row | None
    """The best program on the test set; None before the end, or without a test set."""
    baseline_test: float | None
    """The unchanged program's score on the test set, where it was measured."""

    def __iter__(self) -> Iterator[Row]:
        ends = [row for row in (self.test,) if row is not None]
        return iter([row for row in (self.baseline,) if row is not None] + list(self.candidates) + ends)

    def __str__(self) -> str:
        lines = [f"{'':28} {'step':>4} {'score':>6}  {'95% interval':15} {'n':>5} {'errors':>6}"]
        lines += [
            f"{row.what[:28]:28} {'' if row.step is None else row.step:>4} {row.score:6.3f}  "
            f"{row.low:.3f} to {row.high:.3f}  {row.n:5} {row.errors:6}"
            for row in self
        ]
        return "\n".join(lines)


def scores_of(status: Status) -> Scores:
    """The scores in a status, as numbers."""
    test = status.test
    return Scores(
        baseline=_row("baseline", status.baseline),
        candidates=tuple(
            row
            for step in status.steps
            if step.kind in ("p", "w")
            for row in (_row(candidate.id, candidate) for candidate in step.candidates)
            if row is not None
        ),
        best=_row(status.best.id, status.best) if status.best is not None else None,
        test=Row("test", None, float(test.score), float(test.low), float(test.high), test.n, test.errors)
        if test is not None
        else None,
        baseline_test=float(test.baseline) if test is not None and test.baseline is not None else None,
    )


def _row(what: str, candidate: Candidate | None) -> Row | None:
    if candidate is None:
        return None
    low, high = float(candidate.low), float(candidate.high)
    return Row(what, candidate.step, float(candidate.score), low, high, candidate.n, candidate.errors)
