"""The sidecar's files: the mounted list of wanted adapters, and the folder that it shares with vLLM."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import ValidationError

from tandem_api.adapters import DesiredAdapter, DesiredAdapters
from tandem_api.canonical import digest
from tandem_api.errors import ConfigurationError, DataError
from tandem_api.store import ObjectStore
from tandem_api.store.s3 import file_sha256
from tandem_trainer.lora.servable import highest_rank, read_config


def read_desired(path: Path) -> DesiredAdapters:
    """The adapters that are wanted now. Raises ConfigurationError for a file that does not tell."""
    try:
        return DesiredAdapters.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigurationError(
            f"{path} cannot be read: {error.strerror}; the ConfigMap of the wanted adapters must be mounted there"
        ) from error
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the file"
        raise ConfigurationError(
            f"{path} is no list of wanted adapters ({error.error_count()} problems; first: {where}: {first['msg']}); "
            "operator and trainer must be of the same release"
        ) from error


def fetch(adapter: DesiredAdapter, folder: Path, max_rank: int, open_store: Callable[[str], ObjectStore]) -> None:
    """Have the adapter in `folder`, verified, and know that a vLLM with that --max-lora-rank can serve it.

    Raises DataError for an adapter that will never do, the store's errors, and OSError for our own disk.
    """
    target = folder / adapter.sha256
    # What an earlier container left is used again only if it is whole.
    if not (target.is_dir() and content_sha256(target) == adapter.sha256):
        open_store(urlsplit(adapter.uri).netloc).fetch_folder(adapter.artifact, target)
    # vLLM reads it, perhaps as another user.
    target.chmod(0o755)
    if adapter.number is not None:
        (folder / adapter.folder).chmod(0o755)
    rank = highest_rank(read_config(folder / adapter.folder))
    if rank > max_rank:
        raise DataError(
            f"{adapter.uri}: found an adapter of rank {rank}; vLLM was started for ranks up to {max_rank}: "
            "set weightOptimizer.rank to the highest rank of the run"
        )


def content_sha256(folder: Path) -> str:
    """The digest that `ObjectStore.put_folder` gave this content: of its list of files and their digests."""
    paths = [path for path in folder.rglob("*") if path.is_file()]
    return digest({path.relative_to(folder).as_posix(): file_sha256(path) for path in paths})


def present(folder: Path) -> tuple[str, ...]:
    """The digests of the adapters in `folder`, the oldest first."""
    found = []
    for path in folder.glob("[!.]*"):
        with contextlib.suppress(FileNotFoundError):  # replaced at this moment by a download
            found.append((path.stat().st_mtime, path.name))
    return tuple(name for _, name in sorted(found))


def clear_remains(folder: Path) -> None:
    """Remove what downloads that were cut off have left in `folder`, which is created if it has to be."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in folder.glob(".*"):
        shutil.rmtree(path, ignore_errors=True)
