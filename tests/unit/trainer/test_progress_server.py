"""What a worker tells over HTTP: the last report, at any time, to anybody who asks."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tandem_api.contract import Progress
from tandem_api.v1alpha1.status import Usage
from tandem_trainer.progress import ProgressReporter
from tandem_trainer.progress_server import ProgressServer


@pytest.fixture
def progress() -> ProgressReporter:
    return ProgressReporter()


@pytest.fixture
def url(progress: ProgressReporter) -> Iterator[str]:
    with ProgressServer(0, {"step": "2", "kind": "w", "stage": "train"}, lambda: progress.latest) as server:
        server.start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def get(url: str) -> tuple[str, str]:
    with urlopen(url, timeout=5) as answer:
        return answer.headers["Content-Type"], answer.read().decode()


def samples(url: str) -> dict[tuple[str, ...], float]:
    families = text_string_to_metric_families(get(f"{url}/metrics")[1])
    return {
        (sample.name, *sorted(sample.labels.values())): sample.value for family in families for sample in family.samples
    }


def test_the_last_report_is_told_without_waiting_for_the_files_interval(url: str, progress: ProgressReporter) -> None:
    progress.report(1, 10)
    progress.report(2, 10, message="training", loss=1.25, usage=Usage(calls=2, prompt_tokens=7))
    content_type, text = get(f"{url}/progress")
    assert content_type == "application/json"
    assert Progress.model_validate_json(text) == progress.latest
    assert (progress.latest.done, progress.latest.loss) == (2, 1.25)


def test_before_the_first_report_the_progress_is_empty_and_the_worker_alive(url: str) -> None:
    assert Progress.model_validate_json(get(f"{url}/progress")[1]) == Progress()
    assert get(f"{url}/healthz")[1] == "ok\n"


def test_metrics_are_labelled_with_the_stage_and_leave_out_what_is_not_known(
    url: str, progress: ProgressReporter
) -> None:
    progress.report(3, 12, loss=0.5, usage=Usage(calls=5, prompt_tokens=70, completion_tokens=9))
    assert get(f"{url}/metrics")[0].startswith("text/plain")
    where = ("2", "train", "w")
    assert samples(url) == {
        ("tandem_worker_units_done", *where): 3,
        ("tandem_worker_units_planned", *where): 12,
        ("tandem_worker_loss", *where): 0.5,
        ("tandem_worker_lm_calls_total", *where): 5,
        ("tandem_worker_tokens_total", "2", "prompt", "train", "w"): 70,
        ("tandem_worker_tokens_total", "2", "completion", "train", "w"): 9,
    }
    progress.report(4, 12, score=0.75)
    assert samples(url)[("tandem_worker_score", *where)] == 0.75


def test_there_is_nothing_else(url: str) -> None:
    with pytest.raises(HTTPError, match="404"):
        get(f"{url}/etc/passwd")


def test_a_client_that_says_nothing_or_leaves_keeps_no_other_waiting(
    url: str, capfd: pytest.CaptureFixture[str]
) -> None:
    host, port = url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))), socket.create_connection((host, int(port))) as leaves:
        leaves.sendall(b"GET /metr")
        leaves.close()
        assert get(f"{url}/healthz")[1] == "ok\n"
    assert capfd.readouterr().err == ""


def test_a_port_that_is_taken_is_an_os_error(url: str) -> None:
    with pytest.raises(OSError, match="in use"):
        ProgressServer(int(url.rpartition(":")[2]), {}, Progress)
