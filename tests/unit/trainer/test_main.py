"""The worker's entry point: every end has its exit code and its message, and nothing is done twice."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
from botocore.exceptions import EndpointConnectionError
from tests.memory_store import MemoryStore

from tandem_api.contract import (
    MAX_RESULT_BYTES,
    Progress,
    StageFailure,
    StageRequest,
    StageResult,
    StorageRef,
    parse_termination,
)
from tandem_api.errors import (
    ConfigurationError,
    DataError,
    ErrorRateError,
    ServingError,
    StorageRefusedError,
    StorageUnavailableError,
)
from tandem_api.store import S3Store
from tandem_api.v1alpha1 import Spec
from tandem_api.v1alpha1.status import Usage
from tandem_trainer import main
from tandem_trainer.context import StageContext, Stopping

REQUEST = StageRequest(
    namespace="default",
    name="reviews",
    uid="u1",
    index=2,
    kind="w",
    stage="train",
    attempt=1,
    storage=StorageRef(bucket="bucket", prefix="runs"),
    spec=Spec.model_validate(
        {
            "program": {"inline": {"signature": "q -> a"}},
            "metric": {"builtin": "f1", "field": "a"},
            "data": {"train": {"uri": "file:d.jsonl"}, "inputs": ["q"]},
            "model": {"uri": "file:model"},
        }
    ),
)
ROOT = "runs/default/reviews/u1/steps/2-w/train/"
DONE = StageResult(message="trained", usage=Usage(calls=3), facts={"rows": 12})


class Worker:
    """An attempt whose stage is a function of the test's."""

    def __init__(self, folder: Path) -> None:
        self.store = MemoryStore()
        self.termination = folder / "termination"
        self.request_file = folder / "request.json"
        self.request_file.write_text(REQUEST.model_dump_json())
        self.runs = 0
        self.stage: Callable[[StageContext], StageResult] = lambda context: DONE

    def run(self, context: StageContext) -> StageResult:
        self.runs += 1
        return self.stage(context)

    def work(self) -> int:
        return main.work(lambda request, stopping: self.store)

    def said(self) -> Any:
        return parse_termination(self.termination.read_text())


@pytest.fixture
def worker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Worker]:
    """Restores the signal handlers that the worker sets."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    worker = Worker(tmp_path)
    monkeypatch.setenv("TANDEM_REQUEST_FILE", str(worker.request_file))
    monkeypatch.setenv("TANDEM_TERMINATION_FILE", str(worker.termination))
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "cache"))
    for stage in ("train", "final"):
        module = types.ModuleType(f"tandem_trainer.stages.{stage}")
        module.run = worker.run  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, module.__name__, module)
    yield worker
    for number, handler in handlers.items():
        signal.signal(number, handler)


def raising(error: BaseException) -> Callable[[StageContext], StageResult]:
    def stage(context: StageContext) -> StageResult:
        context.meter.usage = Usage(calls=7, prompt_tokens=70)
        raise error

    return stage


def test_result_is_stored_last_and_repeated_as_the_last_word(worker: Worker) -> None:
    order: list[str] = []
    worker.store.on_put = order.append
    assert worker.work() == 0
    assert order == [f"{ROOT}request.json", f"{ROOT}result.json"]
    assert worker.said() == DONE == StageResult.model_validate_json(worker.store.objects[order[1]])
    assert StageRequest.model_validate_json(worker.store.objects[order[0]]) == REQUEST


def test_attempt_that_finds_a_result_repeats_it_without_any_work(worker: Worker) -> None:
    worker.work()
    worker.termination.unlink()
    worker.store.on_put = lambda key: pytest.fail(f"wrote {key}")
    assert worker.work() == 0
    assert (worker.said(), worker.runs) == (DONE, 1)


def test_final_step_runs_the_final_stage(worker: Worker) -> None:
    final = REQUEST.model_copy(update={"kind": "final", "stage": "evaluate"})
    worker.request_file.write_text(final.model_dump_json())
    assert worker.work() == 0
    assert worker.runs == 1


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (ConfigurationError("metric: wrong"), 42, "BadConfiguration"),
        (ErrorRateError("9 of 10 failed"), 42, "TooManyErrors"),
        (DataError("line 3"), 43, "BadData"),
        (StorageRefusedError("the server's disk is full"), 43, "StorageRefused"),
        (StorageUnavailableError("no answer"), 1, "StorageUnavailable"),
        (ServingError("dead"), 1, "ServingUnavailable"),
        (MemoryError("cannot allocate"), 1, "OutOfMemory"),
        (SystemExit(0), 1, "InternalError"),
    ],
)
def test_each_failure_has_its_exit_code_and_reason(
    worker: Worker, error: BaseException, code: int, reason: str
) -> None:
    worker.stage = raising(error)
    assert worker.work() == code
    said = worker.said()
    assert isinstance(said, StageFailure)
    assert said.error == reason
    assert str(error) in said.message
    assert said.usage == Usage(calls=7, prompt_tokens=70)
    assert f"{ROOT}result.json" not in worker.store.objects


def test_unknown_exception_is_told_with_class_and_place_and_its_trace_is_on_stderr(worker: Worker, capsys: Any) -> None:
    worker.stage = raising(KeyError("rank"))
    assert worker.work() == 1
    assert worker.said().message.startswith("KeyError: 'rank' (File ")
    assert "test_main.py" in worker.said().message
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_store_that_fails_when_the_result_is_written_is_a_failure(worker: Worker) -> None:
    def full(key: str) -> None:
        if key.endswith("result.json"):
            raise StorageRefusedError("the server's disk is full")

    worker.store.on_put = full
    assert worker.work() == 43
    assert "disk is full" in worker.said().message


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_stops_the_stage_and_the_worker_ends_with_143(worker: Worker, number: int) -> None:
    def stage(context: StageContext) -> StageResult:
        assert not context.should_stop()
        os.kill(os.getpid(), number)
        assert context.should_stop()
        context.raise_if_stopping()
        raise AssertionError

    worker.stage = stage
    assert worker.work() == 143
    assert worker.said().error == "Preempted"


def test_signal_cancels_an_asynchronous_stage(worker: Worker) -> None:
    cleaned: list[bool] = []

    async def hang() -> StageResult:
        import asyncio

        asyncio.get_running_loop().call_soon(os.kill, os.getpid(), signal.SIGTERM)
        try:
            await asyncio.sleep(3600)
        finally:
            cleaned.append(True)
        raise AssertionError

    worker.stage = lambda context: context.run(hang())
    assert worker.work() == 143
    assert cleaned == [True]


@pytest.mark.parametrize(
    ("error", "code"), [(ServingError("gone"), 143), (RuntimeError("pool closed"), 143), (DataError("line 3"), 43)]
)
def test_what_breaks_while_stopping_is_a_preemption_unless_no_retry_helps(
    worker: Worker, error: Exception, code: int
) -> None:
    def stage(context: StageContext) -> StageResult:
        os.kill(os.getpid(), signal.SIGTERM)
        raise error

    worker.stage = stage
    assert worker.work() == code


def test_termination_file_that_can_only_be_written_in_place_is_written(worker: Worker, monkeypatch: Any) -> None:
    """As on a cluster: it is a mount of its own in a folder where nothing can be made, renamed or replaced."""
    with worker.termination.open("w") as file:
        monkeypatch.setenv("TANDEM_TERMINATION_FILE", f"/proc/self/fd/{file.fileno()}")
        assert worker.work() == 0
    assert worker.said() == DONE


def test_progress_is_served_while_the_stage_runs(worker: Worker, monkeypatch: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    monkeypatch.setenv("TANDEM_PROGRESS_PORT", str(port))

    def stage(context: StageContext) -> StageResult:
        context.progress.report(3, 12, message="training")
        with urlopen(f"http://127.0.0.1:{port}/progress", timeout=5) as answer:
            assert Progress.model_validate_json(answer.read()).done == 3
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            text = answer.read().decode()
        labels = f'kind="{REQUEST.kind}",stage="{REQUEST.stage}",step="{REQUEST.index}"'
        assert f"tandem_worker_units_planned{{{labels}}} 12.0" in text
        return DONE

    worker.stage = stage
    assert worker.work() == 0, worker.said()


@pytest.mark.parametrize("port", [None, "none", "70000"])
def test_progress_that_cannot_be_served_is_one_line_and_no_failure(
    worker: Worker, monkeypatch: Any, capsys: Any, port: str | None
) -> None:
    with socket.create_server(("0.0.0.0", 0)) as taken:
        port = port or str(taken.getsockname()[1])
        monkeypatch.setenv("TANDEM_PROGRESS_PORT", port)
        assert worker.work() == 0
    error = capsys.readouterr().err
    assert error.startswith(f"progress is not served (TANDEM_PROGRESS_PORT={port}): ")
    assert error.count("\n") == 1


def test_stage_that_ends_well_in_spite_of_the_signal_is_done(worker: Worker) -> None:
    def stage(context: StageContext) -> StageResult:
        os.kill(os.getpid(), signal.SIGTERM)
        return DONE

    worker.stage = stage
    assert worker.work() == 0


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        (None, "cannot be read: No such file"),
        ("", "is not a request of this version"),
        ('{"version": 2}', "operator and trainer must be of the same release"),
    ],
)
def test_unusable_request_is_a_configuration_error(worker: Worker, content: str | None, wanted: str) -> None:
    if content is None:
        worker.request_file.unlink()
    else:
        worker.request_file.write_text(content)
    assert worker.work() == 42
    assert wanted in worker.said().message


def test_missing_request_variable_is_a_configuration_error(worker: Worker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TANDEM_REQUEST_FILE")
    assert worker.work() == 42
    assert "TANDEM_REQUEST_FILE is not set" in worker.said().message


@pytest.mark.parametrize(
    ("stage", "is_stopping", "sends"),
    [("check", False, 5), ("train", False, 21), ("evaluate", False, 21), ("train", True, 5)],
)
def test_a_worker_waits_for_minutes_for_a_store_that_is_gone_but_not_where_nothing_is_lost(
    monkeypatch: pytest.MonkeyPatch, stage: str, is_stopping: bool, sends: int
) -> None:
    """A store that was down for a minute once took all three attempts of a stage; then a worker whose engine and store
    had been killed lived on for the five minutes."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)
    stopping = Stopping()
    request = REQUEST.model_copy(update={"stage": stage, "storage": StorageRef(bucket="b", endpoint="http://s3.test")})
    store = main.open_store(S3Store, request, stopping)
    sent: list[object] = []

    def send(request: object, **_: object) -> None:
        sent.append(request)
        raise EndpointConnectionError(endpoint_url="http://s3.test")

    store._client.meta.events.register("before-send.s3", send)
    if is_stopping:
        stopping.set()
    with pytest.raises(StorageUnavailableError):
        store.put("key", b"data")
    assert len(sent) == sends


def test_damaged_result_is_a_data_error(worker: Worker) -> None:
    worker.store.put(f"{ROOT}result.json", b"{")
    assert worker.work() == 43
    assert f"s3://bucket/{ROOT}result.json is not a stage result" in worker.said().message


def test_too_large_a_result_is_never_stored(worker: Worker) -> None:
    worker.stage = lambda context: StageResult(message="x" * MAX_RESULT_BYTES)
    assert worker.work() == 1
    assert f"{ROOT}result.json" not in worker.store.objects
    assert "at most 4096" in worker.said().message


@pytest.mark.parametrize("text", ["x" * 50_000, 'ü\n"' * 5000, "\x00" * 9000])
def test_long_message_is_cut_to_what_a_termination_message_may_hold(text: str) -> None:
    encoded = main.failure_message("BadData", f"begin {text} end", Usage())
    assert len(encoded.encode()) <= MAX_RESULT_BYTES
    message = json.loads(encoded)["message"]
    assert message.startswith("begin ")
    assert message.endswith(" end")


def test_unwritable_termination_file_does_not_change_the_exit_code(
    worker: Worker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TANDEM_TERMINATION_FILE", str(tmp_path / "missing" / "file"))
    worker.stage = raising(ConfigurationError("wrong"))
    assert worker.work() == 42
