"""The cache folder: models, code, indexes; shared by the processes of one machine or the pods of one claim."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from tandem_api.contract import ENV_CACHE

#: Where the cache is unless TANDEM_CACHE says otherwise.
DEFAULT_CACHE = "~/.cache/tandem"


def cache_folder() -> Path:
    """The cache of this process."""
    return Path(os.environ.get(ENV_CACHE) or DEFAULT_CACHE).expanduser()


def written_once(final: Path, write: Callable[[Path], None]) -> Path:
    """The directory `final`, which appears when `write` has filled it, an empty folder at first.

    One fixed temporary name for each, emptied under the lock: what a killed process left is removed by the next.
    """
    if final.is_dir():
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(final.with_name(f".{final.name}.lock")):
        if final.is_dir():
            return final
        unfinished = final.with_name(f".{final.name}.tmp")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir()
        try:
            write(unfinished)
        except BaseException:
            shutil.rmtree(unfinished, ignore_errors=True)
            raise
        unfinished.replace(final)
    return final
