"""A model that writes outside of the program: instructions, summaries, reflections.

What it wrote is kept in the stage's journal of calls, under a key that names the model, the messages, the sampling and
the asker's own key. So a stage that starts again replays its proposals and pays for none twice, and so does a stage
whose asker (an optimizer of DSPy) cannot say where it was.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tandem_api.canonical import digest, seed_from
from tandem_api.records import WrittenText
from tandem_api.v1alpha1.status import Usage
from tandem_trainer.journal import Journal
from tandem_trainer.lm.client import CallFailedError, LMCall, LMClient, Mode, PromptTooLongError

Messages = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Writing:
    """How a text is sampled."""

    temperature: float
    max_tokens: int
    top_p: float = 1.0
    stop: tuple[str, ...] = ()
    count: int = 1
    """Completions that are wanted."""


class Writer:
    """Asks one model; answers of before come from the journal. Used on one event loop."""

    def __init__(self, client: LMClient, journal: Journal[WrittenText], *, mode: Mode, seed: int) -> None:
        self._client = client
        self._journal = journal
        self._mode = mode
        self._seed = seed
        endpoint = client.endpoint
        # Our own server's address changes from attempt to attempt; what it serves is known by the adapter.
        self._model = [endpoint.model, endpoint.adapter.sha256 if endpoint.adapter else ""]
        self._running: dict[str, asyncio.Task[WrittenText]] = {}

    async def write(self, messages: Messages, how: Writing, *, key: Sequence[Any] = ()) -> tuple[str, ...]:
        """The completions. Equal arguments give equal answers; `key` sets askers apart that ask the same.

        Raises CallFailedError when the server refuses this call, ServingError when it stays away, BudgetExhausted.
        What has been written until then is kept.
        """
        asked = [self._model, list(messages), how.__dict__, list(key), self._seed, self._mode]
        answers = await asyncio.gather(
            *(self._one(digest([*asked, nth]), tuple(messages), how) for nth in range(how.count)),
            return_exceptions=True,
        )
        for answer in answers:
            if isinstance(answer, BaseException):
                raise answer
        return tuple(answer for answer in answers if isinstance(answer, str))

    async def _one(self, name: str, messages: tuple[dict[str, Any], ...], how: Writing) -> str:
        known = self._journal.get(name)
        if known is None:
            # Two that ask the same at the same time get one answer, as they would one after the other.
            task = self._running.get(name)
            if task is None:
                task = self._running[name] = asyncio.create_task(self._ask(name, messages, how))
                task.add_done_callback(lambda _: self._running.pop(name, None))
            known = await asyncio.shield(task)
        if known.refused is not None:
            raise (PromptTooLongError if known.too_long else CallFailedError)(known.refused)
        return known.text

    async def _ask(self, name: str, messages: tuple[dict[str, Any], ...], how: Writing) -> WrittenText:
        await self._journal.room()
        call = LMCall(
            messages=messages,
            mode=self._mode,
            temperature=how.temperature,
            top_p=how.top_p,
            max_tokens=how.max_tokens,
            stop=how.stop,
            seed=seed_from(self._seed, name),
        )
        try:
            completion = await self._client.complete(call)
        except CallFailedError as error:
            record = WrittenText(key=name, refused=str(error), too_long=isinstance(error, PromptTooLongError))
        else:
            tokens = {"prompt_tokens": completion.prompt_tokens, "completion_tokens": completion.completion_tokens}
            record = WrittenText(key=name, usage=Usage(calls=1, **tokens), text=completion.text)
        self._journal.add(record)
        return record
