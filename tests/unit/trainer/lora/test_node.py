"""The worker on one of several machines: one of them writes, all of them read."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.trainer.test_main import REQUEST

from tandem_api.contract import StorageRef
from tandem_trainer import main as worker
from tandem_trainer.context import Stopping
from tandem_trainer.lora import node


def test_the_first_machine_is_an_ordinary_worker_and_the_others_write_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    monkeypatch.setattr(worker, "main", lambda: 0)
    monkeypatch.setattr(worker, "work", lambda open_store: opened.append(open_store) or 43)
    monkeypatch.delenv("TANDEM_TERMINATION_FILE", raising=False)
    monkeypatch.setenv("NODE_RANK", "0")
    assert node.main() == 0
    monkeypatch.setenv("NODE_RANK", "1")
    assert node.main() == 43
    (open_store,) = opened
    assert type(open_store(REQUEST, Stopping())) is node.ReadingStore


@pytest.mark.parametrize(("code", "left"), [(0, ""), (42, "why")])
def test_only_a_failure_of_the_other_machines_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, code: int, left: str
) -> None:
    message = tmp_path / "termination-log"

    def work(_: object) -> int:
        message.write_text("why" if code else "{}")
        return code

    monkeypatch.setattr(worker, "work", work)
    monkeypatch.setenv("NODE_RANK", "1")
    monkeypatch.setenv("TANDEM_TERMINATION_FILE", str(message))
    assert node.main() == code
    assert message.read_text() == left


def test_a_reading_store_sends_nothing(tmp_path: Path) -> None:
    # Nobody listens at this address: a request would fail.
    storage = StorageRef(bucket="bucket", endpoint="http://127.0.0.1:9")
    store = worker.open_store(node.ReadingStore, REQUEST.model_copy(update={"storage": storage}), Stopping())
    (tmp_path / "file").write_text("text")
    assert store.put("key", b"data").uri == "s3://bucket/key"
    assert store.put_folder("folder/", tmp_path).count == 1
    assert store.delete("folder/") == 0
