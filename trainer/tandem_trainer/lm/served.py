"""The LM that programs see: a `dspy.BaseLM` over `LMClient`.

DSPy's own path through `BaseLM.acall` is left out on purpose: in 3.4 it starts a thread per call, deprecates
subclasses' `forward`, and keeps a history of everything. Nothing is cached here either; the ledger remembers.

A run of a program on one example is a `RunScope`. It travels in DSPy's settings, which follow the program into
`asyncio` tasks, `dspy.Parallel` and `dspy.asyncify`, so that concurrent runs never mix.
"""

from __future__ import annotations

import asyncio
import hashlib
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self

import dspy
import orjson
from dspy.dsp.utils.settings import thread_local_overrides
from dspy.utils.exceptions import ContextWindowExceededError

from tandem_api.canonical import seed_from
from tandem_api.errors import ServingError, TandemError
from tandem_api.records import PredictorCall
from tandem_api.v1alpha1.spec import Sampling
from tandem_api.v1alpha1.status import Usage
from tandem_trainer.lm.bridge import Bridge
from tandem_trainer.lm.client import (
    BudgetExhausted,
    Completion,
    LMCall,
    LMClient,
    Mode,
    PromptTooLongError,
)

#: Parameters that a program may set on a predictor or a call, beside those in `IGNORED`.
SUPPORTED = frozenset({"temperature", "top_p", "max_tokens", "stop", "n"})
#: Parameters of DSPy's own LM that mean nothing here: there is no cache, and the client retries.
IGNORED = frozenset({"cache", "rollout_id", "num_retries"})
#: The key of the run's scope in DSPy's settings.
SCOPE = "tandem_run"


class ContextTooLongError(PromptTooLongError, ContextWindowExceededError):  # type: ignore[misc]  # DSPy has no types
    """Both ours and DSPy's: modules such as ReAct catch DSPy's to shorten their history."""

    def __init__(self, model: str, message: str) -> None:
        ContextWindowExceededError.__init__(self, model=model, message=message)


@dataclass(frozen=True, slots=True)
class LMRequest:
    """What an adapter asks of the model."""

    messages: tuple[dict[str, Any], ...]
    mode: Mode
    stop: tuple[str, ...] = ()
    predictor: str = ""
    """The asking predictor's name; empty for calls that belong to none."""


@dataclass
class RunScope:
    """What belongs to one run of the program on one example."""

    seed: int
    sampling: Sampling
    lm_calls: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    own_usages: list[Usage] = field(default_factory=list)
    """Of every call of a predictor with a model of its own; a list, since a program's own threads may add to it."""
    calls: list[PredictorCall | None] = field(default_factory=list)
    """One place per predictor call, in the order of their starts; None until the completion is there."""
    failure: TandemError | None = None
    """A fault of the infrastructure; it outlives a program that swallows it."""
    _seen: dict[bytes, Iterator[int]] = field(default_factory=dict)

    def call_seed(self, request: LMRequest) -> int:
        """A seed that depends on what is asked and how often this run has asked it, never on the order of arrival."""
        what = hashlib.sha256(orjson.dumps((request.predictor, request.messages), default=repr)).digest()
        # setdefault and next are atomic, so that a program's own threads may call at once.
        nth = next(self._seen.setdefault(what, itertools.count()))
        return seed_from(self.seed, what.hex(), nth)


class ServedLM(dspy.BaseLM):  # type: ignore[misc]  # DSPy has no types
    """The served model as a DSPy LM. To be made on the event loop of its client.

    `lm("...")` and `lm(messages=[...])` work as users know them; adapters use `generate` and `agenerate`.
    """

    def __init__(self, client: LMClient, *, mode: Mode, names: Mapping[str, str] | None = None) -> None:
        """`names`: the served name for each predictor that has an adapter of its own."""
        super().__init__(model=client.endpoint.default, model_type="chat" if mode == "chat" else "text", cache=False)
        self._client = client
        self._own = {predictor: client.named(name) for predictor, name in (names or {}).items()}
        self._bridge = Bridge()
        self._mode = mode

    def __call__(self, prompt: str | None = None, *, messages: Any = None, **options: Any) -> list[str]:
        """Completions for a text or for chat messages, as a list."""
        return self.generate(self._request(prompt, messages), options)

    async def acall(self, prompt: str | None = None, *, messages: Any = None, **options: Any) -> list[str]:
        """Completions for a text or for chat messages, as a list."""
        return await self.agenerate(self._request(prompt, messages), options)

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        # Copies of a program go on using the same server.
        return self

    def generate(self, request: LMRequest, options: dict[str, Any]) -> list[str]:
        """The completions (`options["n"]` of them, default 1), from a worker thread. Errors as `LMClient.complete`."""
        scope = current_scope()
        return self._bridge.call(lambda: self._complete_all(scope, request, options))

    async def agenerate(self, request: LMRequest, options: dict[str, Any]) -> list[str]:
        """The completions, from any event loop."""
        scope = current_scope()
        return await self._bridge.acall(lambda: self._complete_all(scope, request, options))

    def close(self) -> None:
        """Fail what worker threads wait for, so that no thread outlives its run for long."""
        self._bridge.close()

    def _request(self, prompt: str | None, messages: Any) -> LMRequest:
        if messages is not None:
            return LMRequest(tuple(messages), "chat")
        if not isinstance(prompt, str):
            found = type(prompt).__name__
            raise TypeError(f"found a {found}; the served LM takes a text, or chat messages as messages=[...]")
        return LMRequest(({"role": "user", "content": prompt},), self._mode)

    async def _complete_all(self, scope: RunScope, request: LMRequest, options: dict[str, Any]) -> list[str]:
        options = {**self.kwargs, **options}
        check_options(options)
        sampling = scope.sampling
        temperature, top_p = options.get("temperature"), options.get("top_p")
        fixed: dict[str, Any] = {
            "messages": request.messages,
            "mode": request.mode,
            "temperature": float(sampling.temperature if temperature is None else temperature),
            "top_p": float(sampling.top_p if top_p is None else top_p),
            "max_tokens": options.get("max_tokens") or sampling.max_tokens,
            "stop": (*request.stop, *as_stops(options.get("stop")), *sampling.stop),
        }
        calls = [LMCall(**fixed, seed=scope.call_seed(request)) for _ in range(options.get("n") or 1)]
        client = self._own.get(request.predictor, self._client)
        if len(calls) == 1:
            return [(await self._complete(scope, client, calls[0])).text]
        completions = await asyncio.gather(*(self._complete(scope, client, call) for call in calls))
        return [completion.text for completion in completions]

    async def _complete(self, scope: RunScope, client: LMClient, call: LMCall) -> Completion:
        if scope.failure is not None:
            raise scope.failure
        try:
            completion = await client.complete(call)
        except (ServingError, BudgetExhausted) as error:
            scope.failure = error
            raise
        except PromptTooLongError as error:
            raise ContextTooLongError(self.model, str(error)) from error
        scope.lm_calls += 1
        scope.prompt_tokens += completion.prompt_tokens
        scope.completion_tokens += completion.completion_tokens
        return completion


def find_scope() -> RunScope | None:
    """The scope of the run that is going on; None outside of a run."""
    scope = thread_local_overrides.get().get(SCOPE)
    return scope if isinstance(scope, RunScope) else None


def current_scope() -> RunScope:
    """The scope of the run that is going on. Raises RuntimeError in a thread that does not belong to one."""
    scope = find_scope()
    if scope is None:
        raise RuntimeError(
            "a predictor was called in a thread that does not carry the run's context; "
            "use dspy.Parallel or dspy.asyncify, or start the thread's work with contextvars.copy_context().run"
        )
    return scope


def as_stops(stop: str | Sequence[str] | None) -> tuple[str, ...]:
    """The stop strings of a call; a single one may be given as a text."""
    return (stop,) if isinstance(stop, str) else tuple(stop or ())


def check_options(options: dict[str, Any]) -> None:
    """Raises ValueError for an LM parameter that the served model cannot be given."""
    unknown = sorted(name for name, value in options.items() if value is not None and name not in SUPPORTED | IGNORED)
    if unknown:
        raise ValueError(f"found the LM parameter {unknown[0]!r}; allowed: {', '.join(sorted(SUPPORTED))}")
