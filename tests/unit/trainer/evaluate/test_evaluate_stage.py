"""The evaluate stage over real HTTP: scores, faults, budgets, and attempts that continue each other."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
from tests.memory_store import MemoryStore
from tests.scripted_lm.server import Fault, ScriptedServer

from tandem_api.canonical import canonical_json
from tandem_api.contract import Prompts
from tandem_api.errors import AdapterMissingError, DataError, PreemptedError, ServingError
from tandem_api.records import PredictorPrompt, PromptSet, ScoredExample
from tandem_api.v1alpha1.status import Artifact
from tandem_trainer.stages import evaluate

ROWS = [{"q": f"question {n}", "a": "yes" if n % 4 else "no"} for n in range(40)]
VANILLA = Prompts(label="vanilla")
EVALUATION = {"concurrency": 4, "unavailable_timeout_seconds": 1}


def always_yes(request: dict[str, Any]) -> str:
    return " yes"


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(always_yes) as running:
        yield running


@pytest.fixture
def make(make_spec: Any, make_context: Any, write_jsonl: Any) -> Any:
    """The context of an evaluate stage against a server."""

    def context(url: str, *, evaluation: Any = EVALUATION, test: str | None = None, **fields: Any) -> Any:
        uri = write_jsonl("d.jsonl", ROWS)
        spec = make_spec(uri, validation=uri, test=test, evaluation=evaluation)
        return make_context(spec, url=url, **{"prompts": (VANILLA,), **fields})

    return context


def put_prompts(store: MemoryStore, instruction: str) -> Artifact:
    prompts = PromptSet(predictors={"self": PredictorPrompt(instruction=instruction)})
    return store.put(f"prompts/{prompts.sha256}.json", canonical_json(prompts.model_dump(mode="json")).encode())


def ledger(store: MemoryStore) -> list[ScoredExample]:
    objects = [data for key, data in sorted(store.objects.items()) if "/ledger/" in key]
    return [ScoredExample.model_validate_json(line) for data in objects for line in data.splitlines()]


def test_prompt_sets_are_scored_and_answers_kept(make: Any, server: ScriptedServer, store: MemoryStore) -> None:
    tuned = put_prompts(store, "Say yes or no, as you see fit.")
    server.lm.answer = lambda request: " no" if "as you see fit" in request["text"] else " yes"
    context = make(server.url, prompts=(VANILLA, Prompts(label="current", artifact=tuned)))
    result = evaluate.run(context)
    assert [(score.prompts, score.score, score.n) for score in result.scores] == [(None, 0.75, 40), (tuned, 0.25, 40)]
    assert result.outcome == "done"
    assert result.usage.calls == 80 == server.stats()["calls"]["base"]
    assert {record.prediction["a"] for record in ledger(store)} == {"yes", "no"}


def test_killed_attempt_is_continued_and_pays_only_once(make: Any, server: ScriptedServer, store: MemoryStore) -> None:
    first = evaluate.run(make(server.url))
    objects = [key for key in store.objects if "/ledger/" in key]
    # As after a kill: what was not written is lost, what was is not run again.
    lost = len(store.objects.pop(objects[-1]).splitlines())
    again = evaluate.run(make(server.url, attempt=2))
    assert again == first
    assert server.stats()["calls"]["base"] == 40 + lost
    assert server.stats()["repeats"] == lost


def test_asked_to_stop_it_keeps_what_it_had(make: Any, server: ScriptedServer, store: MemoryStore) -> None:
    context = make(server.url)
    stop = threading.Timer(0, context.stopping.set)

    def answer(request: dict[str, Any]) -> str | Fault:
        if len(server.requests) == 20:
            stop.start()
        return " yes" if len(server.requests) < 20 else Fault(latency=30)

    server.lm.answer = answer
    with pytest.raises(PreemptedError):
        evaluate.run(context)
    stop.join()
    kept = len(ledger(store))
    assert 15 <= kept < 20
    assert context.meter.usage.calls == kept
    server.lm.answer = always_yes
    result = evaluate.run(make(server.url, attempt=2))
    assert (result.scores[0].score, result.usage.calls) == (0.75, 40)


def test_dead_server_is_an_error_and_never_a_score(make: Any, store: MemoryStore) -> None:
    with ScriptedServer(always_yes) as server:
        server.lm.answer = lambda request: " yes" if len(server.requests) <= 12 else Fault(drop=True)
        with pytest.raises(ServingError, match="gave no answer for 1 s"):
            evaluate.run(make(server.url))
        assert all(record.status == "ok" for record in ledger(store))
        assert len(ledger(store)) == 12
        server.lm.answer = always_yes
        assert evaluate.run(make(server.url, attempt=2)).scores[0].score == 0.75


def test_server_without_the_adapter_is_refused_before_any_call(make: Any) -> None:
    with (
        ScriptedServer(always_yes, models=("other",)) as server,
        pytest.raises(AdapterMissingError, match="other"),
    ):
        evaluate.run(make(server.url))
    assert server.stats()["calls"] == {}


def test_budget_that_runs_out_keeps_the_prompt_sets_that_are_complete(
    make: Any, server: ScriptedServer, store: MemoryStore
) -> None:
    tuned = Prompts(label="current", artifact=put_prompts(store, "Other."))
    whole = evaluate.run(make(server.url))
    result = evaluate.run(make(server.url, prompts=(VANILLA, tuned), attempt=2, tokens_left=whole.usage.tokens + 50))
    assert (result.outcome, result.reason) == ("stopped", "BudgetExhausted")
    assert result.scores == whole.scores
    assert "1 of 2 prompt sets" in result.message
    assert result.usage.tokens > whole.usage.tokens


def test_data_that_changed_since_the_check_are_refused(make: Any, server: ScriptedServer) -> None:
    with pytest.raises(DataError, match=r"data\.validation has changed since the run began"):
        evaluate.run(make(server.url, data_digests={"validation": "0" * 64}))
    assert not server.requests


def test_test_split_is_scored_where_it_is_asked_for(make: Any, server: ScriptedServer, write_jsonl: Any) -> None:
    test = write_jsonl("test.jsonl", [{"q": "last", "a": "yes"}])
    assert evaluate.run(make(server.url, test=test, split="test")).scores[0].n == 1


def test_unparsable_answers_score_zero_and_are_counted(make: Any, server: ScriptedServer) -> None:
    server.lm.answer = lambda request: "" if "question 1\n" in request["text"] else " yes"
    score = evaluate.run(make(server.url)).scores[0]
    assert (score.score, score.errors) == (29 / 40, 1)


def test_damaged_prompt_set_is_named(make: Any, server: ScriptedServer, store: MemoryStore) -> None:
    artifact = store.put("prompts/x.json", b"{}")
    with pytest.raises(DataError, match=r"s3://bucket/prompts/x\.json is not a prompt set"):
        evaluate.run(make(server.url, prompts=(Prompts(label="current", artifact=artifact),)))
