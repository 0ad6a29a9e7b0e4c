"""The thread that tells MLflow of a run while a stage works.

The stage knows nothing of it: it neither waits for MLflow nor fails with it. Each worker first makes up for what
workers before it could not log, from the status in its request and from what their stages left in S3; then it logs what
its own stage reports. What a stage came to is logged by the worker after it, which knows more (the accelerators' time,
why a step was skipped). Only the attempt that ends the run waits for MLflow, and not for long.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Final

from tandem_api.contract import ENV_MLFLOW, MLFLOW_FACT, Progress, StageRequest, StageResult
from tandem_api.store import ObjectStore
from tandem_api.v1alpha1.status import Status
from tandem_trainer.context import StageContext
from tandem_trainer.lora.world import ENV_NODE
from tandem_trainer.tracking.client import MLflowClient, Point, TrackingError
from tandem_trainer.tracking.content import description, live_point, run_page, seconds_in, settled_trials, step_page
from tandem_trainer.tracking.ending import failure_ends_run, keep_ending, result_ends_run, status_after
from tandem_trainer.tracking.logbook import Logbook

logger = logging.getLogger(__name__)

#: How often a stage's points are logged; after a failure it is tried again twice as late each time, up to the second.
LIVE_SECONDS, MAX_PAUSE_SECONDS = 10.0, 120.0
#: How long the attempt that ends the run may wait for MLflow, and how long it pauses between two tries.
LAST_SECONDS, LAST_PAUSE_SECONDS = 10.0, 1.0
_MAX_TOLD: Final = 400
#: As many as a result may hold.
MAX_FACTS: Final = 32


def open_tracker(context: StageContext) -> Tracker | None:
    """A tracker at work, or None: the run is not logged, or another machine of this training logs it."""
    if context.request.spec.mlflow is None or os.environ.get(ENV_NODE, "0") != "0":
        return None
    if context.request.status is None:
        logger.warning("nothing is logged to MLflow: operator and trainer must be of the same release")
        return None
    tracker = Tracker(context, {name: os.environ.get(name, "") for name in ENV_MLFLOW})
    tracker.start()
    return tracker


class Tracker:
    """Logs one attempt. The stage's thread calls the methods; the tracker's own talks to MLflow and S3."""

    def __init__(self, context: StageContext, account: Mapping[str, str]) -> None:
        """`account`: the variables of `ENV_MLFLOW`; they are used where the manifest names a Secret for them."""
        settings, status = context.request.spec.mlflow, context.request.status
        assert settings is not None and status is not None
        self._context = context
        self._settings = settings
        self._account = dict(account) if settings.credentials_secret is not None else {}
        self._status = status
        self._end: tuple[StageResult | None, str | None, str | None] | None = None
        """How the attempt that ends the run ended: its result, or why there is none."""
        self._reports: deque[tuple[datetime, Progress]] = deque(maxlen=10_000)
        self._live: dict[tuple[str, int], Point] = {}
        self._logbook: Logbook | None = None
        self._problem: str | None = None
        self._wake, self._done = threading.Event(), threading.Event()
        self._is_closed = False

    def start(self) -> None:
        """Begin, in a thread that nobody waits for."""
        self._context.progress.listener = lambda progress: self._reports.append((datetime.now(UTC), progress))
        threading.Thread(target=self._work, name="mlflow", daemon=True).start()

    def finish(self, result: StageResult) -> StageResult:
        """The result, with a fact that says what MLflow lacks, if it lacks anything. Waits if the run ends with it."""
        is_last = result_ends_run(self._context.request, result)
        if is_last:
            reason = result.reason if self._context.request.kind != "final" else None
            problem = self._wait((result, reason, result.message if reason else None))
        else:
            problem = self._problem
        self.close()
        if problem is None:
            return result
        later = "docs/mlflow.md says how to make up for it" if is_last else "a later stage makes up for it"
        return _with_fact(result, f"{problem}; {later}")

    def fail(self, exit_code: int, reason: str, message: str) -> None:
        """The attempt has failed. Waits if the run ends with it."""
        if failure_ends_run(self._context.request, exit_code):
            problem = self._wait((None, reason, message))
            if problem is not None:
                logger.warning("MLflow was not told that the run has failed: %s", problem)
        self.close()

    def close(self) -> None:
        """Log no more."""
        self._context.progress.listener = None
        self._is_closed = True
        self._wake.set()

    def _wait(self, end: tuple[StageResult | None, str | None, str | None]) -> str | None:
        """Until the end is logged, or the time is over. Returns what went wrong."""
        self._end = end
        self._wake.set()
        deadline = time.monotonic() + LAST_SECONDS
        while not self._done.wait(0.05):
            if time.monotonic() > deadline or self._context.should_stop():
                return self._problem or f"{self._settings.uri} does not answer in time"
        return self._problem

    def _work(self) -> None:
        pause = LIVE_SECONDS
        while not self._is_closed:
            end = self._end
            try:
                self._log(end)
            except Exception as error:  # nothing that happens here is the stage's
                self._note(_told(error, self._account))
                if end is not None and isinstance(error, TrackingError) and not error.is_passing:
                    self._done.set()
                    return
                pause = min(2 * pause, MAX_PAUSE_SECONDS)
            else:
                self._note(None)
                pause = LIVE_SECONDS
                if end is not None:
                    self._done.set()
                    return
            self._wake.wait(LAST_PAUSE_SECONDS if end is not None else pause)
            self._wake.clear()

    def _note(self, problem: str | None) -> None:
        """Told in the log when it changes."""
        if problem != self._problem and not self._is_closed:
            if problem is not None:
                logger.warning("MLflow: %s; the run goes on, and this is made up for later", problem)
            else:
                logger.warning("MLflow: logging goes on")
        self._problem = problem

    def _log(self, end: tuple[StageResult | None, str | None, str | None] | None) -> None:
        """Bring MLflow up to what is known now."""
        if self._logbook is None:
            self._logbook = Logbook(
                MLflowClient(self._settings.uri, self._account), self._settings, self._context.request.uid
            )
        request, store, status = self._context.request, self._context.store, self._status
        result: StageResult | None = None
        if end is not None:
            result, reason, message = end
            status = status_after(request, status, keep_ending(store, request, reason, message), result)
        log_run(self._logbook, request, store, status, self._points(status))
        if result is not None and result.bundle is not None:
            keep_result(self._logbook, request, store, status)

    def _points(self, status: Status) -> list[Point]:
        """What the stage has reported so far: the loss by step, the trials that are done, tokens over time."""
        request = self._context.request
        reports = [self._reports.popleft() for _ in range(len(self._reports))]
        found = [
            live_point("loss", progress.loss, progress.done, at)
            for at, progress in reports
            # Adapters that are trained one after another count their steps from 0 each; their curves come at the end.
            if progress.loss is not None and progress.done > 0 and not request.spec.has_own_adapters
        ]
        if reports and reports[-1][1].usage.tokens:
            at, progress = reports[-1]
            step = next(step for step in status.steps if step.index == request.index)
            # What earlier attempts of this stage spent is in its own report, too.
            before = sum(stage.usage.tokens for stage in step.stages if stage.name != request.stage)
            found.append(live_point("live_tokens", before + progress.usage.tokens, seconds_in(step, at), at))
        if request.stage == "optimize":
            trials = self._context.store.get(request.stage_layout.trials) or b""
            now = datetime.now(UTC)
            found += [live_point(key, score, index, now) for key, index, score in settled_trials(trials)]
        for point in found:
            if point is not None:
                self._live.setdefault((point.key, point.step), point)
        return list(self._live.values())


def log_run(
    logbook: Logbook, request: StageRequest, store: ObjectStore, status: Status, live: Sequence[Point] = ()
) -> None:
    """Write the pages of the run and of the steps that have begun; `live` belongs to the request's step."""
    logbook.refresh()
    page = run_page(request, status, store.uri(request.layout.root), store.get)
    logbook.open(page)
    for step in status.steps:
        if step.started is not None and not logbook.is_complete(step.index, step.state):
            logbook.write(step_page(request, step, store.get), live if step.index == request.index else ())
    logbook.write(page)


def keep_result(logbook: Logbook, request: StageRequest, store: ObjectStore, status: Status) -> None:
    """Upload and register what the run came to, as far as its settings say so."""
    assert status.result is not None
    page = run_page(request, status, store.uri(request.layout.root), store.get)
    tags = {key: value for key, value in page.tags.items() if key.startswith("tandem.")}
    logbook.keep_result(
        status.result.uri, lambda name: store.get(f"{request.layout.result}{name}"), description(status), tags
    )


def _with_fact(result: StageResult, text: str) -> StageResult:
    """The result with what MLflow lacks among its facts, if there is room."""
    told = result.model_copy(update={"facts": {**result.facts, MLFLOW_FACT: text}})
    try:
        told.to_message()
    except ValueError:
        return result
    return told if len(told.facts) <= MAX_FACTS else result


def _told(error: Exception, account: Mapping[str, str]) -> str:
    """What went wrong, for people, without any key."""
    text = str(error) if isinstance(error, TrackingError) else f"{type(error).__name__}: {error}"
    for name, value in account.items():
        if value and not name.endswith("USERNAME"):
            text = text.replace(value.strip(), "...")
    return text[:_MAX_TOLD]
