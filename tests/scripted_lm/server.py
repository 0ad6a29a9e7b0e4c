"""A scripted OpenAI-compatible LM server: deterministic answers and faults over real HTTP, light enough to benchmark.

    python tests/scripted_lm/server.py --port 8000 --model base --latency 0.3 --script answers.py:answer

A script is a function `answer(request: dict) -> str | Fault | Scored`. The request is the call's JSON body with three
more keys: `endpoint` ("chat" or "completions"), `text` (the prompt, or all chat messages one under another) and `nth`
(how many identical requests came before this one). Like vLLM the server refuses a model that it does not serve with
404, ends completions at the request's stop strings and cuts them at `max_tokens`, or `max_completion_tokens` (one word
is one token here).

HTTP is parsed by hand over an asyncio.Protocol: what is benchmarked is the client, so the server must cost little.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import importlib.util
import itertools
import signal
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Self, cast

import orjson
import uvloop

#: Calls beyond so many count as waiting ones; they are answered all the same.
MOST_AT_ONCE = 2
REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    429: "Too Many Requests",
    500: "Internal Server Error",
}


@dataclass(frozen=True)
class Fault:
    """Something other than a good answer."""

    status: int = 200
    """Answer with this status and an error body in vLLM's shape."""
    retry_after: float | None = None
    """Seconds for the Retry-After header."""
    drop: bool = False
    """Close the connection without an answer."""
    malformed: bool = False
    """Answer 200 with a body that is not JSON."""
    wrong_model: str | None = None
    """Answer well, but in the name of this model."""
    latency: float | None = None
    """Seconds until the answer, instead of the server's own latency."""
    text: str = "a scripted fault"
    """The completion, or the error's message."""


@dataclass(frozen=True)
class Scored:
    """The answer to a call for `prompt_logprobs`: each token of the prompt has this one."""

    logprob: float


Answer = Callable[[dict[str, Any]], str | Fault | Scored]


def echo(request: dict[str, Any]) -> str:
    """The default script: the last word of the prompt."""
    words = request["text"].split()
    return words[-1] if words else ""


class ScriptedLM:
    """What the server answers and what it has seen; knows nothing of sockets."""

    def __init__(
        self,
        answer: Answer = echo,
        *,
        models: Sequence[str] = ("base",),
        log: BinaryIO | None = None,
        key: str | None = None,
    ) -> None:
        """`key`: calls without this bearer token are refused; None: anybody may call."""
        self.answer = answer
        self.models = set(models)
        self.adapters: dict[str, str] = {}
        """Folders of the adapters that were loaded, by their names."""
        self.log = log
        self.key = key
        self.calls: Counter[str] = Counter()
        self.statuses: Counter[int] = Counter()
        self.answered: dict[bytes, int] = {}
        self.seen: dict[bytes, int] = {}
        self.in_flight = 0
        self.max_in_flight = 0
        self.tokens = 0
        self.first_call = self.last_answer = 0.0
        self.tells = False
        """Whether it answers at /metrics."""
        self.prompt_words = self.known_words = 0
        """Words of all prompts, and those of them that the prompt before began with, too."""
        self._last_prompt = ""
        self.requests: list[dict[str, Any]] | None = None
        """Every request body, where a test asked for it."""

    def metrics(self) -> bytes:
        """As vLLM's /metrics, of its metrics a few. Every call in flight may be of any adapter."""
        now, adapters = time.time(), ",".join(sorted(self.adapters)) if self.in_flight else ""
        model = 'engine="0",model_name="base"'
        values = {
            "num_requests_running gauge": self.in_flight,
            "num_requests_waiting gauge": max(0, self.in_flight - MOST_AT_ONCE),
            "kv_cache_usage_perc gauge": min(1.0, self.in_flight / 64),
            "prefix_cache_queries_total counter": self.prompt_words,
            "prefix_cache_hits_total counter": self.known_words,
        }
        lines = []
        for name_and_kind, value in values.items():
            name, kind = name_and_kind.split()
            lines += [f"# TYPE vllm:{name.removesuffix('_total')} {kind}", f"vllm:{name}{{{model}}} {float(value)}"]
        labels = f'max_lora="1",running_lora_adapters="{adapters}",waiting_lora_adapters=""'
        lines += ["# TYPE vllm:lora_requests_info gauge", f"vllm:lora_requests_info{{{labels}}} {now!r}"]
        return ("\n".join(lines) + "\n").encode()

    def stats(self) -> dict[str, Any]:
        """Counts: `calls` by model, `distinct` bodies, `repeats` (good answers given again), `statuses` and so on.

        `tokens` are those of all prompts and completions, `seconds` the time from the first call to the last answer.
        """
        return {
            "calls": dict(self.calls),
            "distinct": len(self.seen),
            "repeats": sum(count - 1 for count in self.answered.values()),
            "statuses": {str(status): count for status, count in self.statuses.items()},
            "max_in_flight": self.max_in_flight,
            "tokens": self.tokens,
            "seconds": max(0.0, self.last_answer - self.first_call),
        }

    def complete(self, endpoint: str, body: bytes) -> tuple[Fault, bytes]:
        """How to answer (status, latency, drop) and the response's body."""
        try:
            request = orjson.loads(body)
        except ValueError:
            return Fault(status=400), _error(400, "the body is not JSON", "BadRequestError")
        model = request.get("model")
        self.calls[str(model)] += 1
        key = hashlib.blake2b(body, digest_size=12).digest()
        nth = self.seen.get(key, 0)
        self.seen[key] = nth + 1
        request["endpoint"], request["nth"], request["text"] = endpoint, nth, _prompt_text(request)
        self._note_prompt(request["text"])
        if self.requests is not None:
            self.requests.append(request)
        if self.log is not None:
            self.log.write(orjson.dumps(request) + b"\n")
        if model not in self.models and model not in self.adapters:
            message = f"The model `{model}` does not exist."
            return Fault(status=404), _error(404, message, "NotFoundError")
        try:
            answer = self.answer(request)
        except Exception as error:
            return Fault(status=400), _error(400, f"the script failed: {error!r}", "BadRequestError")
        fault = answer if isinstance(answer, Fault) else _GOOD
        if fault.malformed:
            return fault, b'{"choices": [{"text": "cut of'
        if fault.status != 200:
            return fault, _error(fault.status, fault.text, "InternalServerError")
        if not fault.drop:
            self.answered[key] = self.answered.get(key, 0) + 1
        text = answer if isinstance(answer, str) else fault.text
        logprob = answer.logprob if isinstance(answer, Scored) else None
        tokens, body = _completion(request, text, fault.wrong_model or str(model), logprob)
        self.tokens += tokens
        return fault, body

    def _note_prompt(self, text: str) -> None:
        if self.tells:
            self.prompt_words += text.count(" ") + 1
            same = itertools.takewhile(
                lambda pair: pair[0] == pair[1], zip(text.split(), self._last_prompt.split(), strict=False)
            )
            self.known_words += sum(1 for _ in same)
            self._last_prompt = text

    def list_models(self) -> bytes:
        """The body of /v1/models: only adapters have a parent."""
        base = [{"id": name, "object": "model", "owned_by": "tandem"} for name in sorted(self.models)]
        parent = min(self.models, default=None)
        loaded = [
            {"id": name, "object": "model", "owned_by": "tandem", "root": root, "parent": parent}
            for name, root in sorted(self.adapters.items())
        ]
        return orjson.dumps({"object": "list", "data": [*base, *loaded]})

    def load_adapter(self, body: bytes) -> tuple[int, bytes]:
        """Serve an adapter from now on: status and body, as vLLM answers."""
        request = orjson.loads(body)
        name, root = request["lora_name"], request["lora_path"]
        if name in self.adapters:
            return 400, _error(400, f"The lora adapter '{name}' has already been loaded.", "InvalidUserInput")
        if not (Path(root) / "adapter_config.json").is_file():
            return 404, _error(404, f"No adapter found for '{name}'", "NotFoundError")
        self.adapters[name] = root
        return 200, f"Success: LoRA adapter '{name}' added successfully.".encode()

    def unload_adapter(self, body: bytes) -> tuple[int, bytes]:
        """Serve it no longer."""
        name = orjson.loads(body)["lora_name"]
        if self.adapters.pop(name, None) is None:
            return 404, _error(404, f"The lora adapter '{name}' cannot be found.", "NotFoundError")
        return 200, f"Success: LoRA adapter '{name}' removed successfully.".encode()


_GOOD = Fault()


def _prompt_text(request: dict[str, Any]) -> str:
    if "prompt" in request:
        return str(request["prompt"])
    return "\n".join(str(message.get("content", "")) for message in request.get("messages", ()))


def _error(status: int, message: str, kind: str) -> bytes:
    return orjson.dumps({"error": {"message": message, "type": kind, "param": None, "code": status}})


def _completion(request: dict[str, Any], text: str, model: str, logprob: float | None = None) -> tuple[int, bytes]:
    """The tokens of prompt and completion, and the response's body."""
    ends = [position for stop in request.get("stop") or () if (position := text.find(stop)) >= 0]
    if ends:
        text = text[: min(ends)]
    words, limit = text.split(" "), request.get("max_tokens") or request.get("max_completion_tokens") or 16
    finish = "stop"
    if len(words) > limit:
        text, finish = " ".join(words[:limit]), "length"
    choice: dict[str, Any] = {"index": 0, "finish_reason": finish}
    if request["endpoint"] == "chat":
        choice["message"] = {"role": "assistant", "content": text}
    else:
        choice["text"] = text
    if logprob is not None:
        after_others = [{str(token): {"logprob": logprob, "rank": 1}} for token in request["prompt"][1:]]
        choice["prompt_logprobs"] = [None, *after_others]
    prompt_tokens, completion_tokens = request["text"].count(" ") + 1, min(len(words), limit)
    usage = {"prompt_tokens": prompt_tokens, "completion_tokens": completion_tokens}
    usage["total_tokens"] = prompt_tokens + completion_tokens
    body = {"id": "cmpl-1", "created": 0, "model": model, "choices": [choice], "usage": usage}
    return usage["total_tokens"], orjson.dumps(body)


class _Http(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, one request at a time on a connection; bodies need a Content-Length."""

    def __init__(self, lm: ScriptedLM, latency: float) -> None:
        self.lm = lm
        self.latency = latency
        self.buffer = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop has transports of its own

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].lower()
            length, at = 0, head.find(b"\r\ncontent-length:")
            if at >= 0:
                length = int(head[at + 17 :].split(b"\r\n", 1)[0])
            if len(self.buffer) < end + 4 + length:
                return
            method, path, _ = self.buffer[: self.buffer.find(b"\r\n")].split(b" ", 2)
            body = self.buffer[end + 4 : end + 4 + length]
            self.buffer = self.buffer[end + 4 + length :]
            if self.lm.key is None or f"\r\nauthorization: bearer {self.lm.key.lower()}".encode() in head:
                self._handle(method + b" " + path, body)
            else:
                self._write(401, _error(401, "the key is wrong", "AuthenticationError"))

    def _handle(self, route: bytes, body: bytes) -> None:
        lm = self.lm
        if route in (b"POST /v1/completions", b"POST /v1/chat/completions"):
            fault, answer = lm.complete("chat" if b"chat" in route else "completions", body)
            latency = self.latency if fault.latency is None else fault.latency
            lm.first_call = lm.first_call or time.monotonic()
            lm.in_flight += 1
            lm.max_in_flight = max(lm.max_in_flight, lm.in_flight)
            if latency > 0:
                asyncio.get_running_loop().call_later(latency, self._finish, fault, answer)
            else:
                self._finish(fault, answer)
        elif route == b"GET /health":
            self._write(200, b"")
        elif route == b"GET /v1/models":
            self._write(200, lm.list_models())
        elif route == b"POST /v1/load_lora_adapter":
            self._write(*lm.load_adapter(body))
        elif route == b"POST /v1/unload_lora_adapter":
            self._write(*lm.unload_adapter(body))
        elif route == b"GET /metrics" and lm.tells:
            self._write(200, lm.metrics(), kind=b"text/plain")
        elif route == b"GET /stats":
            self._write(200, orjson.dumps(lm.stats()))
        else:
            self._write(404, b'{"detail":"Not Found"}')

    def _finish(self, fault: Fault, answer: bytes) -> None:
        self.lm.in_flight -= 1
        self.lm.last_answer = time.monotonic()
        if fault.drop:
            self.transport.abort()
            return
        self.lm.statuses[fault.status] += 1
        extra = b"" if fault.retry_after is None else b"Retry-After: %d\r\n" % round(fault.retry_after)
        self._write(fault.status, answer, extra)

    def _write(self, status: int, body: bytes, extra: bytes = b"", kind: bytes = b"application/json") -> None:
        if self.transport.is_closing():
            return
        reason = REASONS.get(status, "Status").encode()
        self.transport.write(
            b"HTTP/1.1 %d %b\r\nContent-Type: %b\r\nContent-Length: %d\r\n%b\r\n%b"
            % (status, reason, kind, len(body), extra, body)
        )


async def listen(lm: ScriptedLM, *, host: str = "127.0.0.1", port: int = 0, latency: float = 0.0) -> asyncio.Server:
    """Start to serve on the running loop; port 0 takes a free one."""
    return await asyncio.get_running_loop().create_server(lambda: _Http(lm, latency), host, port, backlog=1024)


class ScriptedServer:
    """The server in a thread of this process: `with ScriptedServer(answer) as server: ... server.url`."""

    def __init__(
        self,
        answer: Answer = echo,
        *,
        models: Sequence[str] = ("base",),
        latency: float = 0.0,
        port: int = 0,
        key: str | None = None,
    ) -> None:
        self.lm = ScriptedLM(answer, models=models, key=key)
        self.lm.requests = []
        self.latency = latency
        self.port = port
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: uvloop.run(self._serve()), daemon=True)

    @property
    def url(self) -> str:
        """Base URL, without /v1."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def requests(self) -> list[dict[str, Any]]:
        """Every request body so far."""
        assert self.lm.requests is not None
        return self.lm.requests

    def stats(self) -> dict[str, Any]:
        """What /stats answers."""
        return self.lm.stats()

    def __enter__(self) -> Self:
        self._thread.start()
        if not self._ready.wait(10):
            raise RuntimeError("the scripted LM server did not start")
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)

    async def _serve(self) -> None:
        self._loop, self._stop = asyncio.get_running_loop(), asyncio.Event()
        server = await listen(self.lm, port=self.port, latency=self.latency)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()


def load_script(reference: str) -> Answer:
    """The function named by `path.py:function`."""
    path, _, name = reference.rpartition(":")
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None or not Path(path).exists():
        raise SystemExit(f"--script {reference}: there is no Python file {path!r}; write path.py:function")
    module = importlib.util.module_from_spec(spec)
    # A script's `from tests.scripted_lm.server import Fault` must find the class of this very process.
    sys.modules["tests.scripted_lm.server"] = sys.modules[__name__]
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    function: Answer = getattr(module, name)
    return function


async def _main(arguments: argparse.Namespace) -> None:
    log = Path(arguments.log).open("ab", buffering=0) if arguments.log else None  # noqa: ASYNC230, SIM115 - before serving
    answer = load_script(arguments.script) if arguments.script else echo
    lm = ScriptedLM(answer, models=arguments.model or ["base"], log=log)
    lm.tells = arguments.metrics
    server = await listen(lm, host=arguments.host, port=arguments.port, latency=arguments.latency)
    stop, loop = asyncio.Event(), asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    print(f"listening on http://{arguments.host}:{server.sockets[0].getsockname()[1]}", flush=True)
    while not stop.is_set():
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), 0.1)
        if log is not None:
            log.flush()
    server.close()
    if log is not None:
        log.close()


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(description="A scripted OpenAI-compatible LM server.")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0, help="0 takes a free port and prints it")
    parser.add_argument("--model", action="append", help="a served model name; may be given several times")
    parser.add_argument("--latency", type=float, default=0.0, help="seconds per call")
    parser.add_argument("--script", help="path.py:function, answer(request) -> str | Fault")
    parser.add_argument("--metrics", action="store_true", help="answer at /metrics as vLLM does")
    parser.add_argument("--log", help="append every request to this file, one JSON a line")
    uvloop.run(_main(parser.parse_args()))


if __name__ == "__main__":
    main()
