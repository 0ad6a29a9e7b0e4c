"""DSPy on our plain format: the same prompts over the same API as ours, through DSPy's own seams.

DSPy's chat format is beyond the smallest models (SmolLM2-135M: none of its answers can be read), so both sides get the
format that such models follow. The adapter is ours, and what calls the completions API is an engine of `dspy.LM`;
cache, retries, threads and all else are DSPy's.
"""

from __future__ import annotations

import json
import urllib.request
from typing import Any

import dspy
from dspy.lm15 import Message, Request, Response, TextPart, Usage

from tandem_trainer.program.plain import PlainAdapter


class PlainForDspy(PlainAdapter):
    """The plain format for a `dspy.LM`, which has to be told where an answer ends."""

    def _call_preprocess(self, lm: Any, lm_kwargs: Any, signature: Any, inputs: Any) -> Any:
        lm_kwargs["stop"] = list(self.stop_strings(signature))
        return signature


class CompletionsEngine:
    """One call of the completions API. Raises what urllib raises."""

    def __init__(self, url: str) -> None:
        """`url`: without /v1."""
        self._url = f"{url}/v1/completions"

    def complete(self, request: Request) -> Response:
        (message,) = request.messages
        config = request.config
        asked = {
            "model": request.model,
            "prompt": message.text,
            "max_tokens": config.max_tokens,
            "temperature": config.temperature,
            "stop": list(config.stop),
        }
        post = urllib.request.Request(
            self._url, json.dumps(asked).encode(), {"Content-Type": "application/json"}, method="POST"
        )
        with urllib.request.urlopen(post, timeout=600) as response:
            told = json.load(response)
        (choice,) = told["choices"]
        usage = told["usage"]
        return Response(
            id=None,
            model=request.model,
            message=Message.assistant([TextPart(choice["text"])]),
            finish_reason=choice["finish_reason"],
            usage=Usage(input_tokens=usage["prompt_tokens"], output_tokens=usage["completion_tokens"]),
        )

    def close(self) -> None:
        """Nothing is kept open."""


def plain_lm(url: str, model: str, *, max_tokens: int, temperature: float) -> dspy.LM:
    return dspy.LM(model, engine=CompletionsEngine(url), max_tokens=max_tokens, temperature=temperature)
