"""A `w` step that chooses among the epochs of its training (`checkpoint: best`): order, winners, budgets, crashes."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.operator.decide.test_runs import outcome
from tests.unit.operator.decide.world import Script, World, artifact, condition, failed, finish, manifest, scripted

from tandem_api.canonical import digest
from tandem_api.contract import CandidateScore, EpochDigest, StageRequest, StageResult
from tandem_api.v1alpha1.status import SELECT_STAGES, Artifact, StageStatus, StepStatus, Usage
from tandem_operator.actions import EmitEvent, EnsureServing
from tandem_operator.decide.names import task_name

BEST = {"checkpoint": "best", "epochs": 3}


def tuned(scores: dict[int, float | None]) -> Script:
    """The workers of a run whose epochs' adapters have these scores; None: its examples fail too often."""
    last = max(scores)

    def script(request: StageRequest) -> StageResult:
        if request.stage == "train":
            earlier = tuple(EpochDigest(epoch=n, sha256=digest(f"{request.index}.{n}")) for n in sorted(scores)[:-1])
            return StageResult(adapter=artifact(f"adapter-{request.index}-train"), epochs=earlier)
        if not request.stage.startswith("select"):
            return scripted(request)
        assert request.epoch is not None and request.endpoint is not None
        score = scores[request.epoch]
        leader = None if request.best_stage is None else scores[last - SELECT_STAGES.index(request.best_stage)]
        usage = Usage(calls=10, prompt_tokens=900, completion_tokens=100)
        if score is None or (leader is not None and score < leader):
            return StageResult(usage=usage)
        full = CandidateScore(score=score, low=0.1, high=0.95, n=100)
        return StageResult(scores=(full,), adapter=request.endpoint.adapter, usage=usage)

    return script


def run_of(scores: dict[int, float | None], **spec: Any) -> World:
    return World(manifest(**{"strategy": "w", "weightOptimizer": BEST, **spec}), script=tuned(scores))


def selects(world: World) -> list[StageRequest]:
    return [request for request in world.requests if request.stage.startswith("select")]


def earlier(epoch: int, index: int = 1) -> Artifact:
    """An adapter of an epoch before the last."""
    uri = f"s3://b/default/reviews/u1/steps/{index}-w/train/adapters/{epoch}/"
    return Artifact(uri=uri, sha256=digest(f"{index}.{epoch}"))


def test_each_epochs_adapter_is_served_and_scored_the_last_first_and_the_best_is_taken():
    world = finish(run_of({1: 0.6, 2: 0.8, 3: 0.7}))
    assert world.stages() == [
        "0baseline:check",
        "0baseline:evaluate",
        "1w:traces",
        "1w:train",
        "1w:select-1",
        "1w:select-2",
        "1w:select-3",
        "1w:evaluate",
        "2final:evaluate",
    ]
    assert [request.epoch for request in selects(world)] == [3, 2, 1]
    last = artifact("adapter-1-train")
    assert [request.endpoint.adapter for request in selects(world)] == [last, earlier(2), earlier(1)]
    assert all(r.endpoint.model == f"reviews-{r.endpoint.adapter.sha256[:16]}" for r in selects(world))
    assert [request.best_stage for request in selects(world)] == [None, "select-1", "select-2"]
    evaluate = next(r for r in world.requests if (r.kind, r.stage) == ("w", "evaluate"))
    assert (evaluate.endpoint.adapter, evaluate.best_stage) == (earlier(2), "select-2")
    step = world.run.status.steps[1]
    assert (step.state, step.adapter) == ("Succeeded", earlier(2))
    assert [candidate.adapter for candidate in step.candidates] == [earlier(2)]
    assert [one.epoch for one in step.epochs] == [3, 2, 1]
    assert world.run.status.best.adapter == earlier(2)


def test_the_event_says_which_epoch_was_chosen():
    world = finish(run_of({1: 0.6, 2: 0.8, 3: 0.7}))
    told = [a.message for a in world.log if isinstance(a, EmitEvent) and a.reason == "StepSucceeded"]
    assert told[1] == "step 1 (w) Succeeded, score 0.9000, with the adapter of epoch 2 of 3"


def test_the_scoring_runs_with_the_original_prompts_and_the_evaluation_with_both():
    world = finish(run_of({1: 0.6, 2: 0.8, 3: 0.7}, strategy="p -> w"))
    assert all([p.label for p in request.prompts] == ["vanilla"] for request in selects(world))
    evaluate = next(r for r in world.requests if (r.kind, r.stage) == ("w", "evaluate"))
    assert [p.label for p in evaluate.prompts] == ["vanilla", "current"]


def test_the_next_step_builds_on_the_epoch_that_was_chosen():
    world = finish(run_of({1: 0.6, 2: 0.8, 3: 0.7}, strategy="w -> w"))
    second = next(r for r in world.requests if (r.index, r.stage) == (2, "traces"))
    assert second.endpoint.adapter == earlier(2)
    train = next(r for r in world.requests if (r.index, r.stage) == (2, "train"))
    assert train.start_adapter == earlier(2)


def test_a_step_that_takes_the_last_epoch_has_no_select_stage_and_one_with_a_single_epoch_neither():
    names = ["traces", "train", "evaluate"]
    for world in (World(manifest(strategy="w")), run_of({1: 0.6}, weightOptimizer={"checkpoint": "best", "epochs": 1})):
        step = finish(world).run.status.steps[1]
        assert [stage.name for stage in step.stages] == names
        assert step.epochs == ()
        assert all(request.best_stage is None for request in world.requests)


@pytest.mark.parametrize(("has_gpu", "mode"), [(True, "reload"), (False, "merged")])
def test_every_way_of_serving_gets_one_adapter_after_the_other(has_gpu: bool, mode: str):
    world = run_of({1: 0.6, 2: 0.8, 3: 0.7})
    world.has_gpu = has_gpu
    finish(world)
    served = [(a.adapter, a.mode) for a in world.log if isinstance(a, EnsureServing) and a.adapter is not None]
    wanted = [artifact("adapter-1-train"), earlier(2), earlier(1), earlier(2)]
    in_turn = [one for n, one in enumerate(served) if n == 0 or served[n - 1] != one]
    assert in_turn == [(adapter, mode) for adapter in wanted]


def test_an_adapter_that_fails_too_often_loses_and_the_next_one_is_scored_in_full():
    world = finish(run_of({1: 0.6, 2: 0.5, 3: None}))
    assert [request.best_stage for request in selects(world)] == [None, None, "select-2"]
    assert world.run.status.steps[1].adapter == earlier(1)


def test_when_all_fail_too_often_the_last_is_evaluated_as_without_the_choice():
    world = finish(run_of({1: None, 2: None, 3: None}))
    evaluate = next(r for r in world.requests if (r.kind, r.stage) == ("w", "evaluate"))
    assert (evaluate.endpoint.adapter, evaluate.best_stage) == (artifact("adapter-1-train"), None)


def test_a_token_budget_that_ends_the_choice_keeps_the_best_so_far():
    usual = tuned({1: 0.9, 2: 0.8, 3: 0.7})

    def script(request: StageRequest) -> StageResult:
        if request.stage == "select-3":
            return StageResult(outcome="stopped", reason="BudgetExhausted", message="no tokens are left")
        return usual(request)

    world = finish(World(manifest(strategy="w -> w", weightOptimizer=BEST, budget={"tokens": 4000}), script=script))
    step = world.run.status.steps[1]
    assert (step.state, step.reason, step.adapter) == ("Stopped", "BudgetExhausted", earlier(2))
    best = world.run.status.best
    assert (best.step, best.adapter, best.score) == (1, earlier(2), "0.8000")
    assert "1w:evaluate" not in world.stages() and world.stages()[-1] == "3final:evaluate"
    assert condition(world, "Succeeded").reason == "BudgetExhausted"


def test_the_tokens_of_earlier_select_stages_are_not_given_out_again():
    world = finish(run_of({1: 0.6, 2: 0.8, 3: 0.7}, budget={"tokens": 100_000}))
    assert [request.tokens_left for request in selects(world)] == [98_000, 97_000, 96_000]


def test_a_select_stage_that_crashes_is_tried_again_on_the_same_adapter():
    usual, left = tuned({1: 0.6, 2: 0.8, 3: 0.7}), [failed(1)]

    def script(request: StageRequest) -> Any:
        return left.pop() if request.stage == "select-2" and left else usual(request)

    world = finish(World(manifest(strategy="w", weightOptimizer=BEST), script=script))
    assert [(r.stage, r.attempt, r.epoch) for r in selects(world)] == [
        ("select-1", 1, 3),
        ("select-2", 1, 2),
        ("select-2", 2, 2),
        ("select-3", 1, 1),
    ]
    assert world.run.status.steps[1].adapter == earlier(2)


@pytest.mark.parametrize("children_die", [False, True], ids=["children live on", "children die with the engine"])
def test_a_crash_before_any_write_chooses_the_same_epoch(children_die: bool):
    scores = {1: 0.8, 2: 0.8, 3: 0.7}
    undisturbed = finish(run_of(scores, strategy="p -> w"))
    assert undisturbed.run.status.steps[2].adapter == earlier(1, index=2), "of equal ones the earlier epoch"
    for point in range(undisturbed.writes):
        world = run_of(scores, strategy="p -> w")
        world.crash_at, world.children_die = point, children_die
        finish(world)
        assert outcome(world) == outcome(undisturbed), f"crash at write {point}"
        per_stage = [(r.index, r.stage, r.attempt) for r in world.requests]
        assert len(per_stage) - len(set(per_stage)) <= children_die, f"crash at write {point}"


def test_eight_epochs_fit_into_the_status_and_a_long_runs_names():
    world = finish(run_of(dict.fromkeys(range(1, 9), 0.5), weightOptimizer={"checkpoint": "best", "epochs": 8}))
    step = StepStatus.model_validate(world.run.status.steps[1].to_json())
    assert [stage.name for stage in step.stages] == ["traces", "train", *SELECT_STAGES, "evaluate"]
    assert all(stage.state == "Succeeded" for stage in step.stages)
    name = task_name("r" * 63, 10, "w", StageStatus(name="select-8").name, 12)
    assert len(name) == 63 and name.endswith("-10w-select-8-12")
