"""The adapter sidecar: `python -m tandem_trainer.adapters [--max-rank N]`, beside vLLM in the same pod.

    TANDEM_DESIRED_ADAPTERS   the mounted list of wanted adapters, default /tandem/desired/adapters.json
    TANDEM_ADAPTERS_DIR       the folder shared with vLLM under the same path, default /tandem/adapters
    TANDEM_VLLM_URL           default http://127.0.0.1:8000
    AWS_*                     access to the bucket, AWS_ENDPOINT_URL for other servers than AWS

It keeps nothing: a new container finds out from vLLM and from the folder. SIGTERM ends it at once with 0.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn

import aiohttp
from aiohttp import web

from tandem_api.adapters import DESIRED_KEY, ENV_ADAPTERS_DIR, ENV_DESIRED_ADAPTERS
from tandem_api.canonical import digest
from tandem_api.errors import EXIT_DONE, EXIT_RETRYABLE, ConfigurationError, TandemError
from tandem_trainer.adapters import files
from tandem_trainer.adapters.loop import Settings, Sidecar
from tandem_trainer.adapters.server import application
from tandem_trainer.adapters.vllm import VLLM
from tandem_trainer.lora.servable import rank_ceiling
from tandem_trainer.models import open_bucket

ENV_VLLM_URL: Final = "TANDEM_VLLM_URL"
#: In the shared folder: the digest of the last key that was refused.
_REFUSED_KEY: Final = ".refused-key"
_USAGE: Final = "python -m tandem_trainer.adapters [--max-rank N] [--vllm URL] [--host ADDRESS] [--port N]"


@dataclass(frozen=True)
class Options:
    """What the command line and the environment say."""

    settings: Settings
    vllm: str
    host: str
    port: int


def main(arguments: Sequence[str]) -> int:
    """Run until a signal comes. Returns an exit code only if that fails, after one line on stderr."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        asyncio.run(serve(parse(arguments)))
    except TandemError as error:
        return _say(f"{error.code}: {error}", error.exit_code)
    except OSError as error:
        return _say(str(error), EXIT_RETRYABLE)
    return EXIT_RETRYABLE


def parse(arguments: Sequence[str]) -> Options:
    """The options. Raises ConfigurationError."""
    parser = _Parser(prog="tandem adapters", usage=_USAGE, allow_abbrev=False)
    parser.add_argument(
        "--max-rank", type=int, default=16, help="the highest rank, as in tandem_trainer.serving --rank"
    )
    parser.add_argument("--vllm", default=os.environ.get(ENV_VLLM_URL) or "http://127.0.0.1:8000")
    parser.add_argument("--host", default="0.0.0.0")  # noqa: S104 - the kubelet and the operator ask from outside
    parser.add_argument("--port", type=int, default=8081)
    found = parser.parse_args(arguments)
    if found.max_rank < 1:
        raise ConfigurationError(f"--max-rank: found {found.max_rank}; allowed: 1 or more")
    settings = Settings(
        desired=Path(os.environ.get(ENV_DESIRED_ADAPTERS) or f"/tandem/desired/{DESIRED_KEY}"),
        folder=Path(os.environ.get(ENV_ADAPTERS_DIR) or "/tandem/adapters").absolute(),
        max_rank=rank_ceiling(found.max_rank),
    )
    return Options(settings, found.vllm, found.host, found.port)


async def serve(options: Options) -> NoReturn:
    """Answer and work for ever. Raises OSError if the port is taken or the folder cannot be written."""
    files.clear_remains(options.settings.folder)
    # A connection a call: vLLM may be another one each time, and a load must not meet a dead connection.
    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
        folder = options.settings.folder
        sidecar = Sidecar(options.settings, VLLM(session, options.vllm), open_bucket, lambda: _begin_anew(folder))
        runner = web.AppRunner(application(sidecar), access_log=None)
        await runner.setup()
        await web.TCPSite(runner, options.host, options.port).start()
        await sidecar.run()


def _end(number: int, frame: FrameType | None) -> NoReturn:
    """At once: a download that is cut off leaves nothing that a new start does not clear away."""
    os._exit(EXIT_DONE)


def _begin_anew(folder: Path) -> None:
    """End, once for each key. A container that is started anew has the key that the Secret holds by now; this one has
    the one that it held when the server started."""
    key = digest([os.environ.get(name, "") for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")])
    known = folder / _REFUSED_KEY
    if known.is_file() and known.read_text() == key:
        return
    known.write_text(key)
    os._exit(_say("the object store refuses the key; begun anew, in case that the Secret has another", EXIT_RETRYABLE))


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message}; usage: {_USAGE}")


def _say(message: str, code: int) -> int:
    print(f"tandem adapters: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
