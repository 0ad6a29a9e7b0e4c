"""Files that a program's arguments name, inside a worker: from a URI to a file on this machine's disk.

A worker's environment holds all that is needed on both platforms: the bucket's server and its keys, the folder of
mounted ConfigMaps, the Hub's token, the cache.
"""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from tandem_api.canonical import digest
from tandem_api.errors import ConfigurationError, DataError, StorageUnavailableError
from tandem_trainer.cache import cache_folder, written_once
from tandem_trainer.evaluate.files import configmap_file, hub_file
from tandem_trainer.models import OpenStore, open_bucket


def local_file(
    uri: str,
    *,
    base: Path | None = None,
    field: str = "program.arguments",
    open_store: OpenStore = open_bucket,
) -> Path:
    """The file at `uri`, on this machine: a path that can be read and must not be written.

    `file:PATH` (a relative path starts at `base`, which a program sets to the folder of its own code),
    `configmap://NAME/KEY` (of a ConfigMap that the run's data or code name, too: only those are mounted),
    `s3://BUCKET/KEY` at the run's own server with its keys, kept in the cache, and `hf://datasets/OWNER/NAME/PATH`.
    `field` names the URI in errors. Raises ConfigurationError for an address that cannot be used here, DataError where
    there is no such file, StorageUnavailableError or StorageRefusedError where it cannot be read.
    """
    where = f"{field} ({uri})"
    scheme = uri.partition(":")[0]
    if scheme == "file":
        return _on_disk(uri, base, where)
    if scheme == "configmap":
        return configmap_file(uri, where)
    if scheme == "hf":
        return hub_file(uri, where)
    if scheme == "s3":
        return _from_bucket(uri, open_store, where)
    raise ConfigurationError(
        f"{where}: found no address that can be read here; allowed: file:PATH, s3://BUCKET/KEY, "
        "configmap://NAME/KEY, hf://datasets/OWNER/NAME/PATH"
    )


def _on_disk(uri: str, base: Path | None, where: str) -> Path:
    path = Path(unquote(urlsplit(uri).path)).expanduser()
    if not path.is_absolute():
        if base is None:
            raise ConfigurationError(f"{where}: found a relative path; write file:///PATH, or let the program say base")
        path = base / path
    path = path.absolute()
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise DataError(f"{where}: {path} {state}; name the file, or create it")
    return path


def _from_bucket(uri: str, open_store: OpenStore, where: str) -> Path:
    """Download an object once: the name in the cache changes with the object."""
    parts = urlsplit(uri)
    key = parts.path.lstrip("/")
    if not parts.netloc or not key:
        raise ConfigurationError(f"{where}: allowed: s3://BUCKET/KEY")
    store = open_store(parts.netloc)
    # In lexical order a key comes before all that begin with it.
    found = next(iter(store.describe(key)), None)
    if found is None or found.key != key:
        raise DataError(f"{where}: there is no such object; correct the uri or upload it")
    name = Path(key).name

    def download(folder: Path) -> None:
        store.download(key, folder / name)
        if next(iter(store.describe(key)), None) != found:
            raise StorageUnavailableError(f"{where} changed while it was downloaded; it is downloaded again")

    known = digest([uri, found.size, found.etag])[:16]
    return written_once(cache_folder().absolute() / "files" / f"{name}-{known}", download) / name
