"""The trials of a search, kept for people and for the report: `trials.jsonl`, one line per candidate.

The table is rewritten as the search goes on. It is told, never read: what a search must know again is in its journals.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from tandem_api.canonical import canonical_json
from tandem_api.layout import StageLayout
from tandem_api.records import PromptSet, Trial
from tandem_api.store import ObjectStore
from tandem_api.v1alpha1.status import Artifact
from tandem_trainer.prompt.candidates import Scored


def trial_of(index: int, scored: Scored, prompts: Artifact) -> Trial:
    """The trial of a candidate whose prompt set lies at `prompts`."""
    score = scored.so_far
    return Trial(
        index=index,
        kind=scored.candidate.kind,
        prompts=prompts,
        parameters=dict(scored.candidate.parameters),
        n=score.n if score else 0,
        score=score.score if score else None,
        low=score.low if score else None,
        high=score.high if score else None,
        errors=score.errors if score else 0,
        tokens=scored.tokens,
        dropped=scored.dropped,
        full=scored.full,
    )


class TrialTable:
    """Writes a stage's trials. Used on one event loop."""

    def __init__(self, store: ObjectStore, layout: StageLayout) -> None:
        self._store = store
        self._layout = layout
        self._prompts: dict[str, Artifact] = {}
        self._written = ""
        self._lock = asyncio.Lock()

    async def show(self, scored: Sequence[Scored]) -> None:
        """Write the table as it is now: all candidates so far, in the order of their trials."""
        async with self._lock:
            trials = [
                trial_of(index, each, await self.prompts(each.candidate.prompts)) for index, each in enumerate(scored)
            ]
            lines = "".join(f"{canonical_json(trial.model_dump(mode='json'))}\n" for trial in trials)
            if lines != self._written:
                await asyncio.to_thread(self._store.put, self._layout.trials, lines.encode())
                self._written = lines

    async def prompts(self, prompts: PromptSet) -> Artifact:
        """Where a prompt set lies; it is written under its digest when it is not there yet."""
        sha256 = prompts.sha256
        if sha256 not in self._prompts:
            self._prompts[sha256] = await asyncio.to_thread(write_prompt_set, self._store, self._layout, prompts)
        return self._prompts[sha256]


def write_prompt_set(store: ObjectStore, layout: StageLayout, prompts: PromptSet) -> Artifact:
    """Write a prompt set under its digest: the object's sha256 is the prompt set's own. Counts the demos."""
    data = canonical_json(prompts.model_dump(mode="json")).encode()
    demos = sum(len(prompt.demos) for prompt in prompts.predictors.values())
    return store.put(layout.prompt_set(prompts.sha256), data).model_copy(update={"count": demos})
