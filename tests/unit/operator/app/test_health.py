"""Alive and ready, from numbers and over HTTP."""

from __future__ import annotations

import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client import CollectorRegistry, Gauge

from tandem_operator.app.endpoints import Endpoints
from tandem_operator.app.health import Vitals, why_dead, why_unready

LEADER = Vitals(may_list=True, leads=True, answered=4.0)
SPARE = Vitals(may_list=True, answered=2.0, queue_turned=9999, watch_turned=9999)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"queue_turned": 61.0}, "queue"),
        ({"watch_turned": 61.0}, "loop of the watch"),
        ({"unseen": 91.0}, "has not told of a changed run for 91 s"),
        ({"longest_pass": 901.0}, "pass"),
    ],
)
def test_a_leader_dies_of_one_sign(change: dict[str, float], word: str) -> None:
    assert why_dead(LEADER) == []
    problems = why_dead(Vitals(may_list=True, leads=True, **change))
    assert len(problems) == 1
    assert word in problems[0]


def test_a_spare_is_alive_and_ready_as_long_as_it_could_take_over() -> None:
    assert why_dead(SPARE) == []
    assert why_unready(SPARE) == []
    assert why_unready(Vitals(may_list=True, answered=31.0)) != []


def test_nothing_is_ready_that_may_not_list_runs() -> None:
    assert why_unready(Vitals()) == ["the runs cannot be listed: see the log"]
    assert why_dead(Vitals()) == []


def test_a_leader_is_ready() -> None:
    assert why_unready(LEADER) == []


class Served:
    def __init__(self) -> None:
        self.vitals = LEADER
        registry = CollectorRegistry()
        Gauge("tandem_test", "For this test.", registry=registry).set(7)
        self.endpoints = Endpoints(0, 0, lambda: self.vitals, registry)
        self.health, self.metrics = self.endpoints.start()

    def get(self, port: int, path: str) -> tuple[int, str]:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()


@pytest.fixture
def served() -> Iterator[Served]:
    found = Served()
    yield found
    found.endpoints.stop()


def test_the_endpoints_answer(served: Served, caplog: pytest.LogCaptureFixture) -> None:
    assert served.get(served.health, "/healthz") == (200, "ok\n")
    assert served.get(served.health, "/readyz") == (200, "ok\n")
    assert "tandem_test 7.0" in served.get(served.metrics, "/metrics")[1]
    assert served.get(served.health, "/metrics")[0] == 404
    served.vitals = Vitals(leads=True, unseen=120.0)
    for _ in range(3):
        assert served.get(served.health, "/healthz") == (500, "the watch has not told of a changed run for 120 s\n")
    assert served.get(served.health, "/readyz")[0] == 503
    # Said once, not with each probe.
    assert caplog.text.count("alive: the watch has not told") == 1
