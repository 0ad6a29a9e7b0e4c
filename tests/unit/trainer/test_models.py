"""Model addresses: what each means on this machine, what is downloaded once, and what is refused with a fix."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.memory_store import MemoryStore

from tandem_api.errors import ConfigurationError, StorageUnavailableError
from tandem_trainer import models
from tandem_trainer.lora.base import local_model
from tandem_trainer.models import ModelError, materialize

MODEL = {
    "config.json": b"{}",
    "model-00001-of-00002.safetensors": b"one",
    "model-00002-of-00002.safetensors": b"two",
    "model.safetensors.index.json": b"{}",
    "tokenizer.json": b"{}",
    "tokenizer.model": b"spm",
    "merges.txt": b"a b",
    "chat_template.jinja": b"{{ messages }}",
}
NOT_WANTED = {"README.md": b"#", "pytorch_model.bin": b"old", "checkpoint-1/model.safetensors": b"x", "": b""}


class Bucket(MemoryStore):
    """With a model under `models/tiny/`; counts downloads."""

    def __init__(self) -> None:
        super().__init__("weights")
        self.downloads: list[str] = []
        self.opened: list[str] = []
        for name, data in {**MODEL, **NOT_WANTED}.items():
            self.put(f"models/tiny/{name}", data)
        self.put("models/tiny-2/config.json", b"{}")

    def open(self, bucket: str) -> MemoryStore:
        self.opened.append(bucket)
        return self

    def download(self, key: str, path: Path) -> None:
        self.downloads.append(key)
        super().download(key, path)


@pytest.fixture
def bucket() -> Bucket:
    return Bucket()


def fetch(bucket: Bucket, cache: Path, uri: str = "s3://weights/models/tiny") -> Path:
    return materialize(uri, cache, open_store=bucket.open)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_model_in_a_bucket_is_downloaded_once_with_what_belongs_to_it(bucket: Bucket, tmp_path: Path) -> None:
    folder = fetch(bucket, tmp_path)
    assert files(folder) == MODEL
    assert folder.parent == tmp_path
    assert folder.name.startswith("tiny-s3-")
    assert bucket.opened == ["weights"]
    count = len(bucket.downloads)
    assert fetch(bucket, tmp_path, "s3://weights/models/tiny/") == folder
    assert len(bucket.downloads) == count == len(MODEL)


def test_a_model_that_has_changed_in_its_bucket_is_another_model(bucket: Bucket, tmp_path: Path) -> None:
    before = fetch(bucket, tmp_path)
    bucket.put("models/tiny/README.md", b"# More")
    assert fetch(bucket, tmp_path) == before
    bucket.put("models/tiny/model-00002-of-00002.safetensors", b"new")
    after = fetch(bucket, tmp_path)
    assert after != before
    assert (after / "model-00002-of-00002.safetensors").read_bytes() == b"new"


def test_a_download_that_breaks_leaves_nothing_that_looks_like_a_model(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(key: str, path: Path) -> None:
        path.write_bytes(b"half")
        raise StorageUnavailableError("the connection was lost")

    with monkeypatch.context() as patch, pytest.raises(StorageUnavailableError, match="connection was lost"):
        patch.setattr(bucket, "download", broken)
        fetch(bucket, tmp_path)
    assert [path for path in tmp_path.iterdir() if path.is_dir()] == []
    (tmp_path / f".{fetch(bucket, tmp_path).name}.tmp").mkdir()
    assert files(fetch(bucket, tmp_path)) == MODEL


def test_a_model_that_changes_meanwhile_is_not_kept_and_worth_a_retry(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def racing(key: str, path: Path) -> None:
        MemoryStore.download(bucket, key, path)
        if key.endswith("config.json"):
            bucket.put(key, b'{"new": 1}')

    with monkeypatch.context() as patch, pytest.raises(StorageUnavailableError, match="changed while it was downloade"):
        patch.setattr(bucket, "download", racing)
        local_model("s3://weights/models/tiny", tmp_path, bucket.open)
    assert [path for path in (tmp_path / "models").iterdir() if path.is_dir()] == []
    folder = local_model("s3://weights/models/tiny", tmp_path, bucket.open)
    assert (folder / "config.json").read_bytes() == b'{"new": 1}'


def test_a_whole_bucket_may_be_a_model(tmp_path: Path) -> None:
    store = MemoryStore("weights")
    for name, data in MODEL.items():
        store.put(name, data)
    folder = materialize("s3://weights", tmp_path, open_store=lambda name: store)
    assert files(folder) == MODEL
    assert folder.name.startswith("weights-s3-")


@pytest.mark.parametrize(
    ("uri", "found"),
    [
        ("s3://weights/models/none", "found: nothing"),
        ("s3://weights/models/tiny-2", "found: config.json"),
        ("s3://weights/models", "found: nothing"),
    ],
)
def test_a_prefix_without_a_model_is_refused_with_what_is_there(
    bucket: Bucket, tmp_path: Path, uri: str, found: str
) -> None:
    with pytest.raises(ConfigurationError, match=f"{found}.*Fix: upload what save_pretrained"):
        local_model(uri, tmp_path, bucket.open)


def test_the_environment_names_the_server_of_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []
    monkeypatch.setattr(models, "S3Store", lambda *where: opened.append(where))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://s3.test")
    monkeypatch.setenv("AWS_REGION", "eu-1")
    models.open_bucket("weights")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "")
    monkeypatch.delenv("AWS_REGION")
    models.open_bucket("weights")
    assert opened == [("weights", "http://s3.test", "eu-1"), ("weights", None, None)]


@pytest.fixture
def claims(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder where claims are mounted, with one that holds a model."""
    mount = tmp_path / "mount"
    folder = mount / "models-rox" / "llama" / "8b"
    folder.mkdir(parents=True)
    for name, data in MODEL.items():
        (folder / name).write_bytes(data)
    monkeypatch.setattr(models, "MODELS_MOUNT", str(mount))
    return mount


@pytest.mark.parametrize("uri", ["pvc://models-rox/llama/8b", "pvc://models-rox/llama/8b/"])
def test_a_model_on_a_claim_is_used_where_it_is_mounted(claims: Path, tmp_path: Path, uri: str) -> None:
    cache = tmp_path / "cache"
    assert materialize(uri, cache) == claims / "models-rox" / "llama" / "8b"
    assert not cache.exists()


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("pvc://models-rwx/llama", r"no claim 'models-rwx' is mounted at .*on one machine, .* write file:///DIRECTORY"),
        ("pvc://models-rox/mistral", r"models-rox/mistral does not exist"),
        ("pvc://models-rox", r"models-rox is no directory with a config.json"),
        ("pvc://models-rox/../other", r"is not CLAIM/PATH"),
        ("pvc:///llama", r"is not CLAIM/PATH"),
    ],
)
def test_a_claim_without_the_model_is_refused(claims: Path, tmp_path: Path, uri: str, problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        materialize(uri, tmp_path)


def test_a_path_in_the_image_needs_no_host_and_is_absolute(claims: Path, tmp_path: Path) -> None:
    folder = claims / "models-rox" / "llama" / "8b"
    for uri in (folder.as_uri(), f"file:{folder}", f"file://localhost{folder}"):
        assert materialize(uri, tmp_path) == folder
    with pytest.raises(ModelError, match="the path 'llama/8b' is relative"):
        materialize("file:llama/8b", tmp_path)
    with pytest.raises(ModelError, match="'llama' stands where a host would"):
        materialize("file://llama/8b", tmp_path)


def test_an_unknown_scheme_is_told_what_is_allowed(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no scheme that is known here.*s3://BUCKET/PREFIX.*pvc://CLAIM/PATH"):
        materialize("gs://bucket/model", tmp_path)


def test_the_command_prints_the_directory_or_why_there_is_none(claims: Path, tmp_path: Path, capsys: Any) -> None:
    assert models.main(["pvc://models-rox/llama/8b", str(tmp_path)]) == 0
    assert capsys.readouterr().out == f"{claims}/models-rox/llama/8b\n"
    assert models.main(["pvc://none/x", str(tmp_path)]) == 42
    assert "no claim 'none'" in capsys.readouterr().err
