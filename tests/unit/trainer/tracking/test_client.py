"""What MLflow's client sends, and what it says of servers that are ill."""

from __future__ import annotations

import base64
import socket
import threading
import time
from collections.abc import Iterator

import pytest
from tests.unit.trainer.tracking.fake_mlflow import FakeMLflow, serving

from tandem_trainer.tracking import client as module
from tandem_trainer.tracking.client import MLflowClient, Point, TrackingError

USER = {"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "hunter2\n"}
TOKEN = {"MLFLOW_TRACKING_TOKEN": "hunter3\n"}


@pytest.fixture
def fake() -> Iterator[FakeMLflow]:
    with serving(FakeMLflow()) as served:
        yield served


@pytest.mark.parametrize(
    ("account", "sent"),
    [
        ({}, None),
        (USER, f"Basic {base64.b64encode(b'me:hunter2').decode()}"),
        (TOKEN, "Bearer hunter3"),
        ({**USER, **TOKEN}, f"Basic {base64.b64encode(b'me:hunter2').decode()}"),
        ({"MLFLOW_TRACKING_USERNAME": "me"}, None),
    ],
)
def test_the_account_is_sent_as_mlflows_own_client_does(fake, account, sent, tmp_path, monkeypatch):
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login other password other")
    monkeypatch.setenv("NETRC", str(netrc))
    assert MLflowClient(fake.uri, account).experiment("e") == "7"
    assert fake.requests[0][2].get("Authorization") == sent


def test_a_token_that_no_header_can_hold_is_refused_without_being_told():
    with pytest.raises(TrackingError, match="MLFLOW_TRACKING_TOKEN") as refused:
        MLflowClient("http://host", {"MLFLOW_TRACKING_TOKEN": "hunter\r\n2"})
    assert "hunter" not in str(refused.value)


def test_the_account_follows_no_redirect(fake):
    with serving(FakeMLflow()) as other:
        fake.script = lambda method, path, body: (302, f"{other.uri}/login".encode())
        with pytest.raises(TrackingError, match="answers 302, and not as MLflow does; is spec"):
            MLflowClient(fake.uri, TOKEN).experiment("e")
        assert other.requests == []


@pytest.mark.parametrize(
    ("status", "body", "said", "is_passing"),
    [
        (500, b"oops", "answers 500", True),
        (501, b"", "is spec.tracking.mlflow.uri that of an MLflow server", False),
        (503, b'{"error_code": "TEMPORARILY_UNAVAILABLE", "message": "later"}', "later", True),
        (429, b"slow", "answers 429", True),
        (401, b"no", "refuses the account \\(401\\); correct the Secret", False),
        (403, b"Invalid Host header - possible DNS rebinding", "--allowed-hosts", False),
        (404, b"<html>", "is spec.tracking.mlflow.uri that of an MLflow server", False),
        (200, b"<html>", "not as MLflow does", False),
        (200, b"[]", "not as MLflow does", False),
        (200, b'{"status": "ok"}', "an answer without 'experiment'", False),
        (400, b'{"error_code": "INVALID_PARAMETER_VALUE", "message": "bad name"}', "bad name", False),
    ],
)
def test_what_a_server_answers_is_told_with_what_to_do(fake, status, body, said, is_passing):
    fake.script = lambda method, path, given: (status, body)
    with pytest.raises(TrackingError, match=said) as told:
        MLflowClient(fake.uri, TOKEN).experiment("e")
    assert told.value.is_passing is is_passing and "hunter3" not in str(told.value)


def test_a_deleted_experiment_is_told_as_such(fake):
    deleted = b'{"experiment": {"experiment_id": "7", "lifecycle_stage": "deleted"}}'
    fake.script = lambda method, path, body: (200, deleted)
    with pytest.raises(TrackingError, match="'e' is deleted; restore it"):
        MLflowClient(fake.uri, {}).experiment("e")


def test_an_experiment_that_somebody_else_makes_meanwhile_is_found(fake):
    answers = iter(
        [
            (404, b'{"error_code": "RESOURCE_DOES_NOT_EXIST"}'),
            (400, b'{"error_code": "RESOURCE_ALREADY_EXISTS"}'),
            None,
        ]
    )
    fake.script = lambda method, path, body: next(answers)
    assert MLflowClient(fake.uri, {}).experiment("e") == "7"


@pytest.mark.parametrize(
    ("piece", "pause"),
    [(70_000, 0.1), (1, 0.1), (1, 60)],
    ids=["in large pieces", "word by word", "and falls silent"],
)
def test_a_server_that_never_stops_answering_is_given_up_when_the_time_for_an_answer_is_over(piece, pause, monkeypatch):
    monkeypatch.setattr(module, "ANSWER_SECONDS", 0.5)
    is_over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def drip() -> None:
            connection, _ = listener.accept()
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while not is_over.is_set():
                try:
                    connection.sendall(b" " * piece)
                except OSError:
                    return
                is_over.wait(pause)

        threading.Thread(target=drip, daemon=True).start()
        uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(TrackingError, match="does not answer in time"):
            MLflowClient(uri, {}).experiment("e")
        is_over.set()
        assert 0.5 <= time.monotonic() - started < module.READ_SECONDS


def test_batches_are_no_larger_than_mlflow_takes(fake):
    made = MLflowClient(fake.uri, {}).create_run("7", "name", 1, None, {})
    points = [Point("loss", 1.0, step, step) for step in range(2500)]
    params = {f"p{n}": "x" for n in range(150)}
    MLflowClient(fake.uri, {}).log(made.id, points, params, {f"t{n}": "x" for n in range(101)})
    assert sum(path.endswith("log-batch") for _, path, _ in fake.requests) == 4
    data = fake.runs[0]["data"]
    assert (len(data["metrics"]), len(data["params"]), len(data["tags"])) == (2500, 150, 101)


@pytest.mark.parametrize(
    "artifact_uri", ["mlflow-artifacts:/7/run/artifacts", "mlflow-artifacts://host:5000/7/run/artifacts"]
)
def test_artifacts_go_through_the_server(fake, artifact_uri):
    MLflowClient(fake.uri, {}).upload(artifact_uri, "report.html", b"<html>")
    assert fake.requests[-1][:2] == ("PUT", "/api/2.0/mlflow-artifacts/artifacts/7/run/artifacts/report.html")


def test_artifacts_that_the_server_does_not_take_are_told():
    with pytest.raises(TrackingError, match="--serve-artifacts"):
        MLflowClient("http://host", {}).upload("s3://bucket/7/run/artifacts", "report.html", b"")
