"""The select stages over real HTTP: which epoch's adapter wins, what a loser costs, and what the evaluation reuses."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.memory_store import MemoryStore
from tests.scripted_lm.server import ScriptedServer

from tandem_api.canonical import canonical_json, digest, sha256_hex
from tandem_api.contract import Endpoint, Prompts, StageResult
from tandem_api.errors import DataError
from tandem_api.store.s3 import MANIFEST
from tandem_api.v1alpha1 import Spec
from tandem_api.v1alpha1.status import SELECT_STAGES, Artifact
from tandem_trainer.evaluate.examples import load_splits
from tandem_trainer.stages import evaluate, select

#: 160 validation questions; an adapter named `right-120` answers the first 120 of them, `right-120-b` too.
QUESTIONS = 160
ROWS = [{"id": f"e{n}", "q": f"question {n}", "a": "yes"} for n in range(QUESTIONS)]
MODELS = ["right-140", "right-120", "right-120-b", "right-119", "right-20", "unreadable"]


def answers(request: dict[str, Any]) -> str:
    """A server that holds several adapters; each call names one of them."""
    name, number = request["model"], int(request["text"].rpartition("question ")[2].split()[0])
    if name == "unreadable":
        return ""
    return " yes" if number < int(name.split("-")[1]) else " no"


def manifest(name: str) -> bytes:
    """The list of an adapter's files; there is no canary among them."""
    return canonical_json({"adapter_model.safetensors": digest(name)}).encode()


def adapter(name: str) -> Artifact:
    return Artifact(uri=f"s3://bucket/adapters/{name}/", sha256=sha256_hex(manifest(name)))


@dataclass
class Step:
    """The select stages of one step, as the engine would ask for them."""

    make: Callable[..., Any]
    server: ScriptedServer
    best: str | None = None
    """The stage of the best adapter so far."""

    def select(self, number: int, name: str, **fields: Any) -> StageResult:
        """Stage `select-<number>` on the adapter of that name."""
        stage = SELECT_STAGES[number - 1]
        result = select.run(self.context(stage, name, epoch=4 - number, **fields))
        result.to_message()
        if result.adapter is not None:
            self.best = stage
        return result

    def context(self, stage: str, name: str, **fields: Any) -> Any:
        endpoint = Endpoint(url=self.server.url, model=name, adapter=adapter(name))
        context = self.make(stage, **{"endpoint": endpoint, "best_stage": self.best, **fields})
        context.store.put(f"adapters/{name}/{MANIFEST}", manifest(name))
        return context

    def calls(self, name: str) -> int:
        """How many calls the adapter has had."""
        return self.server.stats()["calls"].get(name, 0)


@pytest.fixture
def spec(make_spec: Any, write_jsonl: Any) -> Spec:
    uri = write_jsonl("d.jsonl", ROWS)
    return make_spec(  # type: ignore[no-any-return]
        uri,
        validation=uri,
        evaluation={"concurrency": 8, "maxErrorRate": "0.3"},
        weightOptimizer={"checkpoint": "best", "epochs": 3},
        strategy="w",
    )


@pytest.fixture
def step(spec: Spec, make_context: Any) -> Iterator[Step]:
    def make(stage: str, **fields: Any) -> Any:
        return make_context(spec, stage=stage, kind="w", index=1, prompts=(Prompts(label="vanilla"),), **fields)

    with ScriptedServer(answers, models=MODELS) as server:
        yield Step(make, server)


def test_the_first_adapter_is_scored_on_all_of_validation_and_is_the_best_so_far(step: Step) -> None:
    result = step.select(1, "right-120")
    assert result.outcome == "done"
    assert result.adapter == adapter("right-120")
    assert [(score.prompts, score.score, score.n) for score in result.scores] == [(None, 0.75, QUESTIONS)]
    assert result.facts == {"epoch": 3, "score": "0.7500", "examples": QUESTIONS, "standing": "best so far"}
    assert step.calls("right-120") == result.usage.calls == QUESTIONS


def test_a_better_adapter_takes_the_place_of_the_best(step: Step) -> None:
    step.select(1, "right-120")
    result = step.select(2, "right-140")
    assert (result.adapter, result.scores[0].score) == (adapter("right-140"), 0.875)
    assert step.best == "select-2"
    assert step.select(3, "right-120").adapter is None, "it is compared with the new best"


def test_a_clearly_worse_adapter_is_dropped_after_a_part_of_the_examples(step: Step) -> None:
    step.select(1, "right-120")
    result = step.select(2, "right-20")
    assert (result.adapter, result.scores, result.outcome) == (None, (), "done")
    assert result.facts["standing"] == "dropped"
    assert step.calls("right-20") == result.facts["examples"] <= QUESTIONS // 4


def test_a_slightly_worse_adapter_is_not_dropped_but_does_not_win(step: Step) -> None:
    step.select(1, "right-120")
    result = step.select(2, "right-119")
    assert (result.adapter, result.scores) == (None, ())
    assert result.facts == {"epoch": 2, "score": "0.7438", "examples": QUESTIONS, "standing": "worse"}


def test_of_equal_adapters_the_earlier_epoch_wins(step: Step) -> None:
    step.select(1, "right-120")
    assert step.select(2, "right-120-b").adapter == adapter("right-120-b")


def test_every_adapter_of_a_step_meets_the_examples_in_the_same_shuffled_order(step: Step, spec: Spec) -> None:
    contexts = [step.context(stage, "right-120") for stage in SELECT_STAGES[:2]]
    examples = load_splits(spec, contexts[0].store).validation
    first, second = ([example.id for example in select.in_order(examples, one.request)] for one in contexts)
    assert first == second
    assert first != [example.id for example in examples]
    assert sorted(first) == sorted(example.id for example in examples)


def test_the_error_rate_is_that_of_all_races_of_a_step_together() -> None:
    assert select.race_rules((1, 2, 3, 4, 5), is_first=False).error_rate == pytest.approx(0.05 / 4)
    assert select.race_rules((1, 2, 3), is_first=True).exhaustive, "the first has nobody to be compared with"


def test_an_adapter_whose_answers_cannot_be_read_loses_and_ends_nothing(step: Step) -> None:
    broken = step.select(1, "unreadable")
    assert (broken.outcome, broken.adapter, broken.scores) == ("done", None, ())
    assert broken.facts["standing"] == "failed"
    assert broken.message is not None and "maxErrorRate" in broken.message
    assert step.select(2, "right-20").adapter == adapter("right-20"), "the next one is scored in full"
    assert step.calls("right-20") == QUESTIONS


def test_a_stage_that_starts_again_pays_for_nothing_twice(step: Step, store: MemoryStore) -> None:
    step.select(1, "right-120")
    before = dict(store.objects)
    first = step.select(2, "right-119")
    written = [key for key in store.objects if key not in before and "/ledger/" in key]
    lines = b"".join(store.objects[key] for key in written).splitlines(keepends=True)
    for key in written:
        del store.objects[key]
    store.objects[written[0]] = b"".join(lines[:50])
    calls = step.calls("right-119")
    assert step.select(2, "right-119") == first
    assert step.calls("right-119") - calls == QUESTIONS - 50


def test_a_budget_that_ends_says_so_and_names_no_adapter(step: Step) -> None:
    step.select(1, "right-120")
    result = step.select(2, "right-140", tokens_left=400)
    assert (result.outcome, result.reason, result.adapter, result.scores) == ("stopped", "BudgetExhausted", None, ())
    assert result.message is not None and "epoch 2" in result.message
    assert 0 < step.calls("right-140") < QUESTIONS


def test_a_damaged_ledger_of_the_best_so_far_is_told(step: Step, store: MemoryStore) -> None:
    step.select(1, "right-120")
    del store.objects[next(key for key in store.objects if "/select-1/ledger/" in key)]
    with pytest.raises(DataError, match=r"select-1/ledger/ lacks \d+ of 160 validation examples"):
        step.select(2, "right-140")


def test_the_evaluation_after_it_does_not_pay_for_the_chosen_adapter_again(step: Step) -> None:
    chosen = step.select(1, "right-120")
    calls = step.calls("right-120")
    result = evaluate.run(step.context("evaluate", "right-120"))
    assert result.scores == chosen.scores
    assert step.calls("right-120") == calls
    assert result.usage.calls == 0, "the select stage has told what they cost"
