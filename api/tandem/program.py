"""The best program of a run, as a DSPy module."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from tandem.bundle import Bundle
from tandem_api.errors import ConfigurationError

if TYPE_CHECKING:
    from tandem_trainer.program.bundled import ServedProgram


def load_program(
    bundle: Bundle | str | Path,
    endpoint: str,
    *,
    model: str | None = None,
    api_key: str | None = None,
    code: str | Path | None = None,
    timeout: float = 60.0,
) -> ServedProgram:
    """The best program, with its prompts; its calls go to the vLLM at `endpoint`, in the format and with the sampling
    with which it was scored. It is a `dspy.Module`: call it with the program's inputs, or await its `acall`.

    `model`: the name under which the server has the adapter; default NAME-adapter, as the report's command serves it.
    Where predictors have adapters of their own, the first part of their names (NAME-adapter-0, ...); without an
    adapter, the base model's name. `code`: the folder of the program's code; default the spec's, if it is on this
    machine. `timeout`: for how many seconds a server that does not answer is waited for.

    Raises AdapterMissingError when the server does not have the adapter, ServingError when it does not answer,
    ConfigurationError where DSPy is not installed or the program's code cannot be imported.
    """
    found = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    try:
        from tandem_trainer.program.bundled import Server, open_program
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"a program needs DSPy; install tandem[trainer] ({error})") from error
    server = Server(endpoint, model, api_key, timeout)
    return open_program(
        found.run, found.prompts, server, found.predictors, found.adapter is not None, _code(found, code)
    )


def _code(bundle: Bundle, folder: str | Path | None) -> Path | None:
    """The folder of the program's code; None: it is installed."""
    if folder is not None:
        return Path(folder).absolute()
    code = bundle.run.spec.program.code
    if code is None or not code.uri.startswith("file:"):
        return None
    return Path(unquote(urlsplit(code.uri).path))
