"""The Python client on a real API server with a real operator and a real S3: from a run's objects to its result."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.faults.proxy import Answer, Call, FaultProxy, Forward, refusal
from tests.faults.stages import LONG_LEASE
from tests.faults.world import RUN_SECONDS, World

import tandem
from tandem_api.errors import ConfigurationError, KeyRefusedError
from tandem_api.v1alpha1 import OptimizationRun
from tandem_api.v1alpha1.run import parse_run
from tandem_operator.cli.cluster.failures import NoSuchObjectError


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """With an operator that no busy machine ends."""
    return make_world(lease=LONG_LEASE)


def wanted(world: World, name: str = "run", **spec: Any) -> OptimizationRun:
    """The world's small run, as Python objects."""
    return parse_run(world.manifest(name, **{"strategy": "p", **spec}))


@pytest.fixture
def connect(world: World) -> Callable[..., tandem.Cluster]:
    """The client, by way of a proxy if one is given."""

    def make(proxy: FaultProxy | None = None) -> tandem.Cluster:
        plane = world.ground.plane
        kubeconfig = plane.kubeconfig if proxy is None else world.folder / "client.kubeconfig"
        if proxy is not None:
            kubeconfig.write_text(plane.kubeconfig.read_text().replace(plane.url, proxy.url))
        return tandem.Cluster(world.namespace, kubeconfig=kubeconfig)

    return make


def test_a_run_is_submitted_watched_through_broken_watches_and_its_result_fetched(
    world: World, connect: Callable[..., tandem.Cluster], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = []

    async def forget(call: Call, forward: Forward) -> Answer:
        if call.verb == "watch" and len(broken) < 3:
            broken.append(call)
            return refusal(410, "Expired", "too old resource version")
        return await forward()

    world.operator.start()
    with FaultProxy(world.ground.plane.url) as proxy:
        proxy.rules.append(forget)
        uid = connect(proxy).submit(wanted(world)).uid
        states = list(connect(proxy).get("run").watch(timeout=RUN_SECONDS))
    assert len(broken) == 3
    assert [state.has_ended for state in states] == [False] * (len(states) - 1) + [True]
    assert {state.step.kind for state in states if state.step is not None} == {"baseline", "p", "final"}
    run = connect().get("run")
    assert run.uid == uid and states[-1].has_succeeded and run.wait(timeout=60).has_succeeded
    scores = run.scores()
    assert scores.best is not None and scores.test is not None and scores.test.n == 8

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "nobody")
    with pytest.raises(KeyRefusedError):
        run.result(tmp_path / "result")
    for name, value in world.ground.storage.credentials.items():
        monkeypatch.setenv(name, value)
    bundle = run.result(tmp_path / "result", endpoint=str(world.ground.storage.ref.endpoint))
    assert bundle.path == tmp_path / "result" and bundle.report.is_file()
    assert bundle.scores["test"]["score"] == pytest.approx(scores.test.score, abs=1e-4)
    assert bundle.run.metadata.uid == run.uid and bundle.run.spec == wanted(world).spec
    assert run.result(tmp_path / "result").prompts == bundle.prompts, "the same folder again"


def test_a_run_is_held_let_go_on_and_ended(world: World, connect: Callable[..., tandem.Cluster]) -> None:
    world.operator.start()
    cluster = connect()
    run = cluster.submit(wanted(world))
    assert cluster.submit(wanted(world)).uid == run.uid
    run.suspend()
    world.wait("the hold", lambda: world.condition("Suspended").get("status") == "True")
    assert [state.run.spec.suspend for state in cluster.list()] == [True]
    run.resume()
    world.wait("going on", lambda: world.condition("Suspended").get("status") != "True")
    run.cancel()
    world.wait("the end", lambda: world.pods() == [])
    with pytest.raises(tandem.RunGoneError):
        run.wait(timeout=60)
    another = cluster.submit(wanted(world))
    with pytest.raises(tandem.RunGoneError):
        run.suspend()
    run.delete()
    assert another.state().run.metadata.uid == another.uid != run.uid
    another.delete()
    with pytest.raises(NoSuchObjectError):
        cluster.get("run")


def test_the_api_servers_own_refusals_name_the_field(world: World, connect: Callable[..., tandem.Cluster]) -> None:
    run = wanted(world)
    spec = run.spec.model_copy(update={"seed": -1})
    broken = run.model_copy(update={"spec": spec})
    with pytest.raises(ConfigurationError, match=r"spec\.seed"):
        connect().submit(broken)
    # As from a client of a later version: what only the server refuses.
    unknown = run.model_copy(update={"metadata": run.metadata.model_copy(update={"labels": {"bad label": "x"}})})
    with pytest.raises(ConfigurationError, match=r"refuses to create run:\n  metadata\.labels"):
        connect().submit(unknown)
