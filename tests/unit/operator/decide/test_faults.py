"""What ends badly: retries, exit codes, budgets, stop rules, suspension, servers that fail."""

from __future__ import annotations

import pytest
from tests.unit.operator.decide.world import World, condition, failed, finish, manifest, scripted

from tandem_api.conditions import find
from tandem_api.contract import StageResult
from tandem_operator.actions import EmitEvent, EnsureServing, StartTask
from tandem_operator.reconcile import reconcile
from tandem_operator.snapshot import ServingObservation, TaskObservation


def failing(stage: str, *answers):
    """The first attempts of `stage` end as given; then it works."""
    left = list(answers)

    def script(request):
        if request.stage == stage and left:
            return left.pop(0)
        return scripted(request)

    return script


def test_a_crashed_worker_is_retried_and_counted():
    world = finish(World(manifest(strategy="p"), script=failing("optimize", failed(1), failed(137))))
    stage = world.run.status.steps[1].stages[0]
    assert (stage.state, stage.attempt, stage.failures) == ("Succeeded", 3, 2)
    assert [a.reason for a in world.log if isinstance(a, EmitEvent)].count("AttemptFailed") == 2


def test_a_retry_waits_for_its_backoff():
    world = finish(World(manifest(strategy="p"), script=failing("optimize", failed(1), failed(1))))
    stage = world.run.status.steps[1].stages[0]
    assert (stage.attempt_started - stage.started).total_seconds() >= 2 + 10


def test_preemption_is_not_counted():
    world = finish(World(manifest(strategy="w"), script=failing("train", *[failed(143)] * 5)))
    stage = world.run.status.steps[1].stages[1]
    assert (stage.state, stage.attempt, stage.failures) == ("Succeeded", 6, 0)


def test_a_preempted_attempt_waits_before_it_goes_on():
    world = finish(World(manifest(strategy="w"), script=failing("train", *[failed(143)] * 3)))
    stage = world.run.status.steps[1].stages[1]
    assert (stage.attempt_started - stage.started).total_seconds() >= 2 + 10 + 30


@pytest.mark.parametrize(("code", "reason"), [(42, "BadConfiguration"), (43, "StorageRefused")])
def test_a_permanent_error_is_not_retried(code, reason):
    world = finish(World(manifest(), script=failing("optimize", failed(code, reason, "the key is wrong"))))
    succeeded = condition(world, "Succeeded")
    assert (succeeded.status, succeeded.reason) == ("False", reason)
    assert "the key is wrong" in succeeded.message
    assert len([r for r in world.requests if r.stage == "optimize"]) == 1


def test_attempts_run_out_with_the_log_in_the_message():
    world = finish(World(manifest(attempts=2), script=failing("optimize", failed(1), failed(1))))
    succeeded = condition(world, "Succeeded")
    assert succeeded.status == "False" and "Traceback: boom" in succeeded.message
    assert world.run.status.best.step == 0  # what was found so far is kept
    assert world.serving is None


def test_a_failed_check_refuses_the_run_before_anything_is_served():
    world = finish(World(manifest(), script=failing("check", failed(42, "BadConfiguration", "no such module: hotpot"))))
    accepted = condition(world, "Accepted")
    assert (accepted.status, accepted.message) == ("False", "no such module: hotpot")
    assert not any(isinstance(a, EnsureServing) for a in world.log)


def test_a_lost_result_message_is_fetched_by_another_attempt():
    world = finish(World(manifest(strategy="p"), script=failing("optimize", TaskObservation("succeeded", 0))))
    assert condition(world, "Succeeded").status == "True"
    assert [r.attempt for r in world.requests if r.stage == "optimize"] == [1, 2]


def test_too_few_traces_skip_the_step_and_the_run_goes_on():
    skipped = StageResult(outcome="skipped", reason="TooFewTraces", message="3 traces were kept, 8 are needed")
    world = finish(World(manifest(strategy="w -> p"), script=failing("traces", skipped)))
    step = world.run.status.steps[1]
    assert (step.state, step.reason) == ("Skipped", "TooFewTraces")
    assert "2p:optimize" in world.stages() and "1w:train" not in world.stages()
    assert condition(world, "Succeeded").status == "True"


def test_the_target_score_ends_the_search_but_not_the_test():
    world = finish(World(manifest(strategy="p -> w -> p", stop={"targetScore": "0.8"})))
    assert world.stages()[-2:] == ["1p:optimize", "4final:evaluate"]
    assert condition(world, "Succeeded").reason == "TargetReached"


def test_patience_counts_steps_without_improvement():
    world = World(manifest(strategy="p -> p -> p", stop={"patience": 2}), script=lambda r: scripted(r, {"p": 0.3}))
    assert [s.state for s in finish(world).run.status.steps] == [
        "Succeeded",
        "Succeeded",
        "Succeeded",
        "Skipped",
        "Succeeded",
    ]
    assert condition(world, "Succeeded").reason == "PatienceExhausted"


def test_the_token_budget_is_passed_on_and_ends_the_search():
    world = finish(World(manifest(strategy="p -> w -> p", budget={"tokens": 1500})))
    assert [r.tokens_left for r in world.requests] == [1500, 1500, 500, None]
    assert condition(world, "Succeeded").reason == "BudgetExhausted"


def test_a_budget_that_ends_the_baseline_ends_the_run_without_a_result():
    stopped = StageResult(outcome="stopped", reason="BudgetExhausted", message="100 tokens are spent")
    world = finish(World(manifest(budget={"tokens": 100}), script=failing("evaluate", stopped)))
    succeeded = condition(world, "Succeeded")
    assert (succeeded.status, succeeded.reason) == ("False", "BudgetExhausted")


def test_the_deadline_stops_a_running_stage():
    world = World(manifest(strategy="p -> w", budget={"deadlineSeconds": 30}))
    world.script = lambda r: TaskObservation("running") if r.stage == "optimize" else scripted(r)
    finish(world)
    step = world.run.status.steps[1]
    assert (step.state, step.reason) == ("Stopped", "DeadlineReached")
    assert condition(world, "Succeeded").reason == "DeadlineReached"
    assert world.stages()[-1] == "3final:evaluate"


def test_suspension_stops_everything_and_resumes_where_it_was():
    world = World(manifest(strategy="p"))
    while "1p:optimize" not in world.stages():
        reconcile(world)
    world.run = world.run.model_copy(update={"spec": world.run.spec.model_copy(update={"suspend": True})})
    for _ in range(5):
        last = reconcile(world)
    assert last.finished and world.serving is None
    assert condition(world, "Suspended").status == "True"
    world.run = world.run.model_copy(update={"spec": world.run.spec.model_copy(update={"suspend": False})})
    finish(world)
    assert condition(world, "Succeeded").status == "True"
    assert condition(world, "Suspended").status == "False"
    assert world.run.status.steps[1].stages[0].failures == 0


def test_a_server_that_dies_while_a_task_runs_is_started_anew():
    world = World(manifest(strategy="p"))
    while "1p:optimize" not in world.stages():
        reconcile(world)
    world.serving = ServingObservation("base", "failed", message="EngineCore died")
    reconcile(world)
    assert [a.restart for a in world.log if isinstance(a, EnsureServing)][-1]
    finish(world)
    assert condition(world, "Succeeded").status == "True"
    assert len([r for r in world.requests if r.stage == "optimize"]) == 1


def test_a_server_that_never_gets_ready_fails_the_run_with_its_log():
    broken = ServingObservation("base", "failed", message="not ready after 10 s; its log ends: CUDA not found")
    world = finish(World(manifest(), server_script=[broken] * 3))
    succeeded = condition(world, "Succeeded")
    assert (succeeded.status, succeeded.reason) == ("False", "ServingFailed")
    assert "CUDA not found" in succeeded.message
    assert not any(isinstance(a, StartTask) and a.request.stage == "evaluate" for a in world.log)


def test_a_permanent_server_failure_is_not_repeated():
    broken = ServingObservation("base", "failed", message="unknown model nope", permanent=True)
    world = finish(World(manifest(), server_script=[broken]))
    assert len([a for a in world.log if isinstance(a, EnsureServing)]) == 1
    assert find(world.run.status.conditions, "Succeeded").reason == "ServingFailed"
