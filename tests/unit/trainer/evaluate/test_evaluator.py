"""The evaluator: order, concurrency, reuse of the ledger, and what ends a stage."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import dspy
import pytest
from tests.memory_store import MemoryStore

from tandem_api.contract import Endpoint, StageRequest, StorageRef
from tandem_api.errors import ErrorRateError, ServingError
from tandem_api.records import PredictorCall, PredictorPrompt, PromptSet
from tandem_api.v1alpha1.spec import Sampling
from tandem_api.v1alpha1.status import Artifact, Usage
from tandem_trainer import journal
from tandem_trainer.evaluate.evaluator import Evaluator, Job, summarize
from tandem_trainer.evaluate.examples import Example
from tandem_trainer.evaluate.ledger import Ledger
from tandem_trainer.evaluate.metrics import Judgement, Metric, MetricError
from tandem_trainer.lm.client import BudgetExhausted
from tandem_trainer.program.running import ProgramRun

EXAMPLES = [Example(f"e{n}", {"q": f"question {n}", "a": "yes"}) for n in range(40)]
CALL = PredictorCall(predictor="predict", inputs={"q": "x"}, messages=({"role": "user"},), completion="yes")


def prompts(instruction: str = "Answer.") -> PromptSet:
    return PromptSet(predictors={"predict": PredictorPrompt(instruction=instruction)})


class FakeRunner:
    """Answers at once with what `answer(example id)` returns or raises: a text, or a failed run's status."""

    def __init__(self, answer: Callable[[str], str] = lambda example: "yes") -> None:
        self.answer = answer
        self.started: list[str] = []
        self.running = self.most_running = 0
        self.samplings: set[str] = set()

    async def run(self, prompts: Any, example_id: str, inputs: Any, *, sample: int, sampling: Sampling) -> ProgramRun:
        self.started.append(example_id)
        self.samplings.add(sampling.temperature)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        try:
            # Later ones overtake: the order of the results must not depend on the order of arrival.
            for _ in range(20 + len(self.started) % 7):
                await asyncio.sleep(0)
            text = self.answer(example_id)
        finally:
            self.running -= 1
        failed = text in ("unparsable", "call_failed", "program_failed")
        return ProgramRun(
            prediction=None if failed else dspy.Prediction(a=text),
            calls=(CALL,),
            status=text if failed else "ok",  # type: ignore[arg-type]
            error=f"no field in 'text {example_id}'" if failed else None,
            usage=Usage(calls=1, prompt_tokens=10, completion_tokens=1),
            seconds=0.01,
        )


def build(
    make_spec: Callable[..., Any],
    runner: Any,
    store: MemoryStore,
    *,
    metric: Metric | None = None,
    seed: int = 0,
    adapter: Artifact | None = None,
    stage: Any = "evaluate",
    **evaluation: Any,
) -> tuple[Evaluator, Ledger]:
    request = StageRequest(
        namespace="n",
        name="r",
        uid="u",
        index=0,
        kind="baseline",
        stage=stage,
        attempt=1,
        spec=make_spec(evaluation={"concurrency": 8, **evaluation}, seed=seed),
        storage=StorageRef(bucket="bucket"),
        endpoint=Endpoint(url="http://x", model="base", adapter=adapter),
    )
    ledger = Ledger(store, "ledger/")
    ledger.load()
    metric = metric or Metric("equal", lambda e, p: Judgement(float(p.a == e.fields["a"])), in_thread=False)
    return Evaluator(runner, metric, ledger, request=request, program_sha256="p"), ledger


@pytest.fixture
def evaluate(make_spec: Any, store: MemoryStore) -> Callable[..., Any]:
    """Run jobs (default: all examples) with a runner, in a fresh evaluator over the same store."""

    def run(
        runner: Any, jobs: list[Job] | None = None, *, keep_calls: bool = False, progress: Any = None, **how: Any
    ) -> Any:
        evaluator, ledger = build(make_spec, runner, store, **how)
        jobs = [Job(prompts(), example) for example in EXAMPLES] if jobs is None else jobs
        try:
            return asyncio.run(evaluator.run(jobs, keep_calls=keep_calls, progress=progress))
        finally:
            evaluator.close()
            ledger.close()

    return run


def test_results_are_in_the_order_of_the_jobs_and_slots_are_kept(evaluate: Any) -> None:
    runner = FakeRunner(lambda example: "yes" if int(example[1:]) % 2 else "no")
    records = evaluate(runner)
    assert [record.example for record in records] == [example.id for example in EXAMPLES]
    assert [record.score for record in records] == [0.0, 1.0] * 20
    assert records[0].prediction == {"a": "no"}
    assert runner.most_running == 8
    score = summarize(records)
    assert (score.score, score.n, score.errors) == (0.5, 40, 0)
    assert score.low < 0.5 < score.high


def test_second_attempt_runs_only_what_is_missing_and_counts_usage_once(evaluate: Any, store: MemoryStore) -> None:
    def dies(example: str) -> str:
        if example == "e30":
            raise ServingError("gone")
        return "yes"

    first = FakeRunner(dies)
    with pytest.raises(ServingError, match="gone"):
        evaluate(first)
    kept = sum(len(data.splitlines()) for data in store.objects.values())
    second = FakeRunner()
    records = evaluate(second)
    assert 22 <= kept < 40
    assert len(second.started) == 40 - kept
    assert [record.score for record in records] == [1.0] * 40
    ledger = Ledger(store, "ledger/")
    ledger.load()
    assert ledger.usage == Usage(calls=40, prompt_tokens=400, completion_tokens=40)


def test_equal_jobs_are_run_once(evaluate: Any) -> None:
    runner = FakeRunner()
    records = evaluate(runner, [Job(prompts(), EXAMPLES[0]), Job(prompts(), EXAMPLES[0]), Job(prompts(), EXAMPLES[1])])
    assert runner.started == ["e0", "e1"]
    assert [record.example for record in records] == ["e0", "e0", "e1"]


@pytest.mark.parametrize(
    ("job", "how"),
    [
        (Job(prompts("Other."), EXAMPLES[0]), {}),
        (Job(prompts(), Example("e0", {"q": "question 0", "a": "no"})), {}),
        (Job(prompts(), Example("other", EXAMPLES[0].fields)), {}),
        (Job(prompts(), EXAMPLES[0], sample=1), {}),
        (Job(prompts(), EXAMPLES[0], sampling=Sampling(temperature="0.7")), {}),
        (Job(prompts(), EXAMPLES[0]), {"seed": 1}),
        (Job(prompts(), EXAMPLES[0]), {"adapter": Artifact(uri="s3://b/a", sha256="0" * 64)}),
    ],
    ids=["prompts", "label", "id", "sample", "sampling", "seed", "adapter"],
)
def test_results_are_reused_only_when_nothing_they_depend_on_differs(evaluate: Any, job: Job, how: Any) -> None:
    evaluate(FakeRunner(), [Job(prompts(), EXAMPLES[0])])
    runner = FakeRunner()
    evaluate(runner, [job], **how)
    assert len(runner.started) == 1


def test_record_without_its_trace_does_not_serve_where_the_trace_is_wanted(evaluate: Any) -> None:
    jobs = [Job(prompts(), EXAMPLES[0])]
    plain, traced, again = FakeRunner(), FakeRunner(), FakeRunner()
    assert evaluate(plain, jobs)[0].calls == ()
    assert evaluate(traced, jobs, keep_calls=True)[0].calls == (CALL,)
    assert evaluate(again, jobs, keep_calls=True)[0].calls == (CALL,)
    assert (len(plain.started), len(traced.started), len(again.started)) == (1, 1, 0)


def test_record_with_its_trace_serves_where_the_trace_is_not_needed(evaluate: Any) -> None:
    jobs = [Job(prompts(), EXAMPLES[0])]
    evaluate(FakeRunner(), jobs, keep_calls=True)
    again = FakeRunner()
    evaluate(again, jobs)
    assert not again.started


def test_failed_examples_score_zero_and_are_counted_with_their_cause(evaluate: Any) -> None:
    failures = {"e0": "unparsable", "e1": "call_failed", "e2": "program_failed"}
    records = evaluate(FakeRunner(lambda example: failures.get(example, "yes")))
    assert [record.status for record in records[:4]] == ["unparsable", "call_failed", "program_failed", "ok"]
    score = summarize(records)
    assert (score.score, score.errors) == (37 / 40, 3)
    assert records[0].error == "no field in 'text e0'"


@pytest.mark.parametrize("in_thread", [True, False])
def test_metric_that_fails_on_an_example_is_counted(evaluate: Any, in_thread: bool) -> None:
    def judge(example: Example, prediction: Any) -> Judgement:
        if example.id == "e3":
            raise MetricError("returned nan")
        return Judgement(1.0)

    records = evaluate(FakeRunner(), metric=Metric("mine:metric", judge, in_thread))
    assert [record.status for record in records].count("metric_failed") == 1
    assert (records[3].score, records[3].error) == (0.0, "mine:metric: returned nan")


def test_slow_metric_of_the_user_does_not_hold_up_the_calls(evaluate: Any) -> None:
    loops: list[Any] = []

    def judge(example: Example, prediction: Any) -> Judgement:
        with pytest.raises(RuntimeError):
            loops.append(asyncio.get_running_loop())
        return Judgement(1.0)

    evaluate(FakeRunner(), metric=Metric("mine", judge, in_thread=True))
    assert not loops


def test_too_many_errors_end_the_stage_with_counts_and_the_commonest_causes(evaluate: Any) -> None:
    runner = FakeRunner(lambda example: "call_failed" if example in ("e1", "e2") else "unparsable")
    with pytest.raises(ErrorRateError) as caught:
        evaluate(runner)
    text = str(caught.value)
    assert "20 of 20 examples failed, more than evaluation.maxErrorRate 0.5 allows" in text
    assert "18 times unparsable: no field in 'text e0' (example e0); 2 times call_failed" in text
    assert len(runner.started) < 40


def test_error_rate_is_judged_by_the_full_count_not_by_who_came_first(evaluate: Any) -> None:
    # 60% of the first 30 fail, but only 45% of all: an early look must not end the stage.
    records = evaluate(FakeRunner(lambda example: "unparsable" if int(example[1:]) < 18 else "yes"))
    assert summarize(records).errors == 18


def test_error_rate_just_above_the_limit_is_found_at_the_end(evaluate: Any) -> None:
    with pytest.raises(ErrorRateError, match="21 of 40 examples failed"):
        evaluate(FakeRunner(lambda example: "unparsable" if int(example[1:]) % 2 or example == "e0" else "yes"))


def test_error_rate_of_one_allows_everything(evaluate: Any) -> None:
    records = evaluate(FakeRunner(lambda example: "unparsable"), max_error_rate="1")
    assert summarize(records).score == 0


def test_spent_budget_keeps_what_was_in_flight(evaluate: Any, make_spec: Any, store: MemoryStore) -> None:
    def spends(example: str) -> str:
        if int(example[1:]) >= 10:
            raise BudgetExhausted("used up")
        return "yes"

    with pytest.raises(BudgetExhausted):
        evaluate(FakeRunner(spends))
    evaluator, _ = build(make_spec, FakeRunner(), store)
    found = evaluator.scored([Job(prompts(), example) for example in EXAMPLES])
    assert [record is not None for record in found] == [True] * 10 + [False] * 30


def test_a_store_that_holds_work_back_does_not_change_the_order_of_the_runs(
    make_spec: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The leader's runs are first, so that a budget that ends leaves a leader: none may be overtaken while it waits."""

    class Uneven(FakeRunner):
        async def run(self, *given: Any, **named: Any) -> ProgramRun:
            found = await super().run(*given, **named)
            await asyncio.sleep(0.003 * (len(self.started) % 5))
            return found

    monkeypatch.setattr(journal, "ROOM_SECONDS", 0.05)
    runner, store = Uneven(), MemoryStore(on_put=lambda key: time.sleep(0.03))
    evaluator, _ = build(make_spec, runner, store, concurrency=4)
    evaluator._ledger = ledger = Ledger(store, "slow/", batch=4)
    asyncio.run(evaluator.run([Job(prompts(), example) for example in EXAMPLES]))
    ledger.close()
    assert runner.started == [example.id for example in EXAMPLES]


def test_dead_server_ends_the_run_at_once_and_leaves_no_task_behind(make_spec: Any, store: MemoryStore) -> None:
    class Hanging(FakeRunner):
        async def run(self, prompts: Any, example_id: str, *args: Any, **kwargs: Any) -> ProgramRun:
            if example_id == "e5":
                raise ServingError("dead")
            await asyncio.sleep(3600)
            raise AssertionError

    async def run() -> int:
        evaluator, _ = build(make_spec, Hanging(), store)
        with pytest.raises(ServingError):
            await evaluator.run([Job(prompts(), example) for example in EXAMPLES])
        return len(asyncio.all_tasks())

    began = time.monotonic()
    assert asyncio.run(run()) == 1
    assert time.monotonic() - began < 60


def test_progress_starts_with_what_is_known_and_ends_with_all(evaluate: Any) -> None:
    evaluate(FakeRunner(), [Job(prompts(), example) for example in EXAMPLES[:10]])
    seen: list[tuple[int, int, float]] = []
    evaluate(FakeRunner(lambda example: "no"), progress=lambda *report: seen.append(report))
    assert seen[0] == (10, 40, 1.0)
    assert seen[-1] == (40, 40, 0.25)
    assert [done for done, _, _ in seen] == list(range(10, 41))


def test_jobs_own_sampling_comes_before_the_models(evaluate: Any) -> None:
    runner = FakeRunner()
    evaluate(runner, [Job(prompts(), EXAMPLES[0]), Job(prompts(), EXAMPLES[1], sampling=Sampling(temperature="0.7"))])
    assert runner.samplings == {"0", "0.7"}


def test_no_jobs_are_no_work(evaluate: Any) -> None:
    assert evaluate(FakeRunner(), []) == []


def test_a_search_is_not_ended_by_one_failure_in_a_small_round(make_spec: Any, store: MemoryStore) -> None:
    runner = FakeRunner(lambda example: "unparsable" if example == "e01" else "yes")
    evaluator, ledger = build(make_spec, runner, store, stage="optimize", max_error_rate="0.1")
    jobs = [Job(prompts(), example) for example in EXAMPLES]

    async def rounds() -> None:
        for begin in range(0, len(jobs), 4):
            await evaluator.run(jobs[begin : begin + 4])

    asyncio.run(rounds())
    evaluator.check_error_rate()
    ledger.close()


def test_a_search_of_which_too_much_failed_is_told_at_its_end(make_spec: Any, store: MemoryStore) -> None:
    runner = FakeRunner(lambda example: "unparsable" if int(example[1:]) % 5 == 0 else "yes")
    evaluator, ledger = build(make_spec, runner, store, stage="optimize", max_error_rate="0.1")
    asyncio.run(evaluator.run([Job(prompts(), example) for example in EXAMPLES]))
    with pytest.raises(ErrorRateError, match="8 of 40"):
        evaluator.check_error_rate()
    ledger.close()


def test_half_a_surrogate_pair_is_written_as_a_question_mark(evaluate: Any, store: MemoryStore) -> None:
    records = evaluate(FakeRunner(lambda example: "\ud83d"), [Job(prompts(), EXAMPLES[0])])
    assert records[0].prediction == {"a": "?"}
    assert any(b'"a":"?"' in (store.get(key) or b"") for key in store.list("ledger/"))
