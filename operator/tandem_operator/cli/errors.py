"""How a command ends: its exit codes, and every foreseeable error as a message instead of a trace."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

import typer

EXIT_DONE = 0
EXIT_FAILED = 1
"""The run failed, or something on this machine did."""
EXIT_USAGE = 2
"""The command or the manifest is wrong; nothing was started."""
EXIT_INTERRUPTED = 130


def fail(message: str, code: int) -> typer.Exit:
    """Print what is wrong; raise the answer."""
    typer.echo(f"error: {message}", err=True)
    return typer.Exit(code)


@contextlib.contextmanager
def reported() -> Iterator[None]:
    """Turns our errors and those of the machine into a message and an exit code."""
    from tandem_api.errors import ConfigurationError, TandemError

    try:
        yield
    except ConfigurationError as error:
        raise fail(str(error), EXIT_USAGE) from error
    except TandemError as error:
        raise fail(str(error), EXIT_FAILED) from error
    except OSError as error:
        if error.errno == errno.EPIPE:
            raise
        where = f"{error.filename}: " if error.filename else ""
        hint = "; free some space and start the same command again" if error.errno == errno.ENOSPC else ""
        raise fail(f"{where}{error.strerror or error}{hint}", EXIT_FAILED) from error
