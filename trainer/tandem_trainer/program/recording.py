"""Adapters that call the served model directly and record every predictor call in the run's scope.

A predictor with a model of its own calls it by DSPy's own path, to which a callback listens.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import dspy
from dspy.adapters.utils import serialize_for_json
from dspy.dsp.utils.settings import thread_local_overrides
from dspy.utils.callback import BaseCallback
from dspy.utils.exceptions import AdapterParseError

from tandem_api.records import PredictorCall
from tandem_api.v1alpha1.status import Usage
from tandem_trainer.lm.client import Mode
from tandem_trainer.lm.recorded import RecordedLM
from tandem_trainer.lm.served import LMRequest, RunScope, ServedLM, as_stops, current_scope, find_scope

#: The attribute of a `dspy.Predict` that holds its name in the program. It survives the copies that modules such as
#: `dspy.BestOfN` make of predictors.
NAME_ATTRIBUTE = "tandem_name"


class RecordingAdapter:
    """A mixin for a `dspy.Adapter`, which keeps its own formatting and parsing.

    It has no base on purpose: DSPy wraps `format` and `parse` anew in every subclass of its Adapter, so that a mixin
    derived from that would hide those of the adapter beside it.
    """

    mode: Mode = "chat"

    def stop_strings(self, signature: Any) -> tuple[str, ...]:
        """What ends a completion of this format."""
        return ()

    def __call__(self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any) -> list[dict[str, Any]]:
        if not isinstance(lm, ServedLM):
            lm_kwargs = self._with_stop(lm, lm_kwargs, signature)
            with _listening(lm_kwargs, inputs) as own:
                outputs: list[dict[str, Any]] = super().__call__(lm, lm_kwargs, signature, demos, inputs)  # type: ignore[misc]
                own.parsed = outputs
            return outputs
        call = _Call(self, lm, lm_kwargs, signature, demos, inputs)
        return call.read(lm.generate(call.request, lm_kwargs))

    async def acall(self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any) -> list[dict[str, Any]]:
        if not isinstance(lm, ServedLM):
            lm_kwargs = self._with_stop(lm, lm_kwargs, signature)
            with _listening(lm_kwargs, inputs) as own:
                outputs: list[dict[str, Any]] = await super().acall(lm, lm_kwargs, signature, demos, inputs)  # type: ignore[misc]
                own.parsed = outputs
            return outputs
        call = _Call(self, lm, lm_kwargs, signature, demos, inputs)
        return call.read(await lm.agenerate(call.request, lm_kwargs))

    def _with_stop(self, lm: Any, options: dict[str, Any], signature: Any) -> dict[str, Any]:
        """The options of a call, with what ends a completion of this format where the run's model makes it."""
        if not isinstance(lm, RecordedLM):
            return options
        return {**options, "stop": (*self.stop_strings(signature), *as_stops(options.get("stop")))}


class _Call:
    """One predictor call, from its rendering to its record."""

    def __init__(
        self, adapter: Any, lm: ServedLM, options: dict[str, Any], signature: Any, demos: Any, inputs: Any
    ) -> None:
        self.adapter, self.lm, self.options, self.signature, self.inputs = adapter, lm, options, signature, inputs
        self.rendered_signature = adapter._call_preprocess(lm, options, signature, inputs)
        messages = tuple(adapter.format(self.rendered_signature, demos, inputs))
        self.request = LMRequest(messages, adapter.mode, adapter.stop_strings(signature), _calling_predictor())
        self.scope = current_scope()
        # The place is taken before the call is made, so that the order of calls is that of their starts.
        self.place = _reserve(self.scope, options.get("n") or 1) if self.request.predictor else None

    def read(self, completions: list[str]) -> list[dict[str, Any]]:
        """The parsed outputs of every completion; also those that cannot be parsed are recorded."""
        outputs: list[dict[str, Any]] = []
        for ordinal, completion in enumerate(completions):
            try:
                parsed = self.adapter._call_postprocess(
                    self.rendered_signature, self.signature, [completion], self.lm, self.options
                )[0]
            except AdapterParseError:
                self._record(ordinal, completion, None)
                raise
            self._record(ordinal, completion, parsed)
            outputs.append(parsed)
        return outputs

    def _record(self, ordinal: int, completion: str, parsed: dict[str, Any] | None) -> None:
        if self.place is not None:
            self.scope.calls[self.place + ordinal] = PredictorCall(
                predictor=self.request.predictor,
                inputs=as_json(dict(self.inputs)),
                messages=self.request.messages,
                completion=completion,
                outputs=None if parsed is None else as_json(parsed),
            )


@dataclass
class _OwnCall(BaseCallback):  # type: ignore[misc]  # DSPy has no types
    """A call of a predictor's own model, as DSPy tells of it."""

    messages: Any = ()
    completions: list[Any] = field(default_factory=list)
    lm_calls: int = 0
    parsed: list[dict[str, Any]] = field(default_factory=list)
    """As many as the completions, if all could be parsed."""

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        """Keep the prompt. An adapter may ask again in another format; then the last answer is the one that counts."""
        self.messages = inputs.get("messages") or [{"role": "user", "content": inputs.get("prompt")}]
        self.completions = []

    def on_lm_end(self, call_id: str, outputs: Any, exception: Exception | None = None) -> None:
        """Keep the completions."""
        self.lm_calls += 1
        self.completions = list(outputs or ())

    def records(self, predictor: str, inputs: Any) -> list[PredictorCall]:
        """One for each completion."""
        return [
            PredictorCall(
                predictor=predictor,
                inputs=as_json(dict(inputs)),
                messages=tuple(as_json(list(self.messages))),
                completion=str(completion.get("text") if isinstance(completion, dict) else completion),
                outputs=as_json(self.parsed[ordinal]) if ordinal < len(self.parsed) else None,
                own_lm=True,
            )
            for ordinal, completion in enumerate(self.completions)
        ]


@contextmanager
def _listening(options: dict[str, Any], inputs: Any) -> Iterator[_OwnCall]:
    """Record what a predictor's own model is asked and answers, in the run's scope; elsewhere nothing is recorded."""
    scope, predictor, own = find_scope(), _calling_predictor(), _OwnCall()
    if scope is None or not predictor:
        yield own
        return
    count = options.get("n") or 1
    place = _reserve(scope, count)
    try:
        with dspy.context(callbacks=[*dspy.settings.callbacks, own]), dspy.track_usage() as tracker:
            yield own
    finally:
        scope.calls[place : place + count] = (own.records(predictor, inputs) + [None] * count)[:count]
        scope.own_usages.append(_usage(own.lm_calls, tracker.get_total_tokens()))


def _usage(calls: int, tokens: dict[str, dict[str, Any]]) -> Usage:
    """What DSPy has counted, by model; nothing for an answer from DSPy's cache, or where the model tells nothing."""
    return Usage(
        calls=calls,
        prompt_tokens=sum(of_model.get("prompt_tokens") or 0 for of_model in tokens.values()),
        completion_tokens=sum(of_model.get("completion_tokens") or 0 for of_model in tokens.values()),
    )


def _calling_predictor() -> str:
    """The name of the predictor that is being called; empty for one that is not the program's own to optimize."""
    callers = thread_local_overrides.get().get("caller_modules")
    return getattr(callers[-1], NAME_ATTRIBUTE, "") if callers else ""


def _reserve(scope: RunScope, count: int) -> int:
    place = len(scope.calls)
    scope.calls.extend([None] * count)
    return place


def as_json(value: Any) -> Any:
    """`value` as plain JSON; what JSON cannot hold is kept as text."""
    kind = type(value)
    if kind is str:
        return writable(value)
    if kind is int or kind is bool or value is None:
        return value
    if kind is float:
        return value if math.isfinite(value) else str(value)
    if kind is dict:
        return {writable(str(key)): as_json(item) for key, item in value.items()}
    if kind is list or kind is tuple:
        return [as_json(item) for item in value]
    plain = serialize_for_json(value)
    # Other types come back as built-in ones; a subclass of those would be looked at for ever.
    return as_json(plain) if type(plain) in (str, int, float, bool, dict, list, type(None)) else writable(str(plain))


def writable(text: str) -> str:
    """`text` with a question mark for half of a surrogate pair: a model may write one, and no file can hold it."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()
