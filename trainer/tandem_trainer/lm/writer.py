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
from tandem_trainer.lm.client import LMCall, LMClient, Mode

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
        """
        asked = [self._model, list(messages), how.__dict__, list(key), self._seed, self._mode]
        name = digest(asked)
        known = self._journal.get(name)
        if known is None:
            # Two that ask the same at the same time get one answer, as they would one after the other.
            task = self._running.get(name)
            if task is None:
                task = self._running[name] = asyncio.create_task(self._ask(name, tuple(messages), how))
                task.add_done_callback(lambda _: self._running.pop(name, None))
            known = await asyncio.shield(task)
        return known.texts

    async def _ask(self, name: str, messages: tuple[dict[str, Any], ...], how: Writing) -> WrittenText:
        await self._journal.room()
        calls = [
            LMCall(
                messages=messages,
                mode=self._mode,
                temperature=how.temperature,
                top_p=how.top_p,
                max_tokens=how.max_tokens,
                stop=how.stop,
                seed=seed_from(self._seed, name, nth),
            )
            for nth in range(how.count)
        ]
        completions = await asyncio.gather(*(self._client.complete(call) for call in calls))
        usage = Usage(
            calls=len(completions),
            prompt_tokens=sum(completion.prompt_tokens for completion in completions),
            completion_tokens=sum(completion.completion_tokens for completion in completions),
        )
        record = WrittenText(key=name, usage=usage, texts=tuple(completion.text for completion in completions))
        self._journal.add(record)
        return record
