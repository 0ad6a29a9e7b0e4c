"""The HTTP client of an OpenAI-compatible model server (vLLM).

It keeps three kinds of failure apart, because they mean different things to a run: a server that is away or overloaded
is waited for and then a `ServingError`, never a score; a call that the server refuses for what it says is a
`CallFailedError`, one example's failure; and a spent token budget is `BudgetExhausted`, which ends a stage cleanly.
"""

from __future__ import annotations

import asyncio
import copy
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, cast

import aiohttp
import orjson
import tenacity
from yarl import URL

from tandem_api.contract import Endpoint
from tandem_api.errors import AdapterMissingError, ConfigurationError, ServingError
from tandem_api.v1alpha1.status import Usage
from tandem_trainer.lm.budget import TokenBudget
from tandem_trainer.lm.failures import BudgetExhausted as BudgetExhausted
from tandem_trainer.lm.failures import CallFailedError as CallFailedError
from tandem_trainer.lm.failures import ModelMissing, Suspect, Unavailable, cut, describe, refusal, unavailable
from tandem_trainer.lm.failures import PromptTooLongError as PromptTooLongError

Mode = Literal["chat", "completions"]

#: Failures of one call after which it is asked whether the call or the server is at fault.
SUSPECT_AFTER = 5
#: Opening a connection may take this many seconds; a server that does not even accept one is away.
CONNECT_TIMEOUT_SECONDS = 10.0
#: vLLM closes an idle connection after 5 s (VLLM_HTTP_TIMEOUT_KEEP_ALIVE); ours are closed before that.
KEEP_ALIVE_SECONDS = 4.0


@dataclass(frozen=True)
class LMCall:
    """One call. In `completions` mode `messages` is a single user message, whose content is the prompt."""

    messages: tuple[dict[str, Any], ...]
    mode: Mode
    temperature: float
    top_p: float
    max_tokens: int
    stop: tuple[str, ...]
    seed: int


@dataclass(frozen=True, slots=True)
class Completion:
    """The server's answer to one call."""

    text: str
    finish_reason: str
    """"stop", "length", or what else the server says."""
    prompt_tokens: int
    completion_tokens: int


@dataclass(frozen=True)
class Backoff:
    """Waits between the tries of a call: exponential with full jitter, in seconds."""

    first_seconds: float = 0.5
    max_seconds: float = 15.0


class LMClient:
    """Calls one served model, at most `concurrency` calls at once. An async context manager, used on one event loop."""

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        concurrency: int,
        request_timeout_seconds: float,
        unavailable_timeout_seconds: float,
        budget: TokenBudget | None = None,
        backoff: Backoff = Backoff(),
        api_key: str | None = None,
        is_ours: bool = True,
    ) -> None:
        """`is_ours`: the server is one of the run's own, which answers in the name of the endpoint's model. Others
        may answer in another (that of a version), and need not know every parameter."""
        self.endpoint = endpoint
        self._is_ours = is_ours
        self._api_key = api_key
        self._slots = asyncio.Semaphore(concurrency)
        self._request_timeout_seconds = request_timeout_seconds
        self._unavailable_timeout_seconds = unavailable_timeout_seconds
        self._budget = budget or TokenBudget()
        self._calls = self._prompt_tokens = self._completion_tokens = 0
        self._backoff = backoff
        self._outage_since: float | None = None
        self._base = URL(endpoint.url.rstrip("/"))
        self._urls = {"chat": self._base / "v1/chat/completions", "completions": self._base / "v1/completions"}
        self._session: aiohttp.ClientSession
        self._fresh: aiohttp.ClientSession
        """For second tries: a kept connection may lead to the very replica that has just failed."""

    async def __aenter__(self) -> Self:
        timeout = aiohttp.ClientTimeout(
            total=self._request_timeout_seconds,
            sock_connect=min(CONNECT_TIMEOUT_SECONDS, self._request_timeout_seconds),
        )
        headers = {"Content-Type": "application/json"}
        if self._api_key:
            headers["Authorization"] = f"Bearer {self._api_key}"
        # The semaphore bounds the calls: waiting for a free connection would count against a call's own timeout.
        self._session, self._fresh = (
            aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=0,
                    ttl_dns_cache=30,
                    force_close=force_close,
                    keepalive_timeout=None if force_close else KEEP_ALIVE_SECONDS,
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                headers=headers,
                timeout=timeout,
            )
            for force_close in (False, True)
        )
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self._session.close()
        await self._fresh.close()

    def named(self, model: str) -> Self:
        """This client for another name that the same server has; both share connections, slots and budget.

        Each knows its own outages: that one adapter answers says nothing of another.
        """
        view = copy.copy(self)
        view.endpoint = self.endpoint.model_copy(update={"model": model, "adapter": None})
        view._outage_since = None
        return view

    @property
    def usage(self) -> Usage:
        """What all finished calls under this name have cost."""
        return Usage(calls=self._calls, prompt_tokens=self._prompt_tokens, completion_tokens=self._completion_tokens)

    async def complete(self, call: LMCall) -> Completion:
        """The answer to one call.

        Raises CallFailedError when the server refuses this call, ServingError when it stays away for
        `unavailable_timeout_seconds`, AdapterMissingError when it stays without the model, BudgetExhausted when no
        tokens are left.
        """
        self._budget.check()
        # A task of its own: under DSPy a call is awaited some twenty coroutines deep, and every wake-up of the
        # connection would walk through all of them, which costs as much as the rest of the HTTP client.
        return await asyncio.create_task(self._complete(call))

    async def _complete(self, call: LMCall) -> Completion:
        url, body = self._urls[call.mode], self._body(call)
        try:
            return await self._try(self._session, url, body)
        except Unavailable as failure:
            # The retry machinery costs more than a whole call, so that only a failed call pays for it.
            return await self._try_again(call.mode, url, body, failure)

    async def ask(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """The completions API's whole answer to `body`, beside all budgets. Raises as `complete`."""
        suspicions = 0

        async def once() -> dict[str, Any]:
            nonlocal suspicions
            try:
                return await self._ask_once(body)
            except Suspect as failure:
                suspicions += 1
                if suspicions >= SUSPECT_AFTER:
                    await self._blame_call_if_others_succeed("completions", failure)
                raise

        return cast(dict[str, Any], await self._retrying("completions")(once))

    async def _ask_once(self, body: Mapping[str, Any]) -> dict[str, Any]:
        url = self._urls["completions"]
        try:
            async with self._fresh.post(url, data=orjson.dumps(body), allow_redirects=False) as response:
                data = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise unavailable(error) from error
        if response.status != 200:
            raise refusal(response.status, self._without_key(data), response.headers.get("Retry-After"))
        try:
            answer: dict[str, Any] = orjson.loads(data)
            model = answer.get("model")
        except (ValueError, AttributeError) as error:
            raise Suspect(f"an answer that is no completion: {cut(self._without_key(data))}") from error
        if model != self.endpoint.model:
            raise ModelMissing(f"it answered in the name of {model!r}")
        self._outage_since = None
        return answer

    async def check_model(self) -> None:
        """Make sure that the server serves the endpoint's model, or all its adapters.

        Raises AdapterMissingError, naming what is served, when it does not, ServingError when it stays away.
        """

        async def look() -> None:
            try:
                async with self._fresh.get(self._base / "v1/models") as response:
                    served = sorted(str(model["id"]) for model in orjson.loads(await response.read())["data"])
            except (aiohttp.ClientError, TimeoutError, OSError, ValueError, LookupError, TypeError) as error:
                raise Unavailable(f"/v1/models: {describe(error)}") from error
            if not set(self.endpoint.names) <= set(served):
                raise ModelMissing(f"it serves {', '.join(served) or 'nothing'}")
            self._outage_since = None

        await self._retrying()(look)

    def _body(self, call: LMCall) -> bytes:
        body: dict[str, Any] = {
            "model": self.endpoint.default,
            "temperature": call.temperature,
            "top_p": call.top_p,
            "max_tokens": call.max_tokens,
            "seed": call.seed,
        }
        if call.stop:
            body["stop"] = call.stop
        if call.mode == "chat":
            body["messages"] = call.messages
        else:
            body["prompt"] = call.messages[0]["content"]
        try:
            return orjson.dumps(body)
        except TypeError as error:
            raise CallFailedError(f"the prompt cannot be sent as JSON: {error}") from error

    def _without_key(self, data: bytes) -> bytes:
        """An answer that may be told of, without our key: some servers repeat it."""
        return data.replace(self._api_key.encode(), b"...") if self._api_key else data

    async def _try(self, session: aiohttp.ClientSession, url: URL, body: bytes) -> Completion:
        """One request. Raises Unavailable (or one of its kinds) where another try may help."""
        try:
            async with self._slots:
                # Asked here, too: while it waited for its slot, others may have used up what was left.
                self._budget.check()
                async with session.post(url, data=body, allow_redirects=False) as response:
                    data = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise unavailable(error) from error
        if response.status != 200:
            failure = refusal(response.status, self._without_key(data), response.headers.get("Retry-After"))
            if not self._is_ours and isinstance(failure, (ModelMissing, ServingError)):
                raise ConfigurationError(
                    f"the model {self.endpoint.model!r} at {self.endpoint.url}: {failure}; "
                    "check its url, model and keySecret"
                )
            raise failure
        try:
            answer = orjson.loads(data)
            choice, usage, model = answer["choices"][0], answer.get("usage") or {}, answer.get("model")
            text = choice["message"]["content"] if "message" in choice else choice["text"]
            completion = Completion(
                text=text or "",
                finish_reason=choice.get("finish_reason") or "",
                prompt_tokens=usage.get("prompt_tokens") or 0,
                completion_tokens=usage.get("completion_tokens") or 0,
            )
        except (ValueError, LookupError, TypeError, AttributeError) as error:
            raise Suspect(f"an answer that is no completion: {cut(self._without_key(data))}") from error
        if self._is_ours and model != self.endpoint.default:
            raise ModelMissing(f"it answered in the name of {model!r}")
        self._outage_since = None
        self._calls += 1
        self._prompt_tokens += completion.prompt_tokens
        self._completion_tokens += completion.completion_tokens
        self._budget.spend(completion.prompt_tokens + completion.completion_tokens)
        return completion

    async def _try_again(self, mode: Mode, url: URL, body: bytes, first: Unavailable) -> Completion:
        """The tries after the first one, which failed."""
        failures, suspicions = [first], 0

        async def once() -> Completion:
            nonlocal suspicions
            # The first failure is replayed into the retry machinery, so that it waits before the second try.
            failure = failures.pop() if failures else None
            if failure is None:
                self._budget.check()
                try:
                    return await self._try(self._fresh, url, body)
                except Unavailable as error:
                    failure = error
            suspicions += isinstance(failure, Suspect)
            if suspicions >= SUSPECT_AFTER:
                await self._blame_call_if_others_succeed(mode, failure)
            raise failure

        return cast(Completion, await self._retrying(mode)(once))

    def _retrying(self, mode: Mode | None = None) -> tenacity.AsyncRetrying:
        """Tries until the server has been away for too long, and says then what was wrong."""

        def is_away_too_long(_: tenacity.RetryCallState) -> bool:
            now = time.monotonic()
            # Any call's success, in between, ends the outage.
            self._outage_since = self._outage_since or now
            return now - self._outage_since >= self._unavailable_timeout_seconds

        async def give_up(state: tenacity.RetryCallState) -> Any:
            failure = _failure(state)
            if mode is not None and isinstance(failure, Suspect):
                await self._blame_call_if_others_succeed(mode, failure)
            raise self._error(failure) from failure

        jitter = tenacity.wait_random_exponential(multiplier=self._backoff.first_seconds, max=self._backoff.max_seconds)
        return tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(Unavailable),
            stop=is_away_too_long,
            wait=lambda state: jitter(state) + min(_failure(state).retry_after, self._unavailable_timeout_seconds),
            retry_error_callback=give_up,
        )

    async def _blame_call_if_others_succeed(self, mode: Mode, failure: Unavailable) -> None:
        """Raises CallFailedError if the server answers a tiny new call: then it is this call that it cannot answer.

        Calls that were under way do not count: a server that shuts down finishes those and refuses new ones.
        """
        probe = LMCall(({"role": "user", "content": "Hello"},), mode, 0.0, 1.0, max_tokens=1, stop=(), seed=0)
        try:
            await self._try(self._fresh, self._urls[mode], self._body(probe))
        except (Unavailable, CallFailedError, ServingError):
            return
        raise CallFailedError(f"the server answers others, but not this call: {failure}") from failure

    def _error(self, failure: Unavailable) -> ServingError:
        """What is raised after the last try."""
        where, waited = self.endpoint.url, f"{self._unavailable_timeout_seconds:g} s"
        if isinstance(failure, ModelMissing):
            wanted = ", ".join(repr(name) for name in self.endpoint.names)
            return AdapterMissingError(f"the model server at {where} does not serve {wanted} after {waited}: {failure}")
        return ServingError(
            f"the model server at {where} gave no answer for {waited} (evaluation.unavailableTimeoutSeconds): {failure}"
        )


def _failure(state: tenacity.RetryCallState) -> Unavailable:
    assert state.outcome is not None
    return cast(Unavailable, state.outcome.exception())
