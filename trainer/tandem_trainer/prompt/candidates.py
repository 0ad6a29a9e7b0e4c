"""Candidates of a search and what is known of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from tandem_api.contract import CandidateScore
from tandem_api.records import PromptSet, ScoredExample
from tandem_trainer.evaluate.evaluator import summarize

#: Of every example of a set, its record; None where it was not run (the candidate was dropped, the budget ended).
Records = Sequence[ScoredExample | None]


@dataclass(frozen=True)
class Candidate:
    """A prompt set that a search scores."""

    kind: str
    """Where it comes from, for people: starting, zero-shot, labeled, bootstrapped, random, proposed, ..."""
    prompts: PromptSet
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """What the search chose to make it, for the trial table; plain JSON."""


@dataclass(frozen=True)
class Scored:
    """A candidate and what is known of it."""

    candidate: Candidate
    records: Records
    """On the examples of the search, in their order; a prefix of it where the candidate was dropped."""
    rest: Records | None = None
    """On the rest of validation; None where that was not run."""
    dropped: bool = False
    """The race has dropped it: it is worse than the leader beyond the stated doubt."""

    @property
    def score(self) -> CandidateScore | None:
        """On the examples of the search; None unless all of them were scored."""
        return _complete(self.records)

    @property
    def so_far(self) -> CandidateScore | None:
        """On those examples of the search that were scored; None when there are none."""
        there = [record for record in self.records if record is not None]
        return summarize(there) if there else None

    @property
    def full(self) -> CandidateScore | None:
        """On all of validation; None unless all of it was scored."""
        return None if self.rest is None else _complete([*self.records, *self.rest])

    @property
    def tokens(self) -> int:
        """Of all its runs."""
        return sum(record.usage.tokens for record in [*self.records, *(self.rest or ())] if record is not None)


def _complete(records: Records) -> CandidateScore | None:
    there = [record for record in records if record is not None]
    return summarize(there) if there and len(there) == len(records) else None
