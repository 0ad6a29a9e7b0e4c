"""The trials of a search, kept for the report: `trials.jsonl`, one line per candidate, prompts by reference."""

from __future__ import annotations

from collections.abc import Sequence

from tandem_api.canonical import canonical_json
from tandem_api.contract import CandidateScore
from tandem_api.layout import StageLayout
from tandem_api.records import PromptSet, Record
from tandem_api.store import ObjectStore
from tandem_api.v1alpha1.status import Artifact
from tandem_trainer.prompt.bfrs import CandidateKind
from tandem_trainer.prompt.search import Scored


class Trial(Record):
    """One candidate of the search and its score on the examples that all candidates were scored on."""

    index: int
    kind: CandidateKind
    prompts: Artifact
    """The prompt set, an object of its own; `count` is the number of its demos."""
    n: int
    """Examples scored. Fewer than in other trials: the budget ended before this candidate."""
    score: float | None
    """None when not all examples were scored, and then `low` and `high`, too."""
    low: float | None
    high: float | None
    errors: int
    tokens: int
    """Prompt and completion tokens of all its runs."""
    full: CandidateScore | None = None
    """The score on all of validation, where the search used a part and this candidate was scored on the rest, too."""


def trial_of(index: int, scored: Scored, prompts: Artifact) -> Trial:
    """The trial of a candidate whose prompt set lies at `prompts`."""
    score = scored.score
    there = [record for record in scored.records if record is not None]
    return Trial(
        index=index,
        kind=scored.candidate.kind,
        prompts=prompts,
        n=len(there),
        score=score.score if score else None,
        low=score.low if score else None,
        high=score.high if score else None,
        errors=sum(record.status != "ok" for record in there),
        tokens=scored.tokens,
        full=scored.full if scored.rest else None,
    )


def trials_key(layout: StageLayout) -> str:
    """Where a stage's trials lie."""
    return f"{layout.root}trials.jsonl"


def write_trials(store: ObjectStore, layout: StageLayout, trials: Sequence[Trial]) -> Artifact:
    """Write all trials as one object; the artifact's count is their number."""
    lines = "".join(f"{canonical_json(trial.model_dump(mode='json'))}\n" for trial in trials)
    return store.put(trials_key(layout), lines.encode()).model_copy(update={"count": len(trials)})


def write_prompt_set(store: ObjectStore, layout: StageLayout, prompts: PromptSet) -> Artifact:
    """Write a prompt set under its digest: the object's sha256 is the prompt set's own. Counts the demos."""
    data = canonical_json(prompts.model_dump(mode="json")).encode()
    demos = sum(len(prompt.demos) for prompt in prompts.predictors.values())
    return store.put(layout.prompt_set(prompts.sha256), data).model_copy(update={"count": demos})
