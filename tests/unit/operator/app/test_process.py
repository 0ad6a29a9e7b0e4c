"""The whole process: waiting, leading, ending in good order, and the ways in which it must not go on."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import kubernetes
import pytest
from tests.unit.operator.app.api_server import ApiServer
from tests.unit.operator.app.helpers import run_of, until_async

from tandem_operator.app import process as module
from tandem_operator.app.cluster import RunLister
from tandem_operator.app.lease import LeaseElector
from tandem_operator.app.logs import formatter
from tandem_operator.app.process import Operator, Parts
from tandem_operator.app.queue import Key, Outcome
from tandem_operator.platforms.kubernetes.client import api_client
from tandem_operator.platforms.local.machine import free_port
from tandem_operator.settings import OperatorSettings

Story = Callable[[Operator, asyncio.Event], Awaitable[None]]


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ApiServer]:
    found = ApiServer()
    path = str(found.kubeconfig(tmp_path))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", path)
    yield found
    found.close()


def settings(**more: object) -> OperatorSettings:
    ports = {"metricsPort": free_port(), "healthPort": free_port()}
    lease = {"name": "operator", "durationSeconds": 3, "renewSeconds": 1}
    return OperatorSettings.model_validate({"images": {"trainer": "t:1"}, "lease": lease, **ports, **more})


@dataclass
class World:
    """One operator with scripted passes."""

    settings: OperatorSettings = field(default_factory=settings)
    calls: list[Key] = field(default_factory=list)
    answer: Callable[[Key], Outcome] = lambda key: Outcome(None, run_of(key[1], key[0]))

    def reconcile(self, namespace: str, name: str) -> Outcome:
        self.calls.append((namespace, name))
        return self.answer((namespace, name))

    def parts(self, identity: str = "one") -> Parts:
        api = api_client()
        leases = kubernetes.client.CoordinationV1Api(api)
        elector = LeaseElector(leases, self.settings.lease, "tandem", identity, lambda why: None)
        return Parts(self.reconcile, RunLister(api, self.settings.namespaces), elector)

    def play(self, story: Story) -> bool:
        """Run the operator beside the story, then stop it; whether it ended in good order."""

        async def main() -> bool:
            operator, stop = Operator(self.settings, self.parts()), asyncio.Event()
            living = asyncio.create_task(operator.run(stop))
            telling = asyncio.ensure_future(story(operator, stop))
            await asyncio.wait((living, telling), return_when=asyncio.FIRST_COMPLETED)
            if telling.done():
                stop.set()
                telling.result()
            return await living

        return asyncio.run(main())

    async def get(self, path: str, port: int | None = None) -> str:
        url = f"http://127.0.0.1:{port or self.settings.health_port}{path}"

        def read() -> str:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return str(answer.read().decode())

        return await asyncio.to_thread(read)


def holder(server: ApiServer) -> str | None:
    lease = server.leases.get("operator")
    return lease["spec"].get("holderIdentity") if lease else None


def test_a_life(server: ApiServer) -> None:
    world = World()
    server.put("optimizationruns", "old")

    async def story(operator: Operator, stop: asyncio.Event) -> None:
        await until_async(lambda: ("team", "old") in world.calls)
        assert holder(server) == "one"
        assert await world.get("/healthz") == "ok\n"
        assert await world.get("/readyz") == "ok\n"
        server.put("optimizationruns", "new")
        await until_async(lambda: ("team", "new") in world.calls)
        before = world.calls.count(("team", "old"))
        labels = {"app.kubernetes.io/managed-by": "tandem-operator", "tandem.dev/run": "old"}
        server.put("pods", "old-pod", labels=labels)
        await until_async(lambda: world.calls.count(("team", "old")) > before)
        text = await world.get("/metrics", world.settings.metrics_port)
        assert "tandem_leader 1.0" in text
        assert 'tandem_runs{state="Pending"} 2.0' in text
        world.answer = lambda key: Outcome(None, None)
        server.delete("optimizationruns", "old")
        await until_async(lambda: operator._tracker.known == [("team", "new")])
        await until_async(lambda: world.calls.count(("team", "old")) > before + 1)

    assert world.play(story)
    assert holder(server) == ""
    assert {path for _, path in server.writes()} == {
        "/apis/coordination.k8s.io/v1/namespaces/tandem/leases",
        "/apis/coordination.k8s.io/v1/namespaces/tandem/leases/operator",
    }


def test_the_end_waits_for_a_pass_and_then_releases(server: ApiServer) -> None:
    world, entered, go = World(), threading.Event(), threading.Event()
    server.put("optimizationruns", "reviews")

    def slow(key: Key) -> Outcome:
        entered.set()
        go.wait(60)
        return Outcome(0.0, None)

    world.answer = slow

    async def story(operator: Operator, stop: asyncio.Event) -> None:
        await until_async(entered.is_set)
        stop.set()
        await asyncio.sleep(0.3)
        assert holder(server) == "one"
        go.set()

    assert world.play(story)
    assert len(world.calls) == 1
    assert holder(server) == ""


def test_with_a_pass_that_does_not_end_the_lease_is_kept(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "GRACE_SECONDS", 0.2)
    world, entered, go = World(), threading.Event(), threading.Event()
    server.put("optimizationruns", "reviews")

    def endless(key: Key) -> Outcome:
        entered.set()
        go.wait(60)
        return Outcome(None, None)

    world.answer = endless

    async def story(operator: Operator, stop: asyncio.Event) -> None:
        await until_async(entered.is_set)

    assert not world.play(story)
    assert holder(server) == "one"
    go.set()


def test_a_spare_is_ready_and_does_nothing(server: ApiServer) -> None:
    world = World()
    server.put("optimizationruns", "reviews")
    first = world.parts("first").elector
    assert first.acquire(threading.Event())

    async def story(operator: Operator, stop: asyncio.Event) -> None:
        await until_async(lambda: operator.vitals().answered < 5)
        await asyncio.sleep(0.5)
        assert await world.get("/readyz") == "ok\n"
        assert await world.get("/healthz") == "ok\n"
        assert "tandem_leader 0.0" in await world.get("/metrics", world.settings.metrics_port)
        assert world.calls == []
        first.release()
        await until_async(lambda: world.calls)

    assert world.play(story)


def test_without_the_definition_it_waits_and_says_so(
    server: ApiServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_ASK_SECONDS", 0.1)
    server.has_definition = False
    world = World()

    async def story(operator: Operator, stop: asyncio.Event) -> None:
        await asyncio.sleep(0.5)
        assert holder(server) is None
        assert not operator.vitals().may_list
        server.has_definition = True
        server.put("optimizationruns", "reviews")
        await until_async(lambda: world.calls)

    assert world.play(story)
    assert "no CustomResourceDefinition optimizationruns.tandem.dev v1alpha1: install it" in caplog.text


def test_a_watch_that_has_died_silently_is_found_out(server: ApiServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE_SECONDS", 0.2)
    world = World()
    server.put("optimizationruns", "reviews")

    async def story(operator: Operator, stop: asyncio.Event) -> None:
        await until_async(lambda: world.calls)
        await until_async(lambda: operator.vitals().unseen == 0)
        server.is_mute = True
        before = len(world.calls)
        server.put("optimizationruns", "reviews")
        await until_async(lambda: operator.vitals().unseen > 0.4)
        # The run itself is looked at meanwhile.
        await until_async(lambda: len(world.calls) > before)

    assert world.play(story)


def test_what_is_listed_at_the_start_brings_no_run_back_at_once(server: ApiServer) -> None:
    """A thousand runs were looked at three times each when an operator started: for themselves, their Jobs and pods."""
    world = World()
    labels = {"app.kubernetes.io/managed-by": "tandem-operator", "tandem.dev/run": "reviews"}
    server.put("optimizationruns", "reviews")
    for number in range(3):
        server.put("pods", f"pod-{number}", labels=labels)

    async def story(operator: Operator, stop: asyncio.Event) -> None:
        await until_async(lambda: world.calls)
        await asyncio.sleep(3)  # the pods are listed, and another pass would have come
        assert len(world.calls) == 1
        server.put("pods", "pod-0", labels=labels)
        await until_async(lambda: len(world.calls) == 2)

    assert world.play(story)


def test_every_run_comes_up_again_in_a_resync(server: ApiServer) -> None:
    world = World(settings(resyncSeconds=1))
    for name in ("a", "b"):
        server.put("optimizationruns", name)

    async def story(operator: Operator, stop: asyncio.Event) -> None:
        await until_async(lambda: all(world.calls.count(("team", name)) >= 3 for name in "ab"))

    assert world.play(story)


def test_a_cluster_without_runs_has_none(server: ApiServer) -> None:
    """Each minute a warning said that the runs could not be listed, once the last one was gone."""
    lister = RunLister(api_client(), ())
    assert lister.versions() == {}
    server.put("optimizationruns", "reviews")
    assert list(lister.versions()) == [("team", "reviews")]


def test_a_watch_that_fails_ends_the_process_and_frees_the_lease(server: ApiServer) -> None:
    world = World()
    server.put("optimizationruns", "reviews")

    async def story(operator: Operator, stop: asyncio.Event) -> None:
        await until_async(lambda: world.calls)
        operator._watch.stop()
        await asyncio.sleep(10)

    with pytest.raises(RuntimeError, match="the watch has ended by itself"):
        world.play(story)
    assert holder(server) == ""


def test_log_records_are_one_line_each() -> None:
    try:
        raise ValueError("two\nlines")
    except ValueError as error:
        record = logging.getLogger("x").makeRecord(
            "x", logging.ERROR, __file__, 1, "pass over %s", ("team/a",), (type(error), error, error.__traceback__)
        )
    text = formatter("text").format(record)
    assert len(text.splitlines()) == 1
    assert "pass over team/a" in text
    line = formatter("json").format(record)
    assert len(line.splitlines()) == 1
    found = json.loads(line)
    assert (found["level"], found["message"]) == ("ERROR", "pass over team/a")
    assert "ValueError" in found["exc_info"]
