"""The adapters by their names in the spec."""

from __future__ import annotations

from collections import OrderedDict
from functools import lru_cache
from typing import Any, Literal

import dspy

from tandem_trainer.program.plain import PlainAdapter
from tandem_trainer.program.recording import RecordingAdapter

AdapterName = Literal["chat", "json", "plain"]

#: Lists of demos whose messages are kept.
_MAX_DEMOS = 256


class _Remembering(RecordingAdapter):
    """Keeps what every call of a candidate has in common: DSPy renders it anew each time, which costs half a call."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._demos: OrderedDict[tuple[Any, int], tuple[list[Any], list[Any]]] = OrderedDict()
        render = super().format_system_message  # type: ignore[misc]
        # The instruction is the one part of a signature that can be changed in place.
        self._system = lru_cache(maxsize=256)(lambda signature, instruction: render(signature))

    def format_system_message(self, signature: Any) -> str:
        text: str = self._system(signature, signature.__doc__)
        return text

    def format_demos(self, signature: Any, demos: list[Any]) -> list[dict[str, Any]]:
        key = (signature, id(demos))
        known = self._demos.get(key)
        # The identity only finds the entry; whether it still holds is decided by the content.
        if known is not None and known[0] == list(demos):
            return known[1]
        messages: list[dict[str, Any]] = super().format_demos(signature, demos)  # type: ignore[misc]
        self._demos[key] = ([dict(demo) for demo in demos], messages)
        if len(self._demos) > _MAX_DEMOS:
            self._demos.popitem(last=False)
        return messages


class _ChatAdapter(_Remembering, dspy.ChatAdapter):  # type: ignore[misc]  # DSPy has no types
    """DSPy's chat format, without its silent second try in JSON, which hides that a model lost the format."""

    def __init__(self) -> None:
        super().__init__(use_json_adapter_fallback=False)


class _JSONAdapter(_Remembering, dspy.JSONAdapter):  # type: ignore[misc]  # DSPy has no types
    """DSPy's JSON format."""

    def __init__(self) -> None:
        super().__init__(use_native_function_calling=False)


def build_adapter(name: AdapterName) -> Any:
    """A new adapter."""
    adapters: dict[AdapterName, type[Any]] = {"chat": _ChatAdapter, "json": _JSONAdapter, "plain": PlainAdapter}
    return adapters[name]()
