"""A result bundle's program, ready to be used: it calls a model server as it did when it was scored.

The program runs in its caller's thread or event loop; the calls of the model go over an event loop of our own, on which
the client of the model server lives.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import Coroutine, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import aiohttp
import dspy

from tandem_api.adapters import served_adapter
from tandem_api.canonical import seed_from
from tandem_api.contract import Endpoint
from tandem_api.errors import AdapterMissingError, ConfigurationError, ServingError
from tandem_api.records import PromptSet
from tandem_api.v1alpha1 import OptimizationRun, Spec
from tandem_trainer.lm.client import LMClient
from tandem_trainer.lm.served import SCOPE, RunScope, ServedLM
from tandem_trainer.program.loading import LoadedProgram, load_program
from tandem_trainer.program.recording import as_json

T = TypeVar("T")
_CLOSE_SECONDS = 5.0


@dataclass(frozen=True)
class Server:
    """A model server as its user names it."""

    url: str
    """With or without /v1."""
    model: str | None = None
    """The name of the adapter, or what the names of several begin with, or the base model's; None: the default."""
    api_key: str | None = None
    timeout_seconds: float = 60.0
    """For how long a server that does not answer is waited for."""

    @property
    def base(self) -> str:
        """The address without /v1."""
        return self.url.rstrip("/").removesuffix("/v1")


class ServedProgram(dspy.Module):  # type: ignore[misc]  # DSPy has no types
    """The best program of a run on a model server. `program` is the program itself."""

    def __init__(self, program: Any, adapter: Any, loop: _Loop, lm: ServedLM, spec: Spec) -> None:
        super().__init__()
        self.program = program
        self._adapter, self._loop, self._lm, self._spec = adapter, loop, lm, spec
        self._is_async = getattr(type(program), "forward", None) is None

    def forward(self, **inputs: Any) -> Any:
        """The prediction. Raises ServingError when the server is away, AdapterParseError for an unreadable answer."""
        if self._is_async:
            return self._loop.run(self.aforward(**inputs))
        with self._context(inputs):
            return self.program(**inputs)

    async def aforward(self, **inputs: Any) -> Any:
        """As `forward`, on any event loop."""
        with self._context(inputs):
            if hasattr(type(self.program), "aforward"):
                return await self.program.acall(**inputs)
            return await asyncio.to_thread(self.program, **inputs)

    @contextmanager
    def _context(self, inputs: dict[str, Any]) -> Iterator[None]:
        """The settings under which the program was scored. The same inputs, the same seeds."""
        scope = RunScope(seed_from(self._spec.seed, as_json(inputs)), self._spec.model.sampling)
        with dspy.context(**{SCOPE: scope, "lm": self._lm, "adapter": self._adapter}):
            yield
        if scope.failure is not None:  # a program may swallow it
            raise scope.failure

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Copies go on using the same server.
        copied: Self = self.__class__(self.program.deepcopy(), self._adapter, self._loop, self._lm, self._spec)
        return copied


def open_program(
    run: OptimizationRun,
    prompts: PromptSet,
    server: Server,
    owners: tuple[str, ...],
    is_tuned: bool,
    code_path: Path | None,
) -> ServedProgram:
    """The run's program with these prompts. `owners`: the predictors that have adapters of their own, in their order;
    `is_tuned`: it runs on an adapter, or on several. Raises as `tandem.load_program`."""
    loaded = load_program(run.spec, code_path=code_path)
    module = loaded.with_prompts(prompts)
    loop = _Loop()
    try:
        served = loop.run(ask_models(server))
        default, own = _names(run.metadata.name, loaded, server, served, owners, is_tuned=is_tuned)
        lm = loop.run(_connect(loop, loaded, server, default, own, run.spec))
    except BaseException:
        loop.close()
        raise
    # Copies of the program share the LM. Also at the end of the process, before which connections must be closed.
    weakref.finalize(lm, loop.close)
    return ServedProgram(module, loaded.adapter, loop, lm, run.spec)


def _names(
    run: str,
    loaded: LoadedProgram,
    server: Server,
    served: Mapping[str, str | None],
    owners: tuple[str, ...],
    *,
    is_tuned: bool,
) -> tuple[str, dict[str, str]]:
    """The served name for all calls, and those of the predictors that have adapters of their own. Raises
    AdapterMissingError when one of them is not among `served`."""
    prefix = server.model or served_adapter(run)
    own = {owner: f"{prefix}-{number}" for number, owner in enumerate(owners)}
    if is_tuned and not owners:
        default = prefix
    elif owners and set(loaded.predictors) <= own.keys():
        default = next(iter(own.values()))  # not used by any predictor
    else:
        default = server.model if server.model is not None and not owners else _base_model(server, served)
    missing = sorted({default, *own.values()} - served.keys())
    if missing:
        fix = "serve it as report.html in the bundle says, or give its name there" if is_tuned else "give one of those"
        raise AdapterMissingError(
            f"the model server at {server.base} does not serve {', '.join(map(repr, missing))}, but "
            f"{', '.join(map(repr, served)) or 'nothing'}; {fix} as model="
        )
    return default, own


def _base_model(server: Server, served: Mapping[str, str | None]) -> str:
    """The one model that is no adapter. Raises ConfigurationError when that is not clear."""
    bases = [name for name, parent in served.items() if parent is None]
    if len(bases) != 1:
        raise ConfigurationError(
            f"the model server at {server.base} serves {', '.join(map(repr, bases)) or 'no model'} beside adapters, so "
            "that the base model is not known; name it with model="
        )
    return bases[0]


async def ask_models(server: Server) -> dict[str, str | None]:
    """The names that the server has, each with the model that it is an adapter of. Raises ServingError when it does not
    answer as a model server does, ConfigurationError when it refuses the key."""
    if urlsplit(server.base).scheme not in ("http", "https"):
        raise ConfigurationError(f"endpoint: found {server.url!r}; allowed: an address such as http://localhost:8000")
    headers = {"Authorization": f"Bearer {server.api_key}"} if server.api_key else {}
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=server.timeout_seconds)) as session,
            session.get(f"{server.base}/v1/models", headers=headers, allow_redirects=False) as answer,
        ):
            if answer.status in (401, 403):
                raise ConfigurationError(f"the model server at {server.base} refuses the key; give api_key=")
            if answer.status != 200:
                raise ServingError(f"{server.base}/v1/models answers {answer.status}; is it a vLLM?")
            return {str(model["id"]): model.get("parent") for model in (await answer.json())["data"]}
    except (aiohttp.ClientError, OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        told = str(error) or "no answer in time"
        raise ServingError(f"the model server at {server.base} does not answer at /v1/models: {told}") from error


async def _connect(
    loop: _Loop, loaded: LoadedProgram, server: Server, default: str, own: dict[str, str], spec: Spec
) -> ServedLM:
    """The model as the program's LM; to be made on the loop of its client."""
    client = LMClient(
        Endpoint(url=server.base, model=default),
        concurrency=spec.evaluation.concurrency,
        request_timeout_seconds=float(spec.evaluation.request_timeout_seconds),
        unavailable_timeout_seconds=server.timeout_seconds,
        api_key=server.api_key,
    )
    loop.clients.append(await client.__aenter__())
    return ServedLM(client, mode=loaded.mode, names=own)


class _Loop:
    """An event loop in a thread of its own."""

    def __init__(self) -> None:
        self.clients: list[LMClient] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="tandem-program", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """What the work comes to; blocks until then."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()

    def close(self) -> None:
        """Close the connections and end the thread; from any thread, for whoever lets the last reference go."""
        if self._thread.is_alive():
            asyncio.run_coroutine_threadsafe(self._end(), self._loop)
        if threading.current_thread() is not self._thread:
            self._thread.join(_CLOSE_SECONDS)

    async def _end(self) -> None:
        for client in self.clients:
            await client.__aexit__()
        self._loop.stop()

    def _run(self) -> None:
        self._loop.run_forever()
        self._loop.close()
