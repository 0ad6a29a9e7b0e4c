"""A model whose answers are kept, as an LM for foreign optimizers: DSPy's own.

DSPy remembers answers by what was asked: an equal request with an equal `rollout_id` is an equal answer. So does this
LM, but in the stage's journal (`lm/writer.py`), which outlives the process: an optimizer that is started again is told
the same, whatever its threads do, and pays for nothing twice. Unlike DSPy's cache it has no off switch: `cache=False`
gives an answer that is remembered, too.

Calls come from DSPy's threads, outside of any run of `ProgramRunner`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from types import SimpleNamespace
from typing import Any, Self

import dspy

from tandem_trainer.lm.bridge import Bridge
from tandem_trainer.lm.client import CallFailedError, Mode, PromptTooLongError
from tandem_trainer.lm.served import ContextTooLongError, as_stops, check_options
from tandem_trainer.lm.writer import Messages, Writer, Writing


class Recording:
    """What all recorded LMs of one compilation share. To be made on the event loop of the writers.

    DSPy counts an exception in a program or a metric as a score of 0 and goes on. A fault of the infrastructure is not
    a score: the first one is kept here, fails every call after it at once, and is raised when DSPy has come to its end.
    """

    def __init__(self) -> None:
        self.bridge = Bridge()
        self._failure: BaseException | None = None

    def check(self) -> None:
        """Raises the first fault of the infrastructure, if there was one, and CancelledError once the stage ends:
        DSPy would count any other exception as a score of 0 and play its search to the end."""
        if self._failure is not None:
            raise self._failure
        if self.bridge.is_closed:
            raise asyncio.CancelledError

    async def guard(self, work: Coroutine[Any, Any, tuple[str, ...]]) -> tuple[str, ...]:
        """The completions. Only CallFailedError is the call's own failure; a program may cancel its own calls."""
        try:
            return await work
        except (CallFailedError, asyncio.CancelledError):
            raise
        except BaseException as error:
            self._failure = self._failure or error
            raise


class RecordedLM(dspy.BaseLM):  # type: ignore[misc]  # DSPy has no types
    """A recorded model as a DSPy LM. Copies share the model and the recording."""

    def __init__(self, writer: Writer, recording: Recording, *, model: str, mode: Mode, defaults: Writing) -> None:
        """`defaults`: how completions are sampled where DSPy does not say it. In `completions` mode messages are sent
        as one text: models without a chat template know no roles."""
        super().__init__(model=model, model_type="chat" if mode == "chat" else "text")
        self._writer = writer
        self._recording = recording
        self._mode = mode
        self._defaults = defaults

    def __call__(self, prompt: str | None = None, *, messages: Any = None, **options: Any) -> list[Any]:
        """Completions for a text or for chat messages, as a list."""
        return self._told(self.forward(prompt, messages, **options), prompt, messages, options)

    async def acall(self, prompt: str | None = None, *, messages: Any = None, **options: Any) -> list[Any]:
        """Completions for a text or for chat messages, as a list."""
        return self._told(await self.aforward(prompt, messages, **options), prompt, messages, options)

    def forward(self, prompt: str | None = None, messages: Any = None, **options: Any) -> Any:
        """The answer in OpenAI's shape. Its `usage` is empty: the stage counts the tokens, and replays cost none."""
        self._recording.check()
        try:
            return self._answer(self._recording.bridge.call(lambda: self._complete(prompt, messages, options)))
        except PromptTooLongError as error:
            raise ContextTooLongError(self.model, str(error)) from error

    async def aforward(self, prompt: str | None = None, messages: Any = None, **options: Any) -> Any:
        """As `forward`, on any event loop."""
        self._recording.check()
        try:
            return self._answer(await self._recording.bridge.acall(lambda: self._complete(prompt, messages, options)))
        except PromptTooLongError as error:
            raise ContextTooLongError(self.model, str(error)) from error

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        copied: Self = self.copy()
        return copied

    async def _complete(self, prompt: str | None, messages: Any, options: dict[str, Any]) -> tuple[str, ...]:
        options = {**self.kwargs, **options}
        check_options(options)
        defaults = self._defaults
        temperature, top_p = options.get("temperature"), options.get("top_p")
        how = Writing(
            temperature=float(defaults.temperature if temperature is None else temperature),
            top_p=float(defaults.top_p if top_p is None else top_p),
            max_tokens=options.get("max_tokens") or defaults.max_tokens,
            stop=(*as_stops(options.get("stop")), *defaults.stop),
            count=options.get("n") or 1,
        )
        asked = self._messages([{"role": "user", "content": prompt}] if messages is None else messages)
        return await self._recording.guard(self._writer.write(asked, how, key=["dspy", options.get("rollout_id")]))

    def _messages(self, messages: Messages) -> Messages:
        if self._mode == "chat" or len(messages) == 1:
            return messages
        return [{"role": "user", "content": "\n\n".join(str(message["content"]) for message in messages)}]

    def _answer(self, texts: tuple[str, ...]) -> Any:
        # Each text is an object of its own, as it was when it came over the wire: DSPy seeds a draw with a hash of
        # pickled demos, which tells equal texts that are one object from equal texts that are two.
        choices = [
            SimpleNamespace(index=index, message=SimpleNamespace(content=text.encode().decode()), finish_reason="stop")
            for index, text in enumerate(texts)
        ]
        return SimpleNamespace(model=self.model, choices=choices, usage={})

    def _told(self, response: Any, prompt: str | None, messages: Any, options: dict[str, Any]) -> list[Any]:
        """The completions of a response, put into DSPy's history on the way."""
        outputs: list[Any] = self._process_lm_response(response, prompt, messages, **options)
        return outputs
