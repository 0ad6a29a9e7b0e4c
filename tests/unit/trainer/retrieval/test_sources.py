from __future__ import annotations

from pathlib import Path

import pytest
from tests.memory_store import MemoryStore

from tandem_api.contract import ENV_CACHE, ENV_CONFIGMAPS
from tandem_api.errors import ConfigurationError, DataError, StorageUnavailableError
from tandem_trainer.retrieval import local_file


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(ENV_CACHE, str(tmp_path / "cache"))
    monkeypatch.delenv(ENV_CONFIGMAPS, raising=False)
    return tmp_path / "cache"


def test_a_relative_path_starts_at_the_programs_folder(tmp_path: Path) -> None:
    file = tmp_path / "data" / "a b.jsonl"
    file.parent.mkdir()
    file.write_text("x", encoding="utf-8")
    assert local_file("file:data/a%20b.jsonl", base=tmp_path) == file
    assert local_file(file.as_uri()) == file


def test_a_relative_path_without_a_folder_is_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"program.arguments.corpus \(file:x\): found a relative path"):
        local_file("file:x", field="program.arguments.corpus")


def test_a_missing_file_and_a_folder_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"missing\.jsonl does not exist"):
        local_file("file:missing.jsonl", base=tmp_path)
    with pytest.raises(DataError, match="is a folder"):
        local_file(tmp_path.as_uri())


def test_an_object_is_downloaded_once_and_again_when_it_has_changed() -> None:
    store, opened, downloads = MemoryStore("data"), list[str](), list[str]()
    store.put("wiki/corpus.jsonl", b"first")
    store.put("wiki/corpus.jsonl.old", b"older")
    download = store.download

    def counted(key: str, path: Path) -> None:
        downloads.append(key)
        download(key, path)

    store.download = counted  # type: ignore[method-assign]

    def open_store(bucket: str) -> MemoryStore:
        opened.append(bucket)
        return store

    uri = "s3://data/wiki/corpus.jsonl"
    path = local_file(uri, open_store=open_store)
    assert (path.name, path.read_bytes()) == ("corpus.jsonl", b"first")
    assert local_file(uri, open_store=open_store) == path
    store.put("wiki/corpus.jsonl", b"second version")
    assert local_file(uri, open_store=open_store).read_bytes() == b"second version"
    assert path.read_bytes() == b"first"
    assert (set(opened), len(downloads)) == ({"data"}, 2)


def test_an_object_that_changes_during_the_download_is_not_kept(cache: Path) -> None:
    store = MemoryStore("data")
    store.put("corpus.jsonl", b"first")
    download = store.download

    def changing(key: str, path: Path) -> None:
        download(key, path)
        store.put(key, b"another one")

    store.download = changing  # type: ignore[method-assign]
    with pytest.raises(StorageUnavailableError, match="changed while it was downloaded"):
        local_file("s3://data/corpus.jsonl", open_store=lambda bucket: store)
    assert [path for path in (cache / "files").iterdir() if not path.name.endswith(".lock")] == []


@pytest.mark.parametrize("key", ["none.jsonl", "corpus"])
def test_an_object_that_is_not_there_is_named(key: str) -> None:
    store = MemoryStore("data")
    store.put("corpus.jsonl", b"x")
    with pytest.raises(DataError, match=rf"s3://data/{key}\): there is no such object; correct the uri or upload it"):
        local_file(f"s3://data/{key}", open_store=lambda bucket: store)


def test_a_configmap_is_read_where_it_is_mounted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_CONFIGMAPS, str(tmp_path / "maps"))
    (tmp_path / "maps" / "world").mkdir(parents=True)
    (tmp_path / "maps" / "world" / "corpus.jsonl").write_text("x", encoding="utf-8")
    assert local_file("configmap://world/corpus.jsonl").read_text(encoding="utf-8") == "x"
    with pytest.raises(DataError, match=r"no key 'other.jsonl'; its keys: corpus.jsonl"):
        local_file("configmap://world/other.jsonl")
    with pytest.raises(DataError, match=r"'else' is not mounted"):
        local_file("configmap://else/corpus.jsonl")


def test_one_machine_has_no_configmaps() -> None:
    with pytest.raises(ConfigurationError, match="only a cluster has ConfigMaps; write file:PATH"):
        local_file("configmap://world/corpus.jsonl")


@pytest.mark.parametrize("uri", ["https://host/corpus.jsonl", "corpus.jsonl", "", "s3://bucket", "hf://org/name"])
def test_other_addresses_are_refused_with_those_that_are_allowed(uri: str) -> None:
    with pytest.raises(ConfigurationError, match="allowed: "):
        local_file(uri, open_store=MemoryStore)
