"""Whole runs through the pure engine: order, candidates, best-of, and convergence after a crash at any write."""

from __future__ import annotations

import pytest
from tests.unit.operator.decide.world import World, condition, finish, manifest, scripted

from tandem_operator.actions import EnsureServing, StartTask, StopServing


def test_p_w_p_runs_every_stage_once_and_in_order():
    world = finish(World(manifest(strategy="p -> w -> p")))
    assert world.stages() == [
        "0baseline:check",
        "0baseline:evaluate",
        "1p:optimize",
        "2w:traces",
        "2w:train",
        "2w:evaluate",
        "3p:optimize",
        "4final:evaluate",
    ]
    status = world.run.status
    assert [s.state for s in status.steps] == ["Succeeded"] * 5
    assert condition(world, "Succeeded").status == "True"
    assert status.result is not None and status.test is not None
    assert status.usage.calls == 60
    assert status.phase == "Succeeded"


def test_a_request_says_nothing_of_the_moment_at_which_it_was_made():
    """An operator that was killed between a request and its Job once made another one, for the same attempt."""
    asked = finish(World(manifest(strategy="p"))).requests[-1].status
    assert asked.best is not None and asked.steps
    assert (asked.step, asked.conditions, asked.phase) == (None, (), "Pending")


def test_vanilla_scores_the_program_as_it_is_and_tests_it():
    world = finish(World(manifest(strategy="vanilla")))
    assert world.stages() == ["0baseline:check", "0baseline:evaluate", "1final:evaluate"]
    status = world.run.status
    assert condition(world, "Succeeded").status == "True"
    assert status.strategy == "vanilla"
    assert (status.best.step, status.best.prompt_set, status.best.adapter) == (0, None, None)
    assert status.test is not None and status.result is not None


def test_after_a_w_everything_runs_on_the_tuned_adapter():
    world = finish(World(manifest(strategy="p -> w -> p")))
    by_stage = {f"{r.index}{r.kind}:{r.stage}": r for r in world.requests}
    adapter = world.run.status.steps[2].adapter
    assert by_stage["2w:traces"].endpoint.model == "base"
    for stage in ("2w:evaluate", "3p:optimize"):
        assert by_stage[stage].endpoint.adapter == adapter
        assert by_stage[stage].endpoint.model == f"reviews-{adapter.sha256[:16]}"


def test_a_w_is_scored_with_the_vanilla_and_with_the_current_prompts():
    world = finish(World(manifest(strategy="p -> w")))
    evaluate = next(r for r in world.requests if (r.kind, r.stage) == ("w", "evaluate"))
    assert [p.label for p in evaluate.prompts] == ["vanilla", "current"]
    best = world.run.status.best
    assert (best.step, best.score, best.prompt_set) == (2, "0.9000", None)


def test_a_p_starts_from_the_original_prompts_unless_told_otherwise():
    steps = [{"kind": "p"}, {"kind": "p"}, {"kind": "p", "startFrom": "previous"}]
    world = finish(World(manifest(strategy=steps)))
    starts = [r.prompts[0].artifact for r in world.requests if r.stage == "optimize"]
    assert starts[0] is None and starts[1] is None
    assert starts[2] == world.run.status.steps[2].prompt_set


def test_the_next_step_after_a_w_builds_on_the_better_cross_score():
    world = finish(World(manifest(strategy="p -> w -> w")))
    traces = [r for r in world.requests if r.stage == "traces"]
    assert traces[1].prompts[0].label == "vanilla"  # 0.90 beat 0.85
    train = [r for r in world.requests if r.stage == "train"]
    assert train[0].start_adapter is None
    assert train[1].start_adapter == world.run.status.steps[2].adapter


def test_ties_keep_the_earlier_candidate():
    world = World(manifest(strategy="p -> p"), script=lambda r: scripted(r, {"p": 0.4}))
    assert finish(world).run.status.best.step == 0


def test_serving_is_released_before_training_and_restored_after():
    world = finish(World(manifest(strategy="w")))
    names = [type(a).__name__ for a in world.log]
    train = next(i for i, a in enumerate(world.log) if isinstance(a, StartTask) and a.request.stage == "train")
    assert "StopServing" in names[:train]
    served_again = [a for a in world.log[train:] if isinstance(a, EnsureServing)]
    assert served_again[0].mode == "merged" and served_again[0].adapter is not None


def test_handover_keep_leaves_the_server_alone_while_training():
    world = finish(World(manifest(strategy="w", serving={"handover": "keep"}), has_gpu=True))
    train = next(i for i, a in enumerate(world.log) if isinstance(a, StartTask) and a.request.stage == "train")
    assert not any(isinstance(a, StopServing) for a in world.log[:train])
    assert next(a for a in world.log[train:] if isinstance(a, EnsureServing)).mode == "reload"


def test_the_end_releases_everything():
    world = finish(World(manifest(strategy="p")))
    assert world.serving is None
    assert isinstance(world.log[-1], StopServing)


def test_the_test_set_is_touched_once_and_last():
    world = finish(World(manifest(strategy="p -> w -> p")))
    assert [r.split for r in world.requests].count("test") == 1
    assert world.requests[-1].split == "test"


def test_without_a_test_set_the_end_needs_no_server():
    run = manifest(strategy="p", data={"train": {"uri": "file:t.jsonl"}, "inputs": ["review"]})
    world = finish(World(run))
    assert world.requests[-1].kind == "final" and world.requests[-1].endpoint is None


def test_the_same_run_gives_the_same_status():
    first, second = (finish(World(manifest(strategy="p -> w -> p"))).run.status for _ in range(2))
    assert first == second


def outcome(world: World) -> dict[str, object]:
    """What must not depend on crashes: everything but times."""

    def bare(value):
        if isinstance(value, dict):
            return {
                k: bare(v)
                for k, v in value.items()
                if k not in {"started", "finished", "requested", "ready", "attemptStarted", "lastTransitionTime"}
                and k not in {"loadSeconds", "since", "readySince"}
            }
        return [bare(v) for v in value] if isinstance(value, list) else value

    return bare(world.run.status.to_json())


def count_writes() -> int:
    return finish(World(manifest(strategy="p -> w -> p"))).writes


@pytest.mark.parametrize("children_die", [False, True], ids=["children live on", "children die with the engine"])
def test_a_crash_before_any_write_converges_to_the_same_result(children_die):
    undisturbed = outcome(finish(World(manifest(strategy="p -> w -> p"))))
    writes = count_writes()
    assert writes > 30
    for point in range(writes):
        world = finish(World(manifest(strategy="p -> w -> p"), crash_at=point, children_die=children_die))
        assert outcome(world) == undisturbed, f"crash at write {point}"
        per_stage = [(r.index, r.stage, r.attempt) for r in world.requests]
        extra = len(per_stage) - len(set(per_stage))
        assert extra <= (1 if children_die else 0), f"crash at write {point}: {per_stage}"
