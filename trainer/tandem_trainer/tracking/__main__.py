"""Log a run that MLflow has missed, or the end of one that nobody could log, from what the run has in S3.

    python -m tandem_trainer.tracking s3://BUCKET/PREFIX/NAMESPACE/NAME/UID/ [--uri URI] [--failed REASON]

The bucket's account comes from the standard AWS variables, MLflow's from MLFLOW_TRACKING_USERNAME and _PASSWORD or
MLFLOW_TRACKING_TOKEN. What is logged already is left as it is. Exit codes as in `tandem_api.errors`.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from datetime import UTC, datetime

from pydantic import ValidationError

from tandem_api.contract import ENV_MLFLOW, StageRequest, StageResult
from tandem_api.errors import EXIT_DONE, EXIT_RETRYABLE, ConfigurationError, DataError, TandemError
from tandem_api.store import ObjectStore
from tandem_api.v1alpha1.status import Status
from tandem_trainer.models import open_bucket
from tandem_trainer.stored import stored
from tandem_trainer.tracking.client import MLflowClient, TrackingError
from tandem_trainer.tracking.ending import Ending, keep_ending, read_ending, result_ends_run, status_after
from tandem_trainer.tracking.logbook import Logbook
from tandem_trainer.tracking.tracker import keep_result, log_run


def main(arguments: Sequence[str], open_store: Callable[[str], ObjectStore] = open_bucket) -> int:
    """Log the run, and tell where it is. Returns the process's exit code."""
    parser = argparse.ArgumentParser(prog="python -m tandem_trainer.tracking", allow_abbrev=False)
    parser.add_argument("address", metavar="s3://BUCKET/PREFIX/NAMESPACE/NAME/UID/", help="where the run lies")
    parser.add_argument("--uri", help="the MLflow server, if it has another address here than in the manifest")
    parser.add_argument("--failed", metavar="REASON", help="the run has ended without a result, which nobody logged")
    options = parser.parse_args(arguments)
    try:
        print(make_up(options.address, open_store, options.uri, options.failed))
    except TandemError as error:
        print(f"{error.code}: {error}", file=sys.stderr)
        return error.exit_code
    except TrackingError as error:
        print(f"MLflow: {error}", file=sys.stderr)
        return EXIT_RETRYABLE
    return EXIT_DONE


def make_up(address: str, open_store: Callable[[str], ObjectStore], uri: str | None, failed: str | None) -> str:
    """Log what is missing of the run at `address`. Returns where people look at it.

    Raises ConfigurationError for an address that is no run's, DataError for damaged objects, TrackingError.
    """
    bucket, _, root = address.removeprefix("s3://").partition("/")
    if not address.startswith("s3://") or not bucket or not root:
        raise ConfigurationError(f"found {address!r}; allowed: s3://BUCKET/PREFIX/NAMESPACE/NAME/UID/")
    store = open_store(bucket)
    request = last_request(store, f"{root.strip('/')}/")
    settings = request.spec.mlflow
    if settings is None or request.status is None:
        raise ConfigurationError(f"{address}: the run's manifest has no tracking.mlflow")
    uri = uri or settings.uri
    logbook = Logbook(MLflowClient(uri, {name: os.environ.get(name, "") for name in ENV_MLFLOW}), settings, request.uid)
    status = _status(store, request, request.status, failed)
    log_run(logbook, request, store, status)
    if status.result is not None:
        keep_result(logbook, request, store, status)
    return logbook.address(uri)


def last_request(store: ObjectStore, root: str) -> StageRequest:
    """What the run's last stage was asked. Raises ConfigurationError where no stage has begun."""
    keys = [key for key in store.list(f"{root}steps/") if key.endswith("/request.json")]
    requests = []
    for key in keys:
        try:
            requests.append(StageRequest.model_validate_json(store.get(key) or b""))
        except ValidationError as error:
            raise DataError(f"{store.uri(key)} is not a request of this version") from error
    if not requests:
        raise ConfigurationError(f"{store.uri(root)} holds no stage of a run")
    return max(requests, key=_place)


def _place(request: StageRequest) -> tuple[int, int]:
    """Its step, and how many stages of it were over."""
    steps = request.status.steps if request.status is not None else ()
    stages = (stage for step in steps if step.index == request.index for stage in step.stages)
    return request.index, sum(stage.state in ("Succeeded", "Skipped", "Stopped") for stage in stages)


def _status(store: ObjectStore, request: StageRequest, status: Status, failed: str | None) -> Status:
    """How the run stands, by what its last stage has left."""
    key = request.stage_layout.result
    result = stored(store, key, StageResult, "a stage result of this version", "use the release that wrote it")
    if result is not None and result_ends_run(request, result):
        reason = result.reason if request.kind != "final" else None
        return status_after(request, status, keep_ending(store, request, reason, result.message), result)
    ending = read_ending(store, request)
    if failed is not None and ending is None:
        ending = Ending(finished=datetime.now(UTC), reason=failed)
    return status if ending is None else status_after(request, status, ending, None)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
