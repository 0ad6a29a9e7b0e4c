"""What the pages show, prepared from a run and its mirror. Pure."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal

from tandem_api.conditions import PROGRESSING, SERVING_READY, SUCCEEDED, WAITING, find
from tandem_api.layout import StageLayout
from tandem_api.pages import formats
from tandem_api.pages.plots import Bar, ScoreMark
from tandem_api.records import PredictorPrompt, PromptSet, ScoredExample, Trial
from tandem_api.v1alpha1 import OptimizationRun
from tandem_api.v1alpha1.status import Candidate, Condition, StageStatus, Status, StepStatus
from tandem_operator.ui import journals
from tandem_operator.ui.diff import Part, compare
from tandem_operator.ui.mirror import Mirror

KINDS = {"baseline": "baseline", "p": "prompts", "w": "weights", "final": "final test"}
#: Examples on one page.
PAGE_SIZE = 50
Order = Literal["index", "score", "tokens"]
ORDERS: tuple[Order, ...] = ("index", "score", "tokens")


def has_ended(status: Status) -> bool:
    """For better or worse."""
    succeeded = find(status.conditions, SUCCEEDED)
    return succeeded is not None and succeeded.status != "Unknown"


def waiting(status: Status) -> list[Condition]:
    """Why nothing happens, if it is for something outside of the run."""
    conditions = (find(status.conditions, kind) for kind in (PROGRESSING, SERVING_READY))
    return [condition for condition in conditions if condition is not None and condition.reason in WAITING]


def candidates(status: Status) -> list[tuple[StepStatus, Candidate]]:
    """Every candidate of the run with its step."""
    return [(step, candidate) for step in status.steps for candidate in step.candidates]


def score_marks(status: Status) -> list[ScoreMark]:
    """The same for the figure."""
    return [
        ScoreMark(
            label=f"{step.index} {step.kind}: {'vanilla' if candidate.prompt_set is None else 'optimized'} + "
            f"{'adapter' if candidate.adapter else 'base'}",
            score=float(candidate.score),
            low=float(candidate.low),
            high=float(candidate.high),
            optimized=candidate.prompt_set is not None,
            adapter=candidate.adapter is not None,
            best=candidate == status.best,
        )
        for step, candidate in candidates(status)
    ]


def bars(status: Status, now: datetime) -> list[Bar]:
    """The stages that have begun, on the run's clock; one that works has lasted until `now`."""
    began = status.started
    if began is None:
        return []
    found = []
    for step in status.steps:
        for stage in step.stages:
            if stage.started is None:
                continue
            end = now if stage.state == "Running" else stage.finished or stage.started
            found.append(
                Bar(
                    f"{step.index} {step.kind}: {stage.name}",
                    (stage.started - began).total_seconds(),
                    max(0.0, (end - stage.started).total_seconds()),
                    loading_seconds(stage),
                )
            )
    return found


def loading_seconds(stage: StageStatus) -> float:
    """How long the stage waited for what it needs."""
    if stage.requested is None or stage.ready is None:
        return 0.0
    return max(0.0, (stage.ready - stage.requested).total_seconds())


def step_of(run: OptimizationRun, index: int) -> StepStatus | None:
    """The step of that index."""
    return next((step for step in run.status.steps if step.index == index), None)


def stage_of(step: StepStatus, name: str) -> StageStatus | None:
    """The step's stage of that name."""
    return next((stage for stage in step.stages if stage.name == name), None)


@dataclass(frozen=True)
class TrialFilter:
    """Which trials are wanted, and in which order."""

    text: str = ""
    kind: str = ""
    order: Order = "index"

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> TrialFilter:
        """Of an address; what is not known is left out."""
        order: Order = next((order for order in ORDERS if order == query.get("order")), "index")
        return cls(query.get("q", ""), query.get("kind", ""), order)


@dataclass(frozen=True)
class TrialRow:
    """A trial with its prompts, if these are there."""

    trial: Trial
    prompts: PromptSet | None

    @property
    def beginning(self) -> str:
        """Of its instructions."""
        if self.prompts is None:
            return ""
        return " / ".join(prompt.instruction for prompt in self.prompts.predictors.values())


def trial_rows(mirror: Mirror, stage: StageLayout, trials: tuple[Trial, ...], wanted: TrialFilter) -> list[TrialRow]:
    """The trials that are wanted, in the order that is. The best first: those with a score on all of validation by it,
    then those that were scored on as many examples as any, then what was dropped or is not done; no score comes last.
    """
    rows = [TrialRow(trial, journals.prompt_set(mirror, stage, trial.prompts.sha256)) for trial in trials]
    rows = [row for row in rows if wanted.kind in ("", row.trial.kind) and _has(wanted.text, _told(row))]
    if wanted.order == "score":
        longest = max((trial.n for trial in trials), default=0)
        rows.sort(key=lambda row: _worth(row.trial, longest), reverse=True)
    elif wanted.order == "tokens":
        rows.sort(key=lambda row: row.trial.tokens, reverse=True)
    return rows


@dataclass(frozen=True)
class PredictorDiff:
    """How one predictor's prompt differs between two prompt sets."""

    name: str
    instruction: tuple[Part, ...]
    demos: tuple[tuple[Literal["same", "added", "removed"], dict[str, Any]], ...]


def prompt_diff(old: PromptSet, new: PromptSet) -> list[PredictorDiff]:
    """By predictor of either: the instruction word by word, and the demos that are in one of both or in both."""
    found = []
    for name in dict.fromkeys([*new.predictors, *old.predictors]):
        before = old.predictors.get(name, PredictorPrompt(instruction=""))
        after = new.predictors.get(name, PredictorPrompt(instruction=""))
        found.append(PredictorDiff(name, compare(before.instruction, after.instruction), _demos(before, after)))
    return found


@dataclass(frozen=True)
class ExampleFilter:
    """Which runs of the program are wanted."""

    text: str = ""
    status: str = ""
    result: str = ""
    """`passed`: a score of 1; `partly`; `none`: 0. Empty: any."""
    candidate: str = ""
    """A prompt set's sha256."""
    page: int = 1

    @classmethod
    def parse(cls, query: Mapping[str, str]) -> ExampleFilter:
        """Of an address; what cannot be is left out."""
        page = query.get("page", "")
        number = int(page) if page.isascii() and page.isdigit() and len(page) < 8 else 1
        text, status, result, candidate = (query.get(name, "") for name in ("q", "status", "result", "candidate"))
        return cls(text, status, result, candidate, max(1, number))

    def fits(self, record: ScoredExample) -> bool:
        """Whether a record is wanted."""
        return (
            self.status in ("", record.status)
            and self.candidate in ("", record.candidate)
            and self.result in ("", result_of(record))
            and (not self.text or _has(self.text, _words_of(record)))
        )


@dataclass(frozen=True)
class ExamplePage:
    """A part of the records that are wanted, the newest first."""

    records: tuple[ScoredExample, ...]
    found: int
    page: int
    pages: int


def example_page(records: tuple[ScoredExample, ...], wanted: ExampleFilter) -> ExamplePage:
    """What fits on the page that is wanted, or on the last one."""
    fitting = [record for record in reversed(records) if wanted.fits(record)]
    pages = max(1, -(-len(fitting) // PAGE_SIZE))
    page = min(wanted.page, pages)
    return ExamplePage(tuple(fitting[(page - 1) * PAGE_SIZE : page * PAGE_SIZE]), len(fitting), page, pages)


def result_of(record: ScoredExample) -> str:
    """A score in one word."""
    return "passed" if record.score >= 1 else "none" if record.score <= 0 else "partly"


def candidate_names(run: OptimizationRun, mirror: Mirror) -> dict[str, str]:
    """What people call the prompt sets, by their digests: the original one, and each search's trials."""
    names: dict[str, str] = {}
    layout = mirror.layout
    for step in run.status.steps:
        if step.kind == "baseline":
            found = Counter(
                record.candidate
                for record in journals.scored_examples(mirror, layout.stage(step.index, "baseline", "evaluate")).records
            )
            names |= {sha256: "original prompts" for sha256, _ in found.most_common(1)}
        elif step.kind == "p":
            for trial in journals.trials(mirror, layout.stage(step.index, "p", "optimize")).records:
                names.setdefault(trial.prompts.sha256, f"trial {trial.index} of step {step.index}")
    return names


def _worth(trial: Trial, longest: int) -> tuple[bool, bool, float, int]:
    """Scores compare only with those over the same examples: that of a few is high by luck."""
    score = trial.full.score if trial.full is not None else -1.0 if trial.score is None else trial.score
    return trial.full is not None, not trial.dropped and trial.n == longest, score, trial.n


def _demos(
    before: PredictorPrompt, after: PredictorPrompt
) -> tuple[tuple[Literal["same", "added", "removed"], dict[str, Any]], ...]:
    return tuple(_in_order(before.demos, after.demos))


def _in_order(
    before: tuple[dict[str, Any], ...], after: tuple[dict[str, Any], ...]
) -> Iterator[tuple[Literal["same", "added", "removed"], dict[str, Any]]]:
    for demo in after:
        yield ("same" if demo in before else "added"), demo
    for demo in before:
        if demo not in after:
            yield "removed", demo


def _told(row: TrialRow) -> str:
    prompts = row.prompts.model_dump_json() if row.prompts else ""
    return f"{row.trial.kind} {json.dumps(row.trial.parameters, ensure_ascii=False, default=str)} {prompts}"


def _words_of(record: ScoredExample) -> str:
    """What the program was given and what it and others said; no names of fields, for everything has these."""
    told: list[Any] = [record.example, record.error, record.feedback, *(record.prediction or {}).values()]
    for call in record.calls:
        told += [*call.inputs.values(), call.completion, *(message.get("content") for message in call.messages)]
    return "\n".join(formats.text(value) for value in told if value is not None)


def _has(wanted: str, text: str) -> bool:
    """Whether every word that is wanted is in the text, in any case."""
    lowered = text.lower()
    return all(word in lowered for word in wanted.lower().split())
