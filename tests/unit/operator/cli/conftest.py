"""A fake cluster for the command line; no test may reach one of the person who runs it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.unit.operator.cli.fake_cluster import FakeCluster, serving, write_kubeconfig

from tandem_operator.cli.cluster import feed, following, logs, watch


@pytest.fixture(autouse=True)
def no_cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "no-kubeconfig"))
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, no_cluster: None) -> Iterator[FakeCluster]:
    """A cluster that `KUBECONFIG` names; what waits, waits shortly."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(feed, "_BETWEEN_SECONDS", 0.01)
    monkeypatch.setattr(following, "_BETWEEN_SECONDS", 0.01)
    monkeypatch.setattr(logs, "_POLL_SECONDS", 0.01)
    monkeypatch.setattr(logs, "_SETTLE_SECONDS", 0.01)
    monkeypatch.setattr(watch, "_TICK_SECONDS", 0.01)
    fake = FakeCluster()
    with serving(fake) as server:
        monkeypatch.setenv("KUBECONFIG", str(write_kubeconfig(tmp_path / "kubeconfig", server)))
        yield fake
