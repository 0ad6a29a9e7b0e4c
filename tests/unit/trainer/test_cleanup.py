"""Cleaning up after a run: its objects and no others, whatever the command line."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from tests.memory_store import MemoryStore

from tandem_api.errors import StorageRefusedError, StorageUnavailableError
from tandem_trainer import cleanup

ARGUMENTS = {"bucket": "bucket", "prefix": "runs", "namespace": "team", "name": "reviews", "uid": "u1"}
OTHERS = [
    "runs/team/reviews/u10/run.json",
    "runs/team/reviews/u2/run.json",
    "runs/team/reviews-2/u1/run.json",
    "runs/other/reviews/u1/run.json",
    "team/reviews/u1/run.json",
]


def command(**changes: str) -> list[str]:
    return [f"--{name}={value}" for name, value in (ARGUMENTS | changes).items()]


@pytest.fixture
def store() -> MemoryStore:
    store = MemoryStore()
    for key in ["runs/team/reviews/u1/run.json", "runs/team/reviews/u1/result/report.html", *OTHERS]:
        store.put(key, b"x")
    return store


def test_the_runs_objects_are_deleted_and_counted_and_no_others(store: MemoryStore, capsys: Any) -> None:
    assert cleanup.main(command(), lambda bucket: store) == 0
    assert capsys.readouterr().out == "deleted 2 objects under s3://bucket/runs/team/reviews/u1/\n"
    assert sorted(store.objects) == sorted(OTHERS)
    assert cleanup.main(command(), lambda bucket: store) == 0
    assert capsys.readouterr().out.startswith("deleted 0 objects")


def test_without_a_prefix_the_runs_lie_at_the_buckets_root(store: MemoryStore) -> None:
    assert cleanup.main(command(prefix=""), lambda bucket: store) == 0
    assert "team/reviews/u1/run.json" not in store.objects
    assert "runs/team/reviews/u1/run.json" in store.objects


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"uid": ""}, "--uid: found ''"),
        ({"name": ""}, "--name: found ''"),
        ({"namespace": ""}, "--namespace: found ''"),
        ({"bucket": ""}, "--bucket: found ''"),
        ({"uid": "u1/steps"}, "--uid: found 'u1/steps'"),
        ({"name": ".."}, "--name: found '..'"),
        ({"prefix": "a/../b"}, "--prefix: found 'a/../b'"),
    ],
)
def test_a_command_that_may_mean_more_than_one_run_is_refused(
    store: MemoryStore, capsys: Any, changes: dict[str, str], problem: str
) -> None:
    before = dict(store.objects)
    assert cleanup.main(command(**changes), lambda bucket: store) == 42
    assert problem in capsys.readouterr().err
    assert store.objects == before


def test_an_option_that_is_missing_is_named(capsys: Any) -> None:
    assert cleanup.main(command()[:-1]) == 42
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert "--uid" in error


@pytest.mark.parametrize(
    ("error", "code"),
    [(StorageRefusedError("no right"), 43), (StorageUnavailableError("no answer"), 1), (RuntimeError("odd"), 1)],
)
def test_a_store_that_fails_is_one_line_and_an_exit_code(
    monkeypatch: pytest.MonkeyPatch, store: MemoryStore, capsys: Any, error: Exception, code: int
) -> None:
    def fail(prefix: str) -> Iterator[str]:
        raise error

    monkeypatch.setattr(store, "list", fail)
    assert cleanup.main(command(), lambda bucket: store) == code
    assert capsys.readouterr().err == f"tandem cleanup: {getattr(error, 'code', 'RuntimeError')}: {error}\n"
