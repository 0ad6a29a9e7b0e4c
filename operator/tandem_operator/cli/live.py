"""A run while it goes on: a live panel on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import datetime
from types import TracebackType
from typing import Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tandem_api.v1alpha1 import OptimizationRun, Status
from tandem_operator.actions import EmitEvent
from tandem_operator.cli.glance import Glance
from tandem_operator.cli.narration import duration, narrate, progress_line, seconds_between, whereabouts
from tandem_operator.cli.text import short

#: On what is no terminal, at most one line of progress in this many seconds.
PROGRESS_SECONDS = 10.0
_REFRESH_SECONDS = 0.25


class PlainDisplay:
    """One line for each thing that happens, and one of progress now and then."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._status = Status()
        self._next_progress = clock() + PROGRESS_SECONDS

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to put back."""

    def begin(self, status: Status) -> None:
        """Take what is known before the first pass as told."""
        self._status = status
        if status.steps:
            self.say(whereabouts(status))

    def event(self, event: EmitEvent) -> None:
        """Say what the engine has to tell, but for what the status says just as well."""
        if event.type == "Normal" and event.reason.startswith(("Step", "Run")):
            return
        self.say(f"{'warning: ' if event.type == 'Warning' else ''}{event.message}")

    def update(self, run: OptimizationRun, glance: Glance) -> None:
        """Say what has happened since the last call."""
        before, self._status = self._status, run.status
        for line in narrate(before, run.status):
            self.say(line)
        progress = glance.progress
        if progress is not None and run.status.step is not None and self._clock() >= self._next_progress:
            self._next_progress = self._clock() + PROGRESS_SECONDS
            self.say(progress_line(run.status.step, progress, glance.amount))

    def say(self, text: str) -> None:
        """Print a line with the time before it, and what follows it below."""
        first, *rest = text.splitlines() or [""]
        for line in (f"{datetime.now():%H:%M:%S}  {first}", *(f"          {line}" for line in rest)):
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class LiveDisplay(PlainDisplay):
    """The same lines, and below them what is going on now."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(console, clock)
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._next_refresh = 0.0

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._live.stop()

    def update(self, run: OptimizationRun, glance: Glance) -> None:
        # The panel shows the progress.
        self._next_progress = self._clock() + PROGRESS_SECONDS
        super().update(run, glance)
        if self._clock() >= self._next_refresh:
            self._next_refresh = self._clock() + _REFRESH_SECONDS
            self._live.update(panel(run, glance, animation_time=self._clock()), refresh=True)


def panel(run: OptimizationRun, glance: Glance, *, animation_time: float = 0.0) -> RenderableType:
    """Step, stage, bar, time left, score so far, tokens and the model server, in four lines."""
    status, current = run.status, run.status.step
    if current is None:
        return Text("finishing" if status.steps else "waiting to begin", style="dim")
    head = Text.assemble(
        (run.metadata.name, "bold"), f"  step {current.index} of {len(status.steps) - 1} ({current.kind})  ",
        (current.stage or "", "bold cyan"), f"  attempt {current.attempt}" if current.attempt > 1 else "",
    )  # fmt: skip
    return Group(head, _bar(glance, animation_time), *_details(status, glance))


def _bar(glance: Glance, animation_time: float) -> RenderableType:
    progress = glance.progress
    row = Table.grid(padding=(0, 1))
    if progress is None or not progress.total:
        bar = ProgressBar(total=None, pulse=True, width=40, animation_time=animation_time)
        row.add_row(bar, progress.message if progress is not None else "")
        return row
    left = f"{duration(progress.eta_seconds)} left" if progress.eta_seconds is not None else ""
    bar = ProgressBar(total=progress.total, completed=progress.done, width=40)
    row.add_row(bar, glance.amount, left, progress.message)
    return row


def _details(status: Status, glance: Glance) -> list[Text]:
    progress = glance.progress
    tokens = status.usage.tokens + (progress.usage.tokens if progress is not None else 0)
    facts = [f"best {short(status.best.score)} (step {status.best.step})"] if status.best is not None else []
    if progress is not None:
        facts += [f"score so far {progress.score:.3f}"] if progress.score is not None else []
        facts += [f"loss {progress.loss:.3f}"] if progress.loss is not None else []
    facts += [f"{tokens:,} tokens"] if tokens else []
    elapsed = seconds_between(status.started, glance.now)
    facts += [f"{duration(elapsed)} since the start"] if elapsed is not None else []
    return [Text("  ".join(facts)), Text(f"model server: {glance.serving}", style="dim")]
