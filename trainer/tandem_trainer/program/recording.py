"""Adapters that call the served model directly and record every predictor call in the run's scope."""

from __future__ import annotations

import math
from typing import Any

from dspy.adapters.utils import serialize_for_json
from dspy.dsp.utils.settings import thread_local_overrides
from dspy.utils.exceptions import AdapterParseError

from tandem_api.records import PredictorCall
from tandem_trainer.lm.client import Mode
from tandem_trainer.lm.served import LMRequest, RunScope, ServedLM, current_scope

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
        if not isinstance(lm, ServedLM):  # a language model of the program's own
            outputs: list[dict[str, Any]] = super().__call__(lm, lm_kwargs, signature, demos, inputs)  # type: ignore[misc]
            return outputs
        call = _Call(self, lm, lm_kwargs, signature, demos, inputs)
        return call.read(lm.generate(call.request, lm_kwargs))

    async def acall(self, lm: Any, lm_kwargs: Any, signature: Any, demos: Any, inputs: Any) -> list[dict[str, Any]]:
        if not isinstance(lm, ServedLM):
            outputs: list[dict[str, Any]] = await super().acall(lm, lm_kwargs, signature, demos, inputs)  # type: ignore[misc]
            return outputs
        call = _Call(self, lm, lm_kwargs, signature, demos, inputs)
        return call.read(await lm.agenerate(call.request, lm_kwargs))


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
    if kind is str or kind is int or kind is bool or value is None:
        return value
    if kind is float:
        return value if math.isfinite(value) else str(value)
    if kind is dict:
        return {str(key): as_json(item) for key, item in value.items()}
    if kind is list or kind is tuple:
        return [as_json(item) for item in value]
    plain = serialize_for_json(value)
    # Other types come back as built-in ones; a subclass of those would be looked at for ever.
    return as_json(plain) if type(plain) in (str, int, float, bool, dict, list, type(None)) else str(plain)
