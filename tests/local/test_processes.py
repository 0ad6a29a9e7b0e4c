"""The embedded S3 server for real: its start, whom it lets in, and what survives its death and the engine's."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import boto3
import psutil
import pytest
from tests.unit.operator.local.children import WORKER, living, nothing_left, scripted_server, until, write_manifest

from tandem_api.errors import StorageRefusedError, TandemError
from tandem_api.store import S3Store
from tandem_api.v1alpha1.status import Artifact
from tandem_operator.cli.run import run_local
from tandem_operator.platforms.local.commands import Commands
from tandem_operator.platforms.local.storage import EmbeddedStorage, client
from tandem_operator.platforms.local.workdir import Workdir

#: Does every stage at once, and at the end uploads a bundle; the `optimize` stage waits while `work.wait` exists.
BUNDLING = (
    WORKER.replace(
        "result = {}",
        """result = {}
import time
while request["stage"] == "optimize" and os.path.exists(os.environ["TANDEM_WORKDIR"] + ".wait"):
    time.sleep(0.02)
""",
    )
    + """
if request["kind"] == "final":
    from tandem_api.store import S3Store
    storage = request["storage"]
    folder = pathlib.Path("bundle")
    folder.mkdir(exist_ok=True)
    (folder / "program.json").write_text("{}")
    (folder / "report.html").write_text("<p>")
    # Only this run's account: nothing of the user's own.
    assert sorted(name for name in os.environ if name.startswith("AWS_")) == [
        "AWS_ACCESS_KEY_ID", "AWS_ENDPOINT_URL", "AWS_REGION", "AWS_SECRET_ACCESS_KEY"]
    store = S3Store(storage["bucket"], storage["endpoint"], storage["region"])
    result["bundle"] = store.put_folder("result/", folder).model_dump(mode="json", exclude_none=True)
    pathlib.Path(os.environ["TANDEM_TERMINATION_FILE"]).write_text(json.dumps(result))
"""
)
COMMANDS = Commands(worker=(sys.executable, "-c", BUNDLING), server=scripted_server)


@pytest.fixture
def workdir(tmp_path: Path) -> Iterator[Path]:
    """A run's folder; nothing of the run may be alive after the test."""
    with nothing_left(tmp_path / "work") as folder:
        yield folder


@pytest.fixture
def storage(workdir: Path) -> Iterator[EmbeddedStorage]:
    workdir.mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    storage = EmbeddedStorage(Workdir(workdir), environment, warn=lambda message: None)
    storage.start()
    yield storage
    storage.stop()


def store_of(storage: EmbeddedStorage) -> S3Store:
    storage.wait_until_ready()
    return client(storage.ref, storage.credentials)


def test_the_server_is_ready_within_seconds_and_takes_what_it_is_given(storage: EmbeddedStorage) -> None:
    begun = time.monotonic()
    # An account that boto3 remembers from an earlier run of this process is not ours.
    boto3.setup_default_session(aws_access_key_id="earlier", aws_secret_access_key="run")
    store = store_of(storage)
    # Measured 2.2 s on 2 quiet cores; a busy machine gets more.
    assert time.monotonic() - begun < 20
    artifact = store.put("a/b", b"text")
    assert store.fetch(artifact) == b"text"
    assert store.get("a/c") is None
    assert list(store.list("a/")) == ["a/b"]


def test_only_this_machine_reaches_the_server_and_only_its_keys_open_it(storage: EmbeddedStorage) -> None:
    store_of(storage).put("a", b"text")
    listening = [c for c in psutil.Process(storage.children[0].pid).net_connections("inet") if c.status == "LISTEN"]
    assert len(listening) == 8
    assert {connection.laddr.ip for connection in listening} == {"127.0.0.1"}
    for wrong in ({"AWS_SECRET_ACCESS_KEY": "f" * 40}, {"AWS_ACCESS_KEY_ID": "f" * 20}):
        stranger = client(storage.ref, {**storage.credentials, **wrong})
        with pytest.raises(StorageRefusedError, match=r"SignatureDoesNotMatch|InvalidAccessKeyId"):
            stranger.get("a")


def test_what_was_acknowledged_survives_a_kill_under_load_and_the_server_comes_back(storage: EmbeddedStorage) -> None:
    store = store_of(storage)
    acknowledged: list[Artifact] = []
    ended = threading.Event()

    def write(writer: int) -> None:
        for number in range(10_000):
            try:
                acknowledged.append(store.put(f"w{writer}/{number}", os.urandom(100 if number % 9 else 3_000_000)))
            except TandemError:
                return
            if ended.is_set():
                return

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in writers:
        thread.start()
    until(lambda: len(acknowledged) >= 50, 60)
    ref = storage.ref
    psutil.Process(storage.children[0].pid).kill()
    until(lambda: storage.children[0].exit_code is not None)
    storage.check()
    assert storage.ref == ref
    store = store_of(storage)
    ended.set()
    for thread in writers:
        thread.join()
    assert len(acknowledged) >= 50
    for artifact in acknowledged:
        store.fetch(artifact)


def test_the_objects_are_there_again_after_the_engine_stopped_the_server(storage: EmbeddedStorage) -> None:
    artifact = store_of(storage).put("a", b"text")
    storage.stop()
    assert storage.children == ()
    ports = storage.ref.endpoint
    assert ports is not None
    assert not list(Path("/tmp").glob(f"seaweedfs-*-{ports.rpartition(':')[2]}.sock"))
    again = EmbeddedStorage(storage._workdir, dict(os.environ), warn=lambda message: None)
    again.start()
    assert store_of(again).fetch(artifact) == b"text"
    again.stop()


def test_a_run_ends_with_its_bundle_in_the_folder_and_is_shown_again_offline(
    workdir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("AWS_PROFILE", "private")
    path = write_manifest(workdir.parent, storage=None)
    assert run_local(path, workdir, None, COMMANDS) == 0, Workdir(workdir).status.read_text()
    assert sorted(file.name for file in (workdir / "result").iterdir()) == ["program.json", "report.html"]
    assert str(workdir / "result" / "report.html") in capsys.readouterr().out
    begun = time.monotonic()
    assert run_local(path, workdir, None, COMMANDS) == 0
    assert time.monotonic() - begun < 10
    # A bundle that is gone is fetched again by the same command.
    for file in (workdir / "result").iterdir():
        file.unlink()
    (workdir / "result").rmdir()
    assert run_local(path, workdir, None, COMMANDS) == 0
    assert (workdir / "result" / "program.json").exists()


def test_a_run_whose_engine_was_killed_goes_on_and_repeats_nothing(workdir: Path) -> None:
    path = write_manifest(workdir.parent, storage=None)
    waiting = workdir.with_name("work.wait")
    waiting.touch()
    script = f"""
import sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
from tandem_operator.cli.run import run_local
from tests.local.test_processes import COMMANDS
sys.exit(run_local(Path({str(path)!r}), Path({str(workdir)!r}), None, COMMANDS))
"""
    starts = workdir.with_name("work.starts")
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL) as engine:
        until(lambda: starts.exists() and "optimize" in starts.read_text(), 60)
        engine.kill()
    waiting.unlink()
    assert run_local(path, workdir, None, COMMANDS) == 0
    assert starts.read_text().splitlines() == [
        "baseline check 1", "baseline evaluate 1", "p optimize 1", "p optimize 1", "final evaluate 1"
    ]  # fmt: skip


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 150 MB of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=150m", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("a disk of its own needs the right to mount one: run as root")
    yield folder
    until(lambda: subprocess.run(["umount", folder], capture_output=True).returncode == 0)


def test_a_full_disk_stops_the_run_with_a_message_and_it_goes_on_when_there_is_space(
    small_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    workdir = small_disk / "work"
    path = write_manifest(small_disk, storage=None)
    filler, waiting = small_disk / "filler", small_disk / "work.wait"
    waiting.touch()
    fill = f"while request['stage'] == 'optimize' and os.path.exists({str(waiting)!r}):\n"
    fill += f"    open({str(filler)!r}, 'wb').write(b'0' * (100 << 20))\n"
    filling = Commands(worker=(sys.executable, "-c", BUNDLING.replace("import time\n", fill)), server=scripted_server)
    with pytest.raises(StorageRefusedError, match=r"is full|no space left"):
        run_local(path, workdir, None, filling)
    assert living(workdir) == []
    filler.unlink()
    waiting.unlink()
    assert run_local(path, workdir, None, COMMANDS) == 0
    assert "going on with step 1 (p), optimize" in capsys.readouterr().out
