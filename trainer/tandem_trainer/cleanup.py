"""Delete everything that a run has in S3, when its resource is deleted with `deletionPolicy: Delete`.

    python -m tandem_trainer.cleanup --bucket tandem --prefix runs --namespace team-a --name reviews --uid 3f2a...

The server and the credentials come from the standard AWS variables. Doing it again is harmless. Exit codes as in
`tandem_api.errors`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final, NoReturn

from tandem_api.errors import EXIT_DONE, EXIT_RETRYABLE, ConfigurationError, TandemError
from tandem_api.layout import RunLayout
from tandem_api.store import ObjectStore
from tandem_trainer.models import open_bucket

_USAGE: Final = "python -m tandem_trainer.cleanup --bucket B --namespace NS --name NAME --uid UID [--prefix PREFIX]"
#: One part of a key: with an empty one, or one with a slash, the prefix would be that of other runs, too.
_PART: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class Options:
    """Whose objects are deleted."""

    bucket: str
    layout: RunLayout


def main(arguments: Sequence[str], open_store: Callable[[str], ObjectStore] = open_bucket) -> int:
    """Delete the run's objects, and tell how many there were. Returns the process's exit code."""
    try:
        options = parse(arguments)
        store = open_store(options.bucket)
        count = store.delete(options.layout.root)
    except TandemError as error:
        return _fail(f"{error.code}: {error}", error.exit_code)
    except Exception as error:  # whatever it is, a later try may do better
        return _fail(f"{type(error).__name__}: {error}", EXIT_RETRYABLE)
    print(f"deleted {count} objects under {store.uri(options.layout.root)}", flush=True)
    return EXIT_DONE


def parse(arguments: Sequence[str]) -> Options:
    """The options. Raises ConfigurationError where they do not name exactly one run."""
    parser = _Parser(prog="tandem cleanup", usage=_USAGE, allow_abbrev=False)
    parser.add_argument("--bucket", required=True)
    parser.add_argument("--prefix", default="", help="what the keys of all runs begin with")
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--name", required=True)
    parser.add_argument("--uid", required=True)
    given = parser.parse_args(arguments)
    for option in ("bucket", "namespace", "name", "uid"):
        value = getattr(given, option)
        if not _PART.fullmatch(value):
            raise ConfigurationError(f"--{option}: found {value!r}; allowed: letters, digits, '-', '_' and '.'")
    if any(part in (".", "..") for part in given.prefix.split("/")):
        raise ConfigurationError(f"--prefix: found {given.prefix!r}; a prefix may not contain '.' or '..' parts")
    return Options(given.bucket, RunLayout(given.prefix, given.namespace, given.name, given.uid))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message}; usage: {_USAGE}")


def _fail(message: str, code: int) -> int:
    print(f"tandem cleanup: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
