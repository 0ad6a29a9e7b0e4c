"""A made-up run as the live page sees it: the report's sample, with the objects that its stages would have written."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import yaml
from tests.memory_store import MemoryStore
from tests.unit.trainer.report import sample

from tandem_api.canonical import canonical_json
from tandem_api.errors import StorageUnavailableError
from tandem_api.layout import RunLayout
from tandem_api.records import PredictorCall, PredictorPrompt, PromptSet, ScoredExample, Trial, WrittenText
from tandem_api.v1alpha1 import OptimizationRun, Status
from tandem_api.v1alpha1.run import parse_run
from tandem_api.v1alpha1.status import Artifact, Condition, CurrentStep, Usage
from tandem_operator.ui.mirror import Mirror
from tandem_operator.ui.sources import Event, Log

REVIEWS = (
    ("Two hours that I will not get back.", "negative"),
    ("A delight from start to end.", "positive"),
    ("The actors do what they can with a script that gives them nothing.", "negative"),
    ("I laughed, I cried, I bought a second ticket.", "positive"),
    ("It looks splendid and says little.", "negative"),
    ("Slow at first, but what a second half it has.", "positive"),
)
WORDINGS = (
    sample.INSTRUCTION,
    "Decide whether the review is positive or negative. Answer with one word.",
    "Read the review to its end, then decide whether its author recommends the film. Answer with one word.",
    "Decide whether the review's author liked the film. Praise for a part of it does not make the review positive.",
)


#: Where its objects lie.
LAYOUT = RunLayout("", "default", "reviews", "u1")


class MadeUp:
    """A source of one run, in memory; tests may change all of it."""

    where = "runs/reviews"

    def __init__(self, run: OptimizationRun, text: Callable[[str], str] = str) -> None:
        """`text` is applied to everything that a user or a model might have written."""
        self.run = run
        self.store = MemoryStore()
        self.is_down = False
        self.texts = {"worker-1p-optimize-1": "INFO scoring trial 3\nWARNING one answer was not parsed\n"}
        self.happened = [
            Event("2026-05-04T09:30:00Z", "Normal", "StepStarted", "step 0 (baseline) begins"),
            Event("2026-05-04T09:33:41Z", "Warning", "AttemptFailed", text("the worker was killed; it is tried again")),
        ]
        _fill(self.store, LAYOUT, text)

    def read(self) -> OptimizationRun:
        return self.run

    def sync(self, run: OptimizationRun, mirror: Mirror) -> None:
        if self.is_down:
            raise StorageUnavailableError("the bucket does not answer")
        mirror.sync(self.store)

    def logs(self) -> list[Log]:
        return [Log(name, "1 KiB") for name in self.texts]

    def log(self, name: str) -> str | None:
        return self.texts.get(name)

    def events(self) -> list[Event]:
        return self.happened

    def report(self) -> bytes | None:
        return None


def made_up(status: Status | None = None, text: Callable[[str], str] = str) -> MadeUp:
    """The sample's `p -> w -> p`, by default in the middle of its second search."""
    document = {
        "apiVersion": "tandem.dev/v1alpha1",
        "kind": "OptimizationRun",
        "metadata": {"name": "reviews", "uid": "u1"},
        "spec": sample.spec().to_json(),
    }
    run = parse_run(yaml.safe_load(yaml.safe_dump(document)))
    return MadeUp(run.model_copy(update={"status": status or going_on()}), text)


def going_on() -> Status:
    """In the middle of step 3, which began two minutes ago."""
    status = sample.whole_status()
    search = status.steps[3].stages[0]
    running = search.model_copy(update={"state": "Running", "finished": None, "facts": {}, "message": None})
    last = status.steps[3].model_copy(
        update={"state": "Running", "stages": (running,), "candidates": (), "score": None, "prompt_set": None}
    )
    final = status.steps[4].model_copy(update={"state": "Pending", "stages": ()})
    began = running.started or sample.BEGAN
    going = status.model_copy(
        update={
            "phase": "Optimizing",
            "steps": (*status.steps[:3], last, final),
            "best": status.steps[2].candidates[0],
            "step": CurrentStep(index=3, kind="p", stage="optimize", attempt=1, progress=62,
                                message="trial 12 of 20: 0.8400 on 25 examples"),
            "conditions": (Condition(type="Succeeded", status="Unknown", reason="Running",
                                     last_transition_time=sample.BEGAN),),
        }
    )  # fmt: skip
    return Status.model_validate(_later(going.model_dump(), datetime.now(UTC) - began - timedelta(minutes=2)))


def _later(value: Any, by: timedelta) -> Any:
    """The same with all times moved."""
    if isinstance(value, dict):
        return {name: _later(part, by) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [_later(part, by) for part in value]
    return value + by if isinstance(value, datetime) else value


def prompts(number: int, text: Callable[[str], str] = str) -> PromptSet:
    """The prompt set of a trial."""
    demos = tuple({"review": text(review), "sentiment": sentiment} for review, sentiment in REVIEWS[: number % 4])
    wording = text(WORDINGS[number % len(WORDINGS)])
    return PromptSet(predictors={"self": PredictorPrompt(instruction=wording, demos=demos)})


def record(number: int, candidate: PromptSet, text: Callable[[str], str] = str, calls: bool = False) -> ScoredExample:
    """One run of the program; every fifth is wrong, every eleventh could not be parsed."""
    review, sentiment = REVIEWS[number % len(REVIEWS)]
    failed = number % 11 == 10
    answer = {"positive": "negative", "negative": "positive"}[sentiment] if number % 5 == 4 else sentiment
    call = PredictorCall(
        predictor="self",
        inputs={"review": text(review)},
        messages=(
            {"role": "system", "content": text(candidate.predictors["self"].instruction)},
            {"role": "user", "content": f"Review: {text(review)}\nSentiment:"},
        ),
        completion=text(answer),
        outputs=None if failed else {"sentiment": answer},
    )
    return ScoredExample(
        key=f"{candidate.sha256}-{number}-{calls}",
        candidate=candidate.sha256,
        example=f"{'t' if calls else 'v'}-{number}",
        status="unparsable" if failed else "ok",
        score=0.0 if failed or answer != sentiment else 1.0,
        error=text("no line begins with 'Sentiment:'") if failed else None,
        prediction=None if failed else {"sentiment": text(answer)},
        seconds=0.21 + number % 7 / 10,
        usage=Usage(calls=1, prompt_tokens=61 + number, completion_tokens=4),
        calls=(call,) if calls else (),
    )


def _fill(store: MemoryStore, layout: RunLayout, text: Callable[[str], str]) -> None:
    vanilla = prompts(0, text)
    _journal(store, layout.stage(0, "baseline", "evaluate").ledger, [record(n, vanilla, text) for n in range(40)])
    for step, count in ((1, 4), (3, 12)):
        stage = layout.stage(step, "p", "optimize")
        rows = []
        for made, told in zip((prompts(n, text) for n in range(count)), sample.trials(20, 2), strict=False):
            key = stage.prompt_set(made.sha256)
            artifact = Artifact(uri=store.put(key, canonical_json(made.model_dump(mode="json")).encode()).uri,
                                sha256=made.sha256, count=len(made.predictors["self"].demos))  # fmt: skip
            rows.append(told.model_copy(update={"prompts": artifact, "parameters": {}}))
        store.put(stage.trials, lines(rows))
        _journal(store, stage.ledger, [record(n, prompts(n, text), text) for n in range(25)])
    written = [WrittenText(key=f"w{n}", text=text(wording)) for n, wording in enumerate(WORDINGS[1:])]
    store.put(f"{layout.stage(3, 'p', 'optimize').calls}1.jsonl", lines(written))
    _journal(store, layout.stage(2, "w", "traces").ledger, [record(n, prompts(3), text, True) for n in range(120)])
    log = "".join(f"{canonical_json(line)}\n" for line in sample.loss_log())
    store.put(f"{layout.stage(2, 'w', 'train').root}train_log.jsonl", log.encode())


def _journal(store: MemoryStore, prefix: str, records: list[ScoredExample]) -> None:
    for number in range(0, len(records), 32):
        store.put(f"{prefix}0001-{number:08}.jsonl", lines(records[number : number + 32]))


def lines(records: list[ScoredExample] | list[Trial] | list[WrittenText]) -> bytes:
    return "".join(f"{record.model_dump_json()}\n" for record in records).encode()
