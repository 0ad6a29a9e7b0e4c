"""What is gathered: stages on one clock, what they left in S3, and examples before and after."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.memory_store import MemoryStore
from tests.unit.trainer.report.sample import (
    ADAPTER,
    BEGAN,
    Clock,
    artifact,
    candidate,
    loss_log,
    request,
    spec,
    step,
    trials,
)

from tandem_api.canonical import canonical_json
from tandem_api.contract import CandidateScore
from tandem_api.errors import DataError
from tandem_api.records import PredictorCall, PredictorPrompt, PromptSet, ScoredExample
from tandem_api.v1alpha1.status import Artifact, EpochAdapter, StageStatus, Status, Usage
from tandem_trainer.context import StageContext
from tandem_trainer.evaluate.examples import Example
from tandem_trainer.program.loading import LoadedProgram, load_program
from tandem_trainer.progress import ProgressReporter
from tandem_trainer.prompt.trials import write_prompt_set
from tandem_trainer.report.facts import Changes, Facts, compare, gather, stage_times
from tandem_trainer.report.render import render_report
from tandem_trainer.report.scores import scores_document

TEST = CandidateScore(prompts=None, score=0.75, low=0.3, high=0.95, n=4)
SPENT = Usage(calls=4, prompt_tokens=200, completion_tokens=20)
CALL = PredictorCall(predictor="self", inputs={}, messages=(), completion="positive")


class Run:
    """A `p -> w` whose objects lie in a store: the search scored on the optimize stage's own ledger."""

    def __init__(self, folder: Path) -> None:
        self.store = MemoryStore()
        data: dict[str, Any] = {"inputs": ["review"]}
        for split, count in (("train", 6), ("validation", 5), ("test", 4)):
            # The same ids in every split: users number their rows.
            rows = [{"id": n, "review": f"{split} {n}", "sentiment": "positive"} for n in range(count)]
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
            data[split] = {"uri": (folder / f"{split}.jsonl").as_uri()}
        self.spec = spec(data=data, strategy="p -> w")
        self.program: LoadedProgram = load_program(self.spec)
        self.prompts = PromptSet(
            predictors={
                "self": PredictorPrompt(instruction="Judge.", demos=({"review": "x", "sentiment": "positive"},))
            }
        )
        draft = request(self.spec, Status())
        self.layout = draft.layout
        self.found: Artifact = write_prompt_set(self.store, self.layout.stage(1, "p", "optimize"), self.prompts)
        clock = Clock()
        steps = (
            step(0, "baseline", clock.stage("evaluate", 4, 20, calls=5), candidates=(candidate(0, 0.4, None, None),)),
            step(1, "p", clock.stage("optimize", 30, calls=50), prompt_set=self.found,
                 candidates=(candidate(1, 0.6, self.found, None),)),
            step(2, "w", clock.stage("traces", 9, calls=6), clock.stage("train", 60, facts={"rows": 6}),
                 clock.stage("evaluate", 5, 25, calls=10), adapter=ADAPTER,
                 candidates=(candidate(2, 0.2, None, ADAPTER), candidate(2, 0.8, self.found, ADAPTER))),
            step(3, "final", clock.stage("evaluate", 0, state="Running", attempt=2, failures=1), state="Running"),
        )  # fmt: skip
        spent = steps[3].stages[0].model_copy(update={"usage": Usage(calls=3, prompt_tokens=150, gpu_seconds=7)})
        steps = (*steps[:3], steps[3].model_copy(update={"stages": (spent,)}))
        total = Usage()
        for one in steps:
            for stage in one.stages:
                total = total.plus(stage.usage)
        self.status = Status(steps=steps, baseline=steps[0].candidates[0], usage=total, started=BEGAN)
        self.choose(2, 1)
        self.ledger(0, "baseline", "evaluate", self.program.vanilla, [1, 0, 0, 1, 0])
        self.ledger(1, "p", "optimize", self.prompts, [1, 1, 0, 0, 1])
        self.ledger(2, "w", "evaluate", self.program.vanilla, [0, 0, 0, 0, 1])
        self.ledger(2, "w", "evaluate", self.prompts, [1, 1, 1, 0, 1])

    def choose(self, index: int, position: int) -> None:
        self.status = self.status.model_copy(update={"best": self.status.steps[index].candidates[position]})

    def ledger(
        self,
        index: int,
        kind: Any,
        stage: Any,
        prompts: PromptSet,
        scores: list[float],
        suffix: str = "",
        **fields: Any,
    ) -> None:
        """Records of examples 0, 1, ... with these scores; `suffix` is that of the keys of runs that keep calls."""
        records = [
            ScoredExample(
                key=f"{prompts.sha256[:8]}{example}{suffix}",
                candidate=prompts.sha256,
                example=str(example),
                score=score,
                prediction={"sentiment": "positive" if score else "negative"},
            ).model_copy(update=fields)
            for example, score in enumerate(scores)
        ]
        lines = "".join(canonical_json(record.model_dump(mode="json")) + "\n" for record in records)
        prefix = self.layout.stage(index, kind, stage).ledger
        self.store.put(f"{prefix}{len(self.store.objects):04d}.jsonl", lines.encode())

    def drop(self, index: int, kind: Any, stage: Any) -> None:
        prefix = self.layout.stage(index, kind, stage).ledger
        for key in [key for key in self.store.objects if key.startswith(prefix)]:
            del self.store.objects[key]

    def gather(self, test: tuple[CandidateScore, ...] = (TEST,)) -> Facts:
        context = StageContext(
            request=request(self.spec, self.status),
            store=self.store,
            progress=ProgressReporter(None),
            cache=Path("unused"),
        )
        best = self.status.best
        prompts = self.prompts if best is not None and best.prompt_set else self.program.vanilla
        return gather(context, self.program, prompts, self.status, test, SPENT)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


def test_before_is_the_baselines_answer_and_after_the_best_candidates(run: Run) -> None:
    facts = run.gather()
    assert facts.sizes == {"train": 6, "validation": 5, "test": 4}
    assert facts.changes == Changes(better=3, worse=1, same=1)
    told = [(c.example, c.before, c.after) for c in facts.comparisons]
    wrong, right = "sentiment: negative", "sentiment: positive"
    assert told == [*((n, wrong, right) for n in "124"), ("3", right, wrong), ("0", right, right)]
    assert facts.comparisons[0].inputs == {"review": "validation 1"}
    assert facts.comparisons[0].gold == {"sentiment": "positive"}


def test_the_best_of_a_search_is_not_confused_with_its_runs_on_training_examples(run: Run) -> None:
    """A search's ledger holds bootstrapping runs of examples with the same ids."""
    run.choose(1, 0)
    run.ledger(1, "p", "optimize", run.prompts, [0, 0, 1], suffix="+calls", calls=(CALL,))
    run.ledger(1, "p", "optimize", run.prompts, [0, 0, 0, 0, 0], suffix="no+calls", status="call_failed")
    assert run.gather().changes == Changes(better=2, worse=1, same=2)


def test_scores_on_training_examples_are_not_taken_for_those_on_validation(run: Run) -> None:
    """A search may score its candidates on training examples, whose ids are the same."""
    run.choose(1, 0)
    run.ledger(1, "p", "optimize", run.prompts, [0, 0, 0, 0, 0], suffix="t", example_sha256="0" * 64)
    assert run.gather().changes == Changes(better=2, worse=1, same=2)


def test_the_base_prompts_under_an_adapter_are_looked_up_where_they_were_scored(run: Run) -> None:
    run.choose(2, 0)
    facts = run.gather()
    assert facts.changes == Changes(better=1, worse=2, same=2) and not facts.is_unchanged
    assert facts.baseline_test is None, "the test score is the tuned model's"


def test_the_best_of_a_step_that_ended_while_it_chose_is_looked_up_where_its_epoch_was_scored(run: Run) -> None:
    """The budget ended the step after epoch 2 had won: it was never evaluated."""
    epochs = tuple(EpochAdapter(epoch=n, adapter=artifact(f"epoch/{n}")) for n in (3, 2, 1))
    clock = Clock()
    selects = (clock.stage("select-1", 5), clock.stage("select-2", 5), clock.stage("select-3", 1, state="Stopped"))
    best = candidate(2, 0.8, None, epochs[1].adapter)
    chosen = step(
        2, "w", *run.status.steps[2].stages[:2], *selects, StageStatus(name="evaluate"), state="Stopped",
        epochs=epochs, adapter=epochs[1].adapter, candidates=(best,),
    )  # fmt: skip
    run.status = run.status.model_copy(
        update={"steps": (*run.status.steps[:2], chosen, run.status.steps[3]), "best": best}
    )
    run.drop(2, "w", "evaluate")
    run.ledger(2, "w", "select-1", run.program.vanilla, [0, 0, 0, 0, 0])
    run.ledger(2, "w", "select-2", run.program.vanilla, [1, 1, 1, 0, 1])
    run.ledger(2, "w", "select-3", run.program.vanilla, [0])
    assert run.gather().changes == Changes(better=3, worse=1, same=1)


def test_an_answer_that_could_not_be_read_says_why(run: Run) -> None:
    run.choose(1, 0)
    run.store.delete(run.layout.stage(0, "baseline", "evaluate").ledger)
    run.ledger(0, "baseline", "evaluate", run.program.vanilla, [0] * 5, status="unparsable", error="no field",
               prediction=None)  # fmt: skip
    assert run.gather().comparisons[0].before == "(unparsable) no field"


def test_trials_and_training_logs_are_read_where_the_stages_left_them(run: Run) -> None:
    search, training = run.layout.stage(1, "p", "optimize"), run.layout.stage(2, "w", "train")
    found = trials(3, 1)
    run.store.put(f"{search.root}trials.jsonl", "\n".join(t.model_dump_json() for t in found).encode())
    run.store.put(f"{training.root}train_log.jsonl", "\n".join(json.dumps(line) for line in loss_log(20)).encode())
    facts = run.gather()
    assert [(s.step, s.trials) for s in facts.searches] == [(1, found)]
    assert [(t.step, t.log, t.facts) for t in facts.trainings] == [(2, loss_log(20), {"rows": 6})]


def test_a_search_that_was_stopped_early_has_no_trials(run: Run) -> None:
    (search,) = run.gather().searches
    assert search.trials == ()


def test_a_damaged_prompt_set_is_reported_and_not_shown(run: Run) -> None:
    key = run.found.uri.removeprefix("s3://bucket/")
    run.store.objects[key] = b"{}"
    with pytest.raises(DataError, match="missing or not what was written"):
        run.gather()


def test_the_final_stage_counts_its_own_spending_once_and_its_time_until_now(run: Run) -> None:
    """An attempt that failed is in the status already, and again in what the ledger counts."""
    facts = run.gather()
    own = facts.stages[-1]
    assert (own.stage, own.state, own.attempts) == ("evaluate", "Running", 2)
    assert own.usage == SPENT.plus(Usage(gpu_seconds=7)) and own.seconds > 0
    assert facts.usage.calls == 5 + 50 + 6 + 10 + 4
    assert facts.usage.tokens == sum(stage.usage.tokens for stage in facts.stages)


def test_stages_lie_on_the_runs_clock_with_loading_and_gap_apart() -> None:
    def at(seconds: float) -> Any:
        return BEGAN + timedelta(seconds=seconds)

    check = StageStatus(
        name="check", state="Succeeded", attempt=1, requested=at(0), ready=at(0), started=at(1), finished=at(3)
    )
    evaluate = StageStatus(
        name="evaluate", state="Succeeded", attempt=2, requested=at(4), ready=at(24), started=at(25), finished=at(60)
    )
    never = StageStatus(name="optimize")
    status = Status(started=BEGAN, steps=(step(0, "baseline", check, evaluate), step(1, "p", never, state="Skipped")))
    first, second = stage_times(status, Usage(), at(99))
    assert (first.start, first.seconds, first.loading, first.gap) == (1, 2, 0, 1)
    assert (second.start, second.seconds, second.loading, second.gap, second.attempts) == (25, 35, 20, 2, 2)


def test_a_regression_is_among_the_examples_however_many_got_better() -> None:
    def pair(number: int, before: float, after: float) -> Any:
        old, new = (
            ScoredExample(key="k", candidate="c", example=str(number), score=score) for score in (before, after)
        )
        return Example(str(number), {"q": number}), old, new

    pairs = (*(pair(n, 0, 1) for n in range(9)), pair(9, 1, 0), pair(10, 1, 1))
    assert [c.example for c in compare(pairs, ("q",))] == ["0", "1", "2", "3", "9"]
    assert [c.example for c in compare(pairs[9:], ("q",))] == ["9", "10"]


def test_templates_hold_the_prompt_as_it_is_sent(run: Run) -> None:
    system, *_, user = run.gather().templates["self"]
    assert "Judge." in system["content"] and "{review}" in user["content"]


def test_what_is_gathered_makes_a_page_and_a_document(run: Run) -> None:
    facts = run.gather((TEST.model_copy(update={"prompts": run.found}),))
    page, document = render_report(facts), scores_document(facts)
    assert "▲ better" in page and "▼ worse" in page and json.loads(json.dumps(document, allow_nan=False)) == document
    assert len(document["candidates"]) == 4 and document["test"]["score"] == 0.75 and document["baseline_test"] is None
    assert document["changes"] == {"better": 3, "worse": 1, "same": 1}


def test_the_unchanged_programs_test_score_is_the_bests_where_nothing_beat_it(run: Run) -> None:
    run.choose(0, 0)
    document = scores_document(run.gather())
    assert (
        document["test"] == document["baseline_test"] == {"score": 0.75, "low": 0.3, "high": 0.95, "n": 4, "errors": 0}
    )
