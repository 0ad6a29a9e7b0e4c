"""`python -m tandem_trainer.tracking`: what MLflow has missed is logged from what lies in S3."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.memory_store import MemoryStore
from tests.unit.trainer.tracking.fake_mlflow import FakeMLflow, serving
from tests.unit.trainer.tracking.test_tracker import final, points, request

from tandem_api.contract import StageRequest
from tandem_api.errors import EXIT_CONFIGURATION, EXIT_DONE, EXIT_PERMANENT, EXIT_RETRYABLE
from tandem_trainer.tracking.__main__ import main

ADDRESS = "s3://bucket/default/reviews/u1/"


@pytest.fixture
def fake() -> Iterator[FakeMLflow]:
    with serving(FakeMLflow()) as served:
        yield served


def stored(*requests: StageRequest) -> MemoryStore:
    store = MemoryStore()
    for one in requests:
        store.put(one.stage_layout.request, one.model_dump_json().encode())
    return store


def test_the_end_of_a_run_is_logged_from_its_last_result(fake, capsys):
    wanted, result = final(fake.uri)
    store = stored(request(fake.uri, "optimize", "p", 1), wanted)
    store.put(wanted.stage_layout.result, result.to_message().encode())
    for address in (ADDRESS, ADDRESS.rstrip("/")):
        assert main([address], lambda bucket: store) == EXIT_DONE
        assert capsys.readouterr().out.strip() == f"{fake.uri}/#/experiments/7/runs/run0"
    assert [run["info"]["status"] for run in fake.runs] == ["FINISHED"] * 3
    assert points(fake, "test_score") == {0: 0.7}


def test_a_run_that_nobody_could_end_is_ended(fake):
    store = stored(request(fake.uri))
    assert main([ADDRESS], lambda bucket: store) == EXIT_DONE
    assert [run["info"]["status"] for run in fake.runs] == ["RUNNING", "FINISHED", "RUNNING"]
    assert main([ADDRESS, "--failed", "OOMKilled"], lambda bucket: store) == EXIT_DONE
    assert [run["info"]["status"] for run in fake.runs] == ["FAILED", "FINISHED", "FAILED"]


@pytest.mark.parametrize("name", ["result.json", "ending.json"])
def test_a_damaged_object_is_refused_with_its_address(fake, name, capsys):
    wanted, _ = final(fake.uri)
    store = stored(wanted)
    store.put(f"{wanted.stage_layout.root}{name}", b'{"version": 0, "reason": ')
    assert main([ADDRESS], lambda bucket: store) == EXIT_PERMANENT
    assert f"{wanted.stage_layout.root}{name} is not " in capsys.readouterr().err


@pytest.mark.parametrize("address", ["bucket/default/reviews/u1", "s3://bucket", "s3://bucket/default/other/u2/"])
def test_an_address_that_is_no_runs_is_refused(fake, address, capsys):
    assert main([address], lambda bucket: stored(request(fake.uri))) == EXIT_CONFIGURATION
    assert "s3://" in capsys.readouterr().err


def test_another_address_of_the_server_may_be_given(fake, tmp_path: Path, capsys):
    store = stored(request("http://127.0.0.1:1"))
    assert main([ADDRESS], lambda bucket: store) == EXIT_RETRYABLE
    assert "cannot be reached" in capsys.readouterr().err
    assert main([ADDRESS, "--uri", fake.uri], lambda bucket: store) == EXIT_DONE
