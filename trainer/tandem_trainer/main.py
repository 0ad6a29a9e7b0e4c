"""The worker's entry point: one attempt of one stage, `python -m tandem_trainer.main`.

1. Read the request from the file that TANDEM_REQUEST_FILE names.
2. If the stage has a result already (its message was lost), repeat it and end: no work is done twice.
3. Store the request, run the stage, write `result.json` last.
4. Say the result, or why there is none, in the file that TANDEM_TERMINATION_FILE names, and end with the exit code
   that the engine understands (`tandem_api.errors`).

SIGTERM and SIGINT ask the stage to stop: it keeps what it has, and the worker ends with 143.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
import traceback
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn, TypeVar

from pydantic import ValidationError

from tandem_api.canonical import canonical_json
from tandem_api.contract import (
    ENV_PROGRESS_PORT,
    ENV_REQUEST,
    ENV_TERMINATION,
    MAX_RESULT_BYTES,
    StageFailure,
    StageRequest,
    StageResult,
)
from tandem_api.errors import EXIT_DONE, EXIT_RETRYABLE, ConfigurationError, PreemptedError, TandemError
from tandem_api.store import ObjectStore, S3Store
from tandem_api.store.s3 import BRIEFLY, PATIENTLY
from tandem_api.v1alpha1.status import MAX_MESSAGE, Usage
from tandem_trainer.cache import cache_folder
from tandem_trainer.context import Meter, StageContext, Stopping
from tandem_trainer.progress import ProgressReporter
from tandem_trainer.stored import stored

if TYPE_CHECKING:
    from tandem_trainer.tracking.tracker import Tracker

Stage = Callable[[StageContext], StageResult]
Store = TypeVar("Store", bound=S3Store)


def main() -> int:
    """Do the attempt that the environment describes. Returns the process's exit code; never raises."""
    return work(partial(open_store, S3Store))


def open_store(kind: type[Store], request: StageRequest, stopping: Stopping) -> Store:
    """The attempt's bucket. Only the check, which is to tell soon that there is none, and a worker that is to stop do
    not wait long for it: every other one has more to lose by ending."""
    storage = request.storage
    attempts = BRIEFLY if request.stage == "check" else PATIENTLY
    return kind(storage.bucket, storage.endpoint, storage.region, attempts=attempts, is_hurried=stopping.is_set)


def work(open_store: Callable[[StageRequest, Stopping], ObjectStore]) -> int:
    """`main`, with the object store that `open_store` gives."""
    stopping, meter, tracker = Stopping(), Meter(), None
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _stopper(stopping))
    try:
        request = read_request()
        progress = ProgressReporter.from_environment()
        _serve_progress(progress, request)
        context = StageContext(
            request=request,
            store=open_store(request, stopping),
            progress=progress,
            cache=cache_folder(),
            stopping=stopping,
            meter=meter,
        )
        tracker = _open_tracker(context)
        result = run_attempt(context)
        _say((tracker.finish(result) if tracker is not None else result).to_message())
    except BaseException as error:  # every failure becomes a message and an exit code, user code's sys.exit() too
        reason, message, code = _fail(error, meter.usage, is_stopping=stopping.is_set())
        if tracker is not None:
            tracker.fail(code, reason, message)
        return code
    return EXIT_DONE


def read_request() -> StageRequest:
    """The request of this attempt. Raises ConfigurationError when there is none that we understand."""
    name = os.environ.get(ENV_REQUEST)
    if not name:
        raise ConfigurationError(f"{ENV_REQUEST} is not set; it names the file with this attempt's request")
    try:
        return StageRequest.model_validate_json(Path(name).read_bytes())
    except OSError as error:
        raise ConfigurationError(f"{ENV_REQUEST}: {name} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ConfigurationError(
            f"{ENV_REQUEST}: {name} is not a request of this version ({error.error_count()} problems; "
            f"first: {where}: {first['msg']}); operator and trainer must be of the same release"
        ) from error


def run_attempt(context: StageContext) -> StageResult:
    """Run the stage, or repeat the result that it has. The result is in S3 when this returns."""
    layout = context.request.stage_layout
    existing = stored(context.store, layout.result, StageResult, "a stage result", "delete it to run the stage again")
    if existing is not None:
        return existing
    context.store.put(layout.request, canonical_json(context.request.model_dump(mode="json")).encode())
    result = _stage(context.request)(context)
    context.progress.flush()
    context.store.put(layout.result, result.to_message().encode())
    return result


def _stage(request: StageRequest) -> Stage:
    """The stage's `run`. Imported late: only the stages that train pay for importing torch."""
    name = "final" if request.kind == "final" else request.stage.partition("-")[0]  # one module for all select stages
    stage: Stage = importlib.import_module(f"tandem_trainer.stages.{name}").run
    return stage


def _serve_progress(progress: ProgressReporter, request: StageRequest) -> None:
    """Answer over HTTP what the worker is doing, if the platform wants it. Never ends an attempt."""
    port = os.environ.get(ENV_PROGRESS_PORT)
    if not port:
        return
    try:
        from tandem_trainer.progress_server import ProgressServer  # with prometheus_client, needed on a cluster only

        labels = {"step": str(request.index), "kind": request.kind, "stage": request.stage}
        ProgressServer(int(port), labels, lambda: progress.latest).start()
    except Exception as error:  # a worker that nobody can watch does its work all the same
        print(f"progress is not served ({ENV_PROGRESS_PORT}={port}): {error}", file=sys.stderr)


def _open_tracker(context: StageContext) -> Tracker | None:
    """What tells MLflow of the run, if the manifest wants it. Never ends an attempt."""
    if context.request.spec.mlflow is None:
        return None
    try:
        from tandem_trainer.tracking.tracker import open_tracker  # with requests, needed by such runs only

        return open_tracker(context)
    except Exception as error:
        print(f"nothing is logged to MLflow: {_last_line(error)}", file=sys.stderr)
        return None


def _stopper(stopping: Stopping) -> Callable[[int, FrameType | None], None]:
    return lambda number, frame: stopping.set()


def _fail(error: BaseException, usage: Usage, *, is_stopping: bool) -> tuple[str, str, int]:
    """Tell why there is no result: on stderr, with the trace where it is no error of ours, and as the last word.
    Returns the reason, the message and the exit code."""
    if not isinstance(error, TandemError):
        traceback.print_exception(error, file=sys.stderr)
    if is_stopping and getattr(error, "exit_code", EXIT_RETRYABLE) == EXIT_RETRYABLE:
        # What breaks while everything is being stopped, the model server above all, is not the stage's fault.
        error = PreemptedError(f"the worker was asked to stop (SIGTERM); meanwhile: {_last_line(error)}")
    if isinstance(error, TandemError):
        reason, message, code = error.code, str(error), error.exit_code
        print(f"{reason}: {message}", file=sys.stderr)
    elif isinstance(error, MemoryError):
        reason, code = "OutOfMemory", EXIT_RETRYABLE
        message = f"the worker ran out of memory: {_last_line(error)}; give its container more memory"
    else:
        reason, message, code = TandemError.code, _last_line(error), EXIT_RETRYABLE
    try:
        _say(failure_message(reason, message, usage))
    except OSError as unwritable:
        print(f"the termination message cannot be written: {unwritable}", file=sys.stderr)
    return reason, message, code


def _last_line(error: BaseException) -> str:
    """The exception's class and text, and the last line of the trace: where it was raised."""
    frames = traceback.extract_tb(error.__traceback__)
    where = f' (File "{frames[-1].filename}", line {frames[-1].lineno}, in {frames[-1].name})' if frames else ""
    return "".join(traceback.format_exception_only(error)).strip() + where


def failure_message(reason: str, message: str, usage: Usage) -> str:
    """A StageFailure as JSON of at most MAX_RESULT_BYTES: a message that is too long loses its middle."""
    keep = MAX_MESSAGE
    while True:
        text = message if len(message) <= keep else f"{message[: keep // 2]} [...] {message[-keep // 2 :]}"
        failure = StageFailure(error=reason, message=text, usage=usage)
        encoded = canonical_json(failure.model_dump(mode="json", by_alias=True, exclude_defaults=True))
        if len(encoded.encode()) <= MAX_RESULT_BYTES:
            return encoded
        keep = keep * 3 // 4


def _say(text: str) -> None:
    """Write the termination message, whole or not at all, if anybody asked for it."""
    name = os.environ.get(ENV_TERMINATION)
    if not name:
        return
    path = Path(name)
    try:
        staging = path.with_name(f".{path.name}.tmp")
        staging.write_text(text, encoding="utf-8")
        staging.replace(path)
    except OSError:
        # On a cluster the file is a mount of its own, which can be written but not replaced.
        path.write_text(text, encoding="utf-8")


def _exit(code: int) -> NoReturn:
    """End at once: threads that user code has left behind must not keep the worker alive."""
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


if __name__ == "__main__":
    _exit(main())
