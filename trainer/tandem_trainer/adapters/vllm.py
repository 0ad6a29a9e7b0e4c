"""One vLLM over HTTP: what it lists, what it does, and the two calls that change its adapters (vLLM 0.32)."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import aiohttp
from prometheus_client.parser import text_string_to_metric_families

from tandem_trainer.adapters.canary import CanaryUnansweredError
from tandem_trainer.adapters.plan import Activity, Observed

#: A busy processor makes answers slow; a load reads the adapter from disk.
_ANSWER_SECONDS, _UNLOAD_SECONDS, _LOAD_SECONDS = 4.0, 30.0, 120.0
#: A short prompt, on a server that may be busy or apply adapters slowly (on a CPU).
_COMPLETION_SECONDS: Final = 120.0
#: The server refuses a call for what it says, so that it would be refused again.
_REFUSALS: Final = frozenset({400, 413, 422})
#: In its development mode only: states in which /health is 200 and nothing is served.
_RESTING: Final = {"/is_sleeping": "is_sleeping", "/is_paused": "is_paused"}
_RUNNING, _WAITING, _LORA = "vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:lora_requests_info"


@dataclass(frozen=True)
class Answer:
    """What came of a call that changes something."""

    status: int | None
    """None: no answer came, and whether it was done is unknown."""
    text: str
    """vLLM's own words, or what went wrong."""
    sent: bool = True
    """False: nobody listens there, so nothing was done."""


class NoAnswerError(Exception):
    """The server did not answer this time."""


class VLLM:
    """The server at `url`. Its methods but `complete` never raise for what it does or does not answer."""

    def __init__(self, session: aiohttp.ClientSession, url: str) -> None:
        self._session = session
        self._url = url.rstrip("/")

    async def observe(self) -> Observed:
        """Whether it is up, and which adapters it lists."""
        try:
            health, models, *resting = await asyncio.gather(
                *(self._get(path) for path in ("/health", "/v1/models", *_RESTING))
            )
        except (aiohttp.ClientError, TimeoutError) as error:
            return Observed(up=False, message=f"vLLM does not answer at {self._url}: {_words(error)}")
        for path, (status, text) in (("/health", health), ("/v1/models", models)):
            if status != 200:
                return Observed(up=False, message=f"vLLM is not well: GET {path} answers {status}: {_said(text)}")
        for (path, key), (status, text) in zip(_RESTING.items(), resting, strict=True):
            if status == 200 and _object(text).get(key):
                return Observed(up=False, message=f"vLLM serves nothing now: GET {path} answers {text}")
        roots = adapter_roots(models[1])
        if roots is None:
            return Observed(up=False, message=f"GET {self._url}/v1/models answers no list of models: {models[1][:200]}")
        return Observed(up=True, roots=roots)

    async def activity(self) -> Activity | None:
        """Its calls; None where its metrics do not tell."""
        try:
            status, text = await self._get("/metrics")
        except (aiohttp.ClientError, TimeoutError):
            return None
        return activity(text) if status == 200 else None

    async def load(self, name: str, root: str) -> Answer:
        """Ask it to load the adapter in the folder `root`, never in place of another."""
        body = {"lora_name": name, "lora_path": root}
        return await self._post("/v1/load_lora_adapter", body, _LOAD_SECONDS)

    async def unload(self, name: str) -> Answer:
        """Ask it to forget an adapter; 404 says that it has."""
        return await self._post("/v1/unload_lora_adapter", {"lora_name": name}, _UNLOAD_SECONDS)

    async def complete(self, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """The completions API's answer. Raises NoAnswerError, and CanaryUnansweredError for a call that it refuses."""
        timeout = aiohttp.ClientTimeout(total=_COMPLETION_SECONDS)
        try:
            async with self._session.post(f"{self._url}/v1/completions", json=body, timeout=timeout) as response:
                status, text = response.status, await response.text()
        except (aiohttp.ClientError, TimeoutError) as error:
            raise NoAnswerError(f"POST /v1/completions got no answer: {_words(error)}") from error
        if status in _REFUSALS:
            raise CanaryUnansweredError(f"vLLM answered {status}: {_said(text)}")
        if status != 200:
            raise NoAnswerError(f"vLLM answered {status} to POST /v1/completions: {_said(text)}")
        return _object(text)

    async def _get(self, path: str) -> tuple[int, str]:
        timeout = aiohttp.ClientTimeout(total=_ANSWER_SECONDS)
        async with self._session.get(f"{self._url}{path}", timeout=timeout) as response:
            return response.status, await response.text()

    async def _post(self, path: str, body: Mapping[str, str], seconds: float) -> Answer:
        timeout = aiohttp.ClientTimeout(total=seconds)
        try:
            async with self._session.post(f"{self._url}{path}", json=body, timeout=timeout) as response:
                return Answer(response.status, _said(await response.text()))
        except aiohttp.ClientConnectorError as error:
            return Answer(None, f"POST {path}: {_words(error)}", sent=False)
        except (aiohttp.ClientError, TimeoutError) as error:
            return Answer(None, f"POST {path} got no answer: {_words(error)}")


def adapter_roots(models: str) -> dict[str, str] | None:
    """The folder of each adapter in the answer of /v1/models, by name. None for an answer that is no list of models."""
    try:
        # A base model has no parent.
        return {model["id"]: model["root"] for model in json.loads(models)["data"] if model.get("parent")}
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def activity(metrics: str) -> Activity | None:
    """The calls in the answer of /metrics. None where it does not tell of them (--disable-log-stats)."""
    calls: dict[tuple[str, str], float] = {}
    adapters, newest = "", -1.0
    try:
        for family in text_string_to_metric_families(metrics):
            for sample in family.samples:
                if sample.name in (_RUNNING, _WAITING):
                    calls[sample.name, sample.labels.get("engine", "")] = sample.value
                elif sample.name == _LORA and sample.value > newest:
                    # One sample for each set of adapters there ever was; its value is when it was last so.
                    newest = sample.value
                    labels = sample.labels
                    adapters = f"{labels['running_lora_adapters']},{labels['waiting_lora_adapters']}"
    except (ValueError, KeyError):
        return None
    if not {_RUNNING, _WAITING} <= {name for name, _ in calls}:
        return None
    names = frozenset(name.strip() for name in adapters.split(",") if name.strip())
    return Activity(int(sum(calls.values())), names, engines=len({engine for _, engine in calls}))


def _said(text: str) -> str:
    """The message of vLLM's error body, or the body."""
    error = _object(text).get("error")
    message = error.get("message") if isinstance(error, dict) else None
    return " ".join(str(message or text).split())[:1000]


def _object(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _words(error: Exception) -> str:
    if isinstance(error, aiohttp.ClientConnectorError) and error.errno:
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
