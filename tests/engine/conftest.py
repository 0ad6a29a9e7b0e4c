"""What the engine tests share: one real S3 server, and runs that are cleaned up."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.engine.world import ROOT, Engine

from tandem_api.store import S3Store
from tandem_operator.platforms.local.storage import EmbeddedStorage
from tandem_operator.platforms.local.workdir import Workdir


@pytest.fixture(scope="session")
def bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[dict[str, str], dict[str, str]]]:
    """A real S3 server for all tests of the layer: (spec.storage.s3, the environment with its keys)."""
    workdir = Workdir(tmp_path_factory.mktemp("s3"))
    environment = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
    storage = EmbeddedStorage(workdir, environment, print)
    storage.start()
    try:
        storage.wait_until_ready()
        ref = storage.ref
        yield (
            {"bucket": ref.bucket, "endpoint": str(ref.endpoint), "region": str(ref.region)},
            environment | dict(storage.credentials) | {"PYTHONPATH": str(ROOT)},
        )
    finally:
        storage.stop()


@pytest.fixture
def engine(tmp_path: Path, bucket: tuple[dict[str, str], dict[str, str]]) -> Iterator[Engine]:
    s3, environment = bucket
    run = Engine(tmp_path / "run", s3, environment)
    yield run
    for process in run.processes():
        process.kill()


@pytest.fixture
def store(bucket: tuple[dict[str, str], dict[str, str]], monkeypatch: pytest.MonkeyPatch) -> S3Store:
    s3, environment = bucket
    for name, value in environment.items():
        if name.startswith("AWS_"):
            monkeypatch.setenv(name, value)
    return S3Store(s3["bucket"], s3["endpoint"], s3["region"])
