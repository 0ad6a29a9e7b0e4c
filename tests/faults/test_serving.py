"""Model servers on a cluster that come and go, load in vain, answer with other weights, or do not answer.

Real operator, workers and sidecars; the model is scripted. No score ever comes from the base model in an adapter's
place: what is ill is waited for, then costs an attempt, and then fails the run with the cause. The same on one machine:
tests/engine/test_serving_faults.py.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

import pytest
from tests.faults.children import ENV_LATENCY
from tests.faults.differences import differences
from tests.faults.proxy import Answer, Call, Forward
from tests.faults.stages import LONG_LEASE, point
from tests.faults.test_children import bare_calls, told
from tests.faults.world import Ground, World

from tandem_operator.platforms.kubernetes import names

pytestmark = [pytest.mark.case("serving"), pytest.mark.timeout(900)]
Object = dict[str, Any]

#: For a run on a slow machine, and for anything that happens in it.
SECONDS: Final = 600.0
ENV_FAULTS: Final = "ENGINE_FAULTS"
FOR_EVER: Final = 10**9
EVALUATION: Final = "1w-evaluate"
#: Adapters have canaries, and nothing is wrong.
CALM: Final = json.dumps({"canary": 0})


@pytest.fixture(scope="module")
def calm(ground: Ground) -> Iterator[World]:
    """A run that nobody disturbs."""
    with pytest.MonkeyPatch.context() as patch, World(ground, "calm", {"lease": LONG_LEASE}) as world:
        patch.setitem(ground.kubelet.environment, ENV_FAULTS, CALM)
        begin(world)
        world.wait_finished(seconds=SECONDS)
        world.operator.kill()
        yield world


@pytest.fixture
def world(make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch) -> World:
    """A world of the test's own, whose servers are well."""
    made = make_world(lease=LONG_LEASE)
    monkeypatch.setitem(made.kubelet.environment, ENV_FAULTS, CALM)
    return made


def begin(world: World, **spec: Any) -> None:
    """Start the operator and the run."""
    world.operator.start()
    world.apply_run(strategy="w", **spec)


def servers(world: World, *, ready: bool = False) -> list[Object]:
    """The pods that serve, or only those that are ready; oldest first."""
    pods = [pod for pod in world.pods(component=names.SERVING) if "deletionTimestamp" not in pod["metadata"]]
    return [pod for pod in pods if not ready or is_ready(pod)]


def is_ready(pod: Object) -> bool:
    conditions = {one["type"]: one["status"] for one in pod["status"].get("conditions") or []}
    return conditions.get("Ready") == "True"


def under_evaluation(world: World) -> bool:
    """Whether the adapter is being scored, and its server has answered."""
    work = [pod for pod in world.pods(component=names.WORKER) if pod["status"].get("phase") == "Running"]
    return any(point(pod) == EVALUATION for pod in work) and any('"model": "run-' in call for call in world.calls())


def assert_same_scores(world: World, calm: World) -> None:
    """The same result, of the same questions to the same weights."""
    assert differences(told(world, "run"), told(calm, "run")) == []
    assert questions(world) == questions(calm)


def questions(world: World) -> set[str]:
    """Every different call, but for those that only ask whether a server answers."""
    return {call for call in bare_calls(world, "run") if json.loads(call)["prompt"] != "Hello"}


def stage(world: World) -> Object:
    """The status of the adapter's evaluation; empty before the step is planned."""
    steps = [step for step in world.status().get("steps") or [] if step["kind"] == "w"]
    return next((one for step in steps for one in step.get("stages") or [] if one["name"] == "evaluate"), {})


def test_servers_that_are_added_and_taken_away_during_an_evaluation_change_no_score(
    calm: World, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A new server answers only when it has the adapter."""
    monkeypatch.setitem(world.kubelet.environment, ENV_LATENCY, "2.0")
    begin(world, serving={"replicas": 2})
    world.wait("the adapter's evaluation", lambda: under_evaluation(world), SECONDS)
    first, second = world.wait("two servers", lambda: servers(world) if len(servers(world)) == 2 else None, SECONDS)
    world.api.delete("Pod", world.namespace, first["metadata"]["name"])
    known = {first["metadata"]["uid"], second["metadata"]["uid"]}

    def added() -> bool:
        return any(pod["metadata"]["uid"] not in known for pod in servers(world, ready=True))

    world.wait("a server that was added", added, SECONDS)
    world.wait_finished(seconds=SECONDS)
    assert_same_scores(world, calm)
    assert stage(world).get("failures", 0) == 0


def test_a_server_that_is_killed_each_time_it_is_to_load_the_adapter_has_it_in_the_end(
    calm: World, world: World
) -> None:
    killed: list[str] = []

    def kill(name: str) -> None:
        for pod in servers(world):
            if pod["metadata"]["name"] == name and len(killed) < 2:
                killed.append(name)
                world.kubelet.oom_kill(pod, "vllm")

    async def rule(call: Call, forward: Forward) -> Answer:
        answer = await forward()
        # That is how the operator hurries the pod's kubelet when there is an adapter to load.
        if f"{call.verb} {call.target}" == "patch pods":
            await world.proxy.in_thread(lambda: kill(call.name))
        return answer

    world.proxy.rules.append(rule)
    begin(world, serving={"handover": "keep"})
    world.wait_finished(seconds=SECONDS)
    assert killed
    assert_same_scores(world, calm)


@pytest.mark.parametrize("wrong", [1, pytest.param(4, marks=pytest.mark.full)])
def test_the_base_model_behind_the_adapters_name_is_found_out_before_it_is_scored(
    calm: World, world: World, monkeypatch: pytest.MonkeyPatch, wrong: int
) -> None:
    """By its canary, which the sidecar asks for before it says that the server is ready."""
    monkeypatch.setitem(world.kubelet.environment, ENV_FAULTS, json.dumps({"canary": wrong}))
    begin(world)
    world.wait_finished(seconds=SECONDS)
    assert_same_scores(world, calm)


def test_the_base_model_behind_the_adapters_name_for_good_fails_the_run_with_the_cause(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(world.kubelet.environment, ENV_FAULTS, json.dumps({"canary": FOR_EVER}))
    begin(world, attempts=2, serving={"startupTimeoutSeconds": 30})
    status = world.wait_finished(succeeded=False, seconds=SECONDS)
    assert "canary" in world.condition("Succeeded")["message"]
    assert status["best"] == status["baseline"]
    assert not any('"model": "run-' in call and "prompt_logprobs" not in call for call in world.calls())


@pytest.mark.parametrize(
    "fault",
    [
        pytest.param({"latency": 3600}, id="wedged"),
        pytest.param({"status": 500}, id="500s", marks=pytest.mark.full),
        pytest.param({"drop": True}, id="cut", marks=pytest.mark.full),
    ],
)
def test_a_server_that_is_ill_for_a_while_costs_an_attempt_and_no_score(
    calm: World, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: Object
) -> None:
    """It says that it is well: it answers health checks, and no call under the adapter's name."""
    well = tmp_path / "well"
    faults = {"canary": 0, "tuned": fault, "until": str(well)}
    monkeypatch.setitem(world.kubelet.environment, ENV_FAULTS, json.dumps(faults))
    manifest = world.manifest()["spec"]["evaluation"]
    begin(world, evaluation={**manifest, "requestTimeoutSeconds": 1, "unavailableTimeoutSeconds": 3})
    world.wait("a failed attempt", lambda: stage(world).get("failures"), SECONDS)
    well.touch()
    world.wait_finished(seconds=SECONDS)
    assert_same_scores(world, calm)
