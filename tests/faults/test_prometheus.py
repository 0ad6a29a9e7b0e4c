"""A real Prometheus finds and scrapes the operator, workers, sidecars and servers of a run by what the chart tells it,
and has an answer to everything that the dashboard and the alerts ask.

vLLM's own series come from the scripted server, which tells a few of vLLM's metrics under vLLM's names; that vLLM has
them is tests/unit/test_metrics_page.py's matter. With TANDEM_DASHBOARD_DATA=FILE the answers to the dashboard's queries
are written there, of a longer run: tools/dashboard_picture.py draws them.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import pytest
import urllib3
from tests import dashboards
from tests.faults.children import ENV_LATENCY, ENV_METRICS
from tests.faults.prometheus import Prometheus, configuration, prometheus, rendered, tool
from tests.faults.proxy import Answer, Call, Forward
from tests.faults.stages import LONG_LEASE
from tests.faults.world import World

from tandem_operator.platforms.kubernetes import names

Object = dict[str, Any]

PICTURE: Final = os.environ.get("TANDEM_DASHBOARD_DATA")
#: Seconds of a training, and of an LM call: a worker has to be there when Prometheus looks for new pods.
TRAINING, CALL = ("40", "0.6") if PICTURE else ("16", "0.4")
STRATEGY: Final = "p -> w -> p" if PICTURE else "p -> w"
#: What of the alerts has no series here, and why.
EMPTY_SELECTORS: Final = {
    "tandem_run_waiting": "nothing has to be waited for",
    "tandem_run_test_baseline_score": "it is measured only where the best program has no adapter",
}
_SELECTOR: Final = re.compile(r"(tandem_\w+)(\{[^}]*\})")


@dataclass
class Story:
    """One run under the eyes of Prometheus."""

    prometheus: Prometheus
    rules: Object
    namespace: str
    scrapes: dict[str, str] = field(default_factory=dict)
    """What was told at /metrics while the run went on, by what told it."""


@dataclass
class Refusing:
    """A rule that has the API server fail the first few times that it is asked for a run."""

    left: int = 2

    async def __call__(self, call: Call, forward: Forward) -> Answer:
        if call.verb == "get" and call.resource == "optimizationruns" and call.name and self.left:
            self.left -= 1
            return Answer(status=500, body=b"{}")
        return await forward()


@pytest.fixture(scope="module")
def monitors() -> dict[str, Object]:
    """The chart's."""
    try:
        tool("prometheus", "prometheus")
        return rendered()
    except RuntimeError as error:
        if "faults" in os.environ.get("TANDEM_REQUIRED_LAYERS", "").split():
            pytest.fail(str(error), pytrace=False)
        pytest.skip(str(error))


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """With a Lease that a busy machine does not lose."""
    return make_world(lease=LONG_LEASE)


@pytest.fixture
def story(world: World, monitors: dict[str, Object], tmp_path: Path) -> Iterator[Story]:
    """A run from its beginning to its end, with a worker that dies once and an API server that fails twice."""
    environment = {ENV_LATENCY: CALL, ENV_METRICS: "1", "ENGINE_TRAIN_SECONDS": TRAINING}
    world.kubelet.environment.update(environment)
    world.proxy.rules.append(Refusing())
    rules = monitors["PrometheusRule"]["spec"]
    config = configuration(world.operator.metrics_port, monitors)
    try:
        with prometheus(tmp_path / "prometheus", world.ground.plane, world.namespace, config, rules) as server:
            found = Story(server, rules, world.namespace)
            world.operator.start()
            world.apply_run(
                strategy=STRATEGY,
                budget={"tokens": 10_000, "deadlineSeconds": 600, "gpuHours": "1"},
                evaluation={"concurrency": 4 if PICTURE else 2, "unavailableTimeoutSeconds": 60},
            )
            _watch(world, found)
            yield found
    finally:
        for name in environment:
            del world.kubelet.environment[name]


def _watch(world: World, story: Story) -> None:
    """Let the run go its way to its end; kill one worker, look at each kind of pod."""
    traces = world.wait("the worker of traces", lambda: _worker(world, "traces"), 240)
    world.kubelet.oom_kill(traces)
    training = world.wait("the worker of the training", lambda: _worker(world, "train"), 120)
    world.wait("its metrics", lambda: story.prometheus.now(f'tandem_worker_loss{{namespace="{world.namespace}"}}'), 60)
    story.scrapes["worker"] = _scrape(training, names.PROGRESS_PORT)
    story.scrapes["operator"] = world.operator.metrics()
    server = world.wait("the adapter's server", lambda: _loaded(world), 120)
    story.scrapes["sidecar"] = _scrape(server, names.ADAPTERS_PORT)
    world.wait_finished(seconds=480)
    # The last scrapes, and the last evaluation of the rules.
    time.sleep(3)


def _worker(world: World, stage: str) -> Object | None:
    running = (pod for pod in world.pods(component=names.WORKER) if pod["status"].get("phase") == "Running")
    return next((pod for pod in running if pod["metadata"]["labels"].get(names.STAGE) == stage), None)


def _loaded(world: World) -> Object | None:
    """The pod whose sidecar has had an adapter loaded."""
    for pod in world.pods(component=names.SERVING):
        if pod["status"].get("phase") == "Running" and "tandem_adapter_seconds_count" in _scrape(
            pod, names.ADAPTERS_PORT
        ):
            return pod
    return None


def _scrape(pod: Object, port: int) -> str:
    try:
        url = f"http://{pod['status']['podIP']}:{port}/metrics"
        return urllib3.request("GET", url, timeout=5, retries=False).data.decode()
    except (urllib3.exceptions.HTTPError, KeyError):
        return ""


@pytest.mark.timeout(900)
def test_prometheus_answers_all_that_the_dashboard_and_the_alerts_ask(story: Story, world: World) -> None:
    server = story.prometheus
    _targets_were_found(server)
    answers = {panel["title"]: _answers(server, panel) for panel in dashboards.panels()}
    if PICTURE:
        document = json.dumps({"began": server.began, "ended": time.time(), "panels": answers})
        # The namespace's own name is a test's: too long for a legend.
        Path(PICTURE).write_text(document.replace(story.namespace, "team"), encoding="utf-8")
    empty = {title for title, found in answers.items() if not all(map(_has_values, found))}
    assert empty == set()
    _alerts_can_be_evaluated(server, story.rules)
    for name, text in story.scrapes.items():
        _promtool_finds_nothing_wrong(name, text)

    # What goes on when nobody leads any more.
    (leader,) = [rule for rule in _rules(story.rules) if rule["alert"] == "TandemOperatorWithoutLeader"]
    assert server.now(leader["expr"]) == []
    world.operator.kill()
    world.wait("the alert's expression", lambda: server.now(leader["expr"]))


def _targets_were_found(server: Prometheus) -> None:
    """The operator, and each kind of pod of the run, with the run's name."""
    for job in ("tandem-metrics", *(f"tandem-system/tandem-runs/{port}" for port in ("progress", "http", "adapters"))):
        assert server.so_far(f'up{{job="{job}"}} == 1'), job
    of_pods = server.so_far('{__name__=~"tandem_worker_.*|vllm:.*|tandem_adapter_.*"}')
    assert {series["metric"].get("name") for series in of_pods} == {"run"}


def _answers(server: Prometheus, panel: Object) -> list[Object]:
    return [
        {"legend": query.legend, "result": server.so_far(dashboards.filled(query.expression))}
        for query in dashboards.queries(panel)
    ]


def _has_values(answer: Object) -> bool:
    return any(not math.isnan(float(value)) for series in answer["result"] for _, value in series["values"])


def _rules(rules: Object) -> list[Object]:
    return [rule for group in rules["groups"] for rule in group["rules"]]


def _alerts_can_be_evaluated(server: Prometheus, rules: Object) -> None:
    """Prometheus has evaluated each of them; all that they look at is there; none has fired for this run."""
    known = [rule for group in server.get("rules")["groups"] for rule in group["rules"]]
    assert {rule["name"] for rule in known} == {rule["alert"] for rule in _rules(rules)}
    assert {rule["health"] for rule in known} == {"ok"}, known
    for rule in _rules(rules):
        server.so_far(rule["expr"])
        for metric, matchers in _SELECTOR.findall(rule["expr"]):
            found = server.so_far(f"count({metric}{matchers})")
            assert found or metric in EMPTY_SELECTORS, (rule["alert"], metric, matchers)
    assert [rule["name"] for rule in known if rule["state"] == "firing"] == []


def _promtool_finds_nothing_wrong(name: str, text: str) -> None:
    """Names, types and help texts as Prometheus wants them. Of the library's own `_created` series we say nothing."""
    assert "tandem_" in text, name
    ours = "".join(f"{line}\n" for line in text.splitlines() if "_created" not in line)
    done = subprocess.run(
        [tool("prometheus", "promtool"), "check", "metrics"], input=ours, capture_output=True, text=True
    )
    assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
