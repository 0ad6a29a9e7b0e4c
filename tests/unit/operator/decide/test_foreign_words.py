"""Words and numbers of others (kubelets, plugins, users' images): whatever they are, `decide` goes on."""

from __future__ import annotations

import json
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.operator.decide.test_faults import failing
from tests.unit.operator.decide.world import World, condition, failed, finish, manifest

from tandem_api.contract import Progress
from tandem_api.v1alpha1 import Status
from tandem_operator.actions import EmitEvent
from tandem_operator.decide.engine import decide
from tandem_operator.decide.names import camel_case
from tandem_operator.reconcile import reconcile
from tandem_operator.snapshot import ServingObservation, TaskObservation

CAMEL_CASE = re.compile(r"[A-Za-z][A-Za-z0-9]{0,127}")
WORD = st.text(max_size=200)
NUMBER = st.integers() | st.floats()
USAGE = st.fixed_dictionaries({}, optional={"calls": NUMBER, "promptTokens": NUMBER})
SCORE = st.fixed_dictionaries({"score": NUMBER, "low": NUMBER, "high": NUMBER, "n": NUMBER})
SPOKEN = st.one_of(
    WORD,
    st.fixed_dictionaries({"error": WORD, "message": WORD}, optional={"usage": USAGE}).map(json.dumps),
    st.fixed_dictionaries(
        {},
        optional={
            "outcome": st.sampled_from(["done", "skipped", "stopped"]),
            "reason": WORD,
            "message": WORD,
            "scores": st.lists(SCORE, max_size=10),
            "usage": USAGE,
            "facts": st.dictionaries(WORD, st.integers() | WORD, max_size=40),
        },
    ).map(json.dumps),
)
PROGRESS = st.builds(
    Progress,
    done=st.integers(),
    total=st.integers(),
    eta_seconds=st.none() | st.floats(),
    message=WORD,
)
TASK = st.builds(
    TaskObservation,
    state=st.sampled_from(["running", "succeeded", "failed"]),
    exit_code=st.none() | st.integers(0, 255),
    reason=WORD,
    termination=SPOKEN,
    message=WORD,
    is_permanent=st.booleans(),
    log_tail=WORD,
    progress=st.none() | PROGRESS,
    waiting=WORD,
    waiting_message=WORD,
)
SERVER = st.builds(
    ServingObservation,
    name=st.just("base"),
    state=st.sampled_from(["starting", "ready", "failed"]),
    reason=WORD,
    message=WORD,
)


def running(stage: str) -> tuple[World, str]:
    """A run in the middle of `stage`, and the name of its task."""
    world = World(manifest(strategy="p -> w"))
    while not any(r.stage == stage for r in world.requests):
        reconcile(world)
    return world, list(world.tasks)[-1]


MIDDLE = {stage: running(stage) for stage in ("check", "evaluate", "optimize", "train")}


@settings(max_examples=300, deadline=None)
@given(st.sampled_from(sorted(MIDDLE)), TASK, st.none() | SERVER)
def test_no_word_and_no_number_stops_the_engine(stage, task, server):
    world, name = MIDDLE[stage]
    seen = world.observe(world.run)
    world.pending.clear()
    world.tasks[name] = TaskObservation("running")
    status = world.run.status
    for _ in range(3):
        look = type(seen)(**{**vars(seen), "tasks": {name: task}, "serving": server})
        decision = decide(world.run.spec, status, look)
        status = Status.model_validate(json.loads(json.dumps(decision.status.to_json(), allow_nan=False)))
        reasons = [a.reason for a in decision.actions if isinstance(a, EmitEvent)]
        assert all(CAMEL_CASE.fullmatch(reason) for reason in reasons)
        assert status == decision.status


@given(st.text())
def test_any_word_becomes_one_that_kubernetes_takes(word):
    assert CAMEL_CASE.fullmatch(camel_case(word))


@pytest.mark.parametrize(
    ("foreign", "ours"),
    [
        ("OOMKilled", "OOMKilled"),
        ("OutOfnvidia.com/gpu", "OutOfnvidiaComGpu"),
        ("3 times", "Times"),
        ("¿?", "WorkerDied"),
    ],
)
def test_words_stay_readable(foreign, ours):
    assert camel_case(foreign) == ours


def test_a_pod_that_its_node_refuses_ends_the_run_with_the_reason():
    refused = TaskObservation("failed", reason="OutOfnvidia.com/gpu", message="Node didn't have enough resource")
    world = finish(World(manifest(strategy="p"), script=failing("optimize", *[refused] * 9)))
    assert condition(world, "Succeeded").reason == "OutOfnvidiaComGpu"


def test_an_error_of_a_users_image_may_have_any_name():
    world = finish(World(manifest(strategy="p"), script=failing("optimize", failed(42, "my.Error: no", "why"))))
    assert condition(world, "Succeeded").reason == "MyErrorNo"


@pytest.mark.parametrize("eta", [1e12, float("nan"), float("inf"), -5.0])
def test_an_impossible_end_is_left_out(eta):
    world, name = running("optimize")
    world.pending.clear()
    world.tasks[name] = TaskObservation("running", progress=Progress(done=-3, total=7, eta_seconds=eta))
    reconcile(world)
    assert (world.run.status.step.progress, world.run.status.step.eta) == (0, None)
