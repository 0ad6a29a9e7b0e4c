"""A run on a cluster is shown to its end, whatever happens to the connection."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from tests.unit.operator.cli.cluster_case import (
    NOW,
    at_stage,
    condition,
    ended,
    manifest,
    tandem,
    wait_for,
    with_status,
)
from tests.unit.operator.cli.fake_cluster import LIST, FakeCluster, status_answer

from tandem_api.v1alpha1 import OptimizationRun
from tandem_api.v1alpha1.run import parse_run
from tandem_operator.cli.cluster import patience, watch
from tandem_operator.cli.cluster.failures import UnreachableError
from tandem_operator.cli.cluster.feed import Feed
from tandem_operator.cli.cluster.patience import Patience
from tandem_operator.cli.cluster.watch import obstacles
from tandem_operator.cli.glance import Glance, from_resource
from tandem_operator.cli.live import panel

Plan = Callable[[FakeCluster], Iterator[dict[str, Any]]]
DONE = {"state": "Succeeded", "finished": NOW, "started": NOW}


def lines(text: str) -> list[str]:
    """Without the times of day."""
    return [line[10:] if line[2:3] == ":" else line for line in text.splitlines()]


def change_after_watches(cluster: FakeCluster, count: int, *resources: dict[str, Any]) -> None:
    """Once so many watches have begun, change the run to these, one after the other."""

    def work() -> None:
        wait_for(lambda: sum(query.get("watch") == "true" for _, query, _ in cluster.asked("GET")) >= count)
        for resource in resources:
            cluster.put(resource)

    threading.Thread(target=work, daemon=True).start()


def test_a_run_is_told_in_lines_to_its_good_end(cluster: FakeCluster) -> None:
    cluster.put(manifest())
    serving: dict[str, Any] = {"serving": {"name": "base", "since": NOW}}
    change_after_watches(
        cluster,
        1,
        with_status(manifest(), at_stage("optimize", "Pending", **serving)),
        with_status(manifest(), at_stage("optimize", **serving)),
        with_status(manifest(), at_stage("optimize", stage=DONE, **serving)),
        with_status(manifest(), ended()),
    )
    result = tandem("watch", "small")
    assert result.exit_code == 0
    told = lines(result.stdout)
    assert told[:4] == [
        "model server: loading base",
        "step 1 (p), optimize: started",
        "step 1 (p), optimize: done, in 0 s",
        "model server: stopped",
    ]
    assert told[-2:] == [
        "outcome     Succeeded: Completed: that is why",
        "result      s3://bucket/team/default/small/uid-small/result/",
    ]


def test_a_failed_run_ends_with_1(cluster: FakeCluster) -> None:
    cluster.put(with_status(manifest(), ended("False", "OOMKilled")))
    result = tandem("watch", "small")
    assert result.exit_code == 1
    assert "outcome     Failed: OOMKilled: that is why" in result.stdout


def test_a_submitted_run_is_watched(cluster: FakeCluster, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(manifest()))
    change_after_watches(cluster, 1, with_status(manifest(), ended()))
    result = tandem("submit", "-f", "run.yaml", "--wait")
    assert result.exit_code == 0
    assert result.stdout.startswith("small is submitted to namespace default\n")
    assert "outcome     Succeeded" in result.stdout


def at_once(cluster: FakeCluster) -> Iterator[dict[str, Any]]:
    """A watch that the server ends."""
    return iter(())


def forgotten(cluster: FakeCluster) -> Iterator[dict[str, Any]]:
    """A watch whose place in history is gone."""
    yield {"type": "ERROR", "object": status_answer(410, "Expired", "too old resource version: 1")[1]}


def broken(cluster: FakeCluster) -> Iterator[dict[str, Any]]:
    """A watch whose connection breaks."""
    raise ConnectionAbortedError
    yield


@pytest.mark.parametrize("plan", [at_once, forgotten])
def test_a_watch_that_ends_is_begun_anew_without_a_word(
    cluster: FakeCluster, plan: Callable[[FakeCluster], Iterator[dict[str, Any]]]
) -> None:
    cluster.put(with_status(manifest(), at_stage("optimize")))
    cluster.watch_plan = [plan, plan]
    change_after_watches(cluster, 3, with_status(manifest(), ended()))
    result = tandem("watch", "small")
    assert result.exit_code == 0
    assert "connection" not in result.stdout
    lists = [query for _, query, _ in cluster.asked("GET") if "fieldSelector" in query and "watch" not in query]
    assert len(lists) >= 3


def test_a_change_between_two_watches_is_not_missed(cluster: FakeCluster) -> None:
    cluster.put(with_status(manifest(), at_stage("optimize")))

    def change_and_end(cluster: FakeCluster) -> Iterator[dict[str, Any]]:
        cluster.put(with_status(manifest(), ended()))
        return iter(())

    cluster.watch_plan = [change_and_end]
    assert tandem("watch", "small").exit_code == 0


def test_a_lost_connection_is_told_once_and_made_again(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.01)
    cluster.put(with_status(manifest(), at_stage("optimize")))

    def break_down(cluster: FakeCluster) -> Iterator[dict[str, Any]]:
        cluster.refuse("GET", LIST, *[status_answer(503, "ServiceUnavailable", "starting")] * 3)
        raise ConnectionAbortedError
        yield

    cluster.watch_plan = [break_down]
    change_after_watches(cluster, 2, with_status(manifest(), ended()))
    result = tandem("watch", "small")
    assert result.exit_code == 0
    told = [line for line in lines(result.stdout) if "connect" in line]
    assert len(told) >= 2
    assert told[0].startswith("warning: connection lost, trying again: cannot connect to http://127.0.0.1:")
    assert told[-1] == "connected again"
    assert sum("connection lost" in line for line in told) == 1


def test_a_cluster_that_stays_away_is_given_up(cluster: FakeCluster) -> None:
    now = [0.0]
    waiting = Patience(clock=lambda: now[0])
    pauses = []
    while now[0] <= patience.LIMIT_SECONDS:
        pauses.append(waiting.pause_after(UnreachableError("away")))
        now[0] += pauses[-1]
    assert pauses[:4] == [0.5, 1.0, 2.0, 4.0]
    assert max(pauses) == 15.0
    with pytest.raises(UnreachableError, match="away"):
        waiting.pause_after(UnreachableError("away"))
    waiting.restored()
    assert waiting.pause_after(UnreachableError("away")) == 0.5


def test_a_right_that_is_taken_away_ends_the_watch(cluster: FakeCluster) -> None:
    cluster.put(with_status(manifest(), at_stage("optimize")))
    cluster.refuse("GET", LIST, status_answer(403, "Forbidden", 'User "ada" cannot list resource'), forever=True)
    result = tandem("watch", "small")
    assert result.exit_code == 2
    assert "you lack the right to list optimizationruns.tandem.dev" in result.stderr


def test_a_run_that_is_deleted_ends_the_watch(cluster: FakeCluster) -> None:
    cluster.put(with_status(manifest(), at_stage("optimize")))

    def delete(cluster: FakeCluster) -> Iterator[dict[str, Any]]:
        version = cluster.version
        cluster.remove("small")
        return cluster.watching(version)

    cluster.watch_plan = [delete]
    result = tandem("watch", "small")
    assert result.exit_code == 1
    assert "the run 'small' was deleted while it was watched" in result.stderr


def test_another_run_of_that_name_is_not_taken_for_it(cluster: FakeCluster) -> None:
    cluster.put(with_status(manifest(), at_stage("optimize")))
    other = with_status(manifest(), ended())
    other["metadata"] = {"name": "small", "uid": "another"}
    change_after_watches(cluster, 1, other)
    result = tandem("watch", "small")
    assert result.exit_code == 1
    assert "was deleted, and another of its name was made" in result.stderr


def test_ctrl_c_stops_the_watching_only(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.put(with_status(manifest(), at_stage("optimize")))

    def interrupt(feed: Feed, timeout: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Feed, "next", interrupt)
    result = tandem("watch", "small", "--context", "test")
    assert result.exit_code == 130
    assert lines(result.stdout)[-3:] == [
        "stopped watching; the run goes on",
        "to watch it again: tandem watch small -n default --context test",
        "to end it: tandem cancel small -n default --context test",
    ]
    assert ("default", "small") in cluster.runs


def test_an_operator_that_does_not_run_is_suspected(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch, "_OPERATOR_SECONDS", 0.0)
    cluster.put(manifest())

    def work() -> None:
        wait_for(lambda: len(cluster.requests) > 2)
        threading.Event().wait(0.3)
        cluster.put(with_status(manifest(), ended()))

    threading.Thread(target=work, daemon=True).start()
    result = tandem("watch", "small")
    assert result.exit_code == 0
    assert sum("is the operator running?" in line for line in lines(result.stdout)) == 1


def run_with(status: dict[str, Any]) -> OptimizationRun:
    return parse_run(with_status(manifest(), status))


@pytest.mark.parametrize(
    ("old", "new", "want"),
    [
        pytest.param(
            at_stage("train"),
            at_stage("train", conditions=[condition("Progressing", "True", "WaitingForQuota", "2 before it")]),
            ["WaitingForQuota: 2 before it"],
            id="a queue is nobody's fault",
        ),
        pytest.param(
            at_stage("train"),
            at_stage("train", conditions=[condition("ServingReady", "False", "ImagePullBackOff", "no such image")]),
            ["warning: ImagePullBackOff: no such image"],
            id="a wrong image",
        ),
        pytest.param(
            at_stage("train", conditions=[condition("Progressing", "True", "Unschedulable", "0/3 nodes")]),
            at_stage("train", conditions=[condition("Progressing", "True", "Unschedulable", "0/4 nodes")]),
            [],
            id="told once",
        ),
        pytest.param(
            at_stage("train"),
            at_stage("train", conditions=[condition("ServingReady", "False", "Failed", "CUDA out of memory")]),
            ["warning: Failed: CUDA out of memory"],
            id="a server that fails",
        ),
        pytest.param(
            at_stage("train"),
            at_stage("train", "Pending", stage={"failures": 1, "reason": "OOMKilled", "message": "out of memory"}),
            ["warning: step 1 (p), train: an attempt failed: out of memory"],
            id="an attempt that is made again",
        ),
        pytest.param(
            at_stage("train"),
            at_stage("train", conditions=[condition("Suspended", "True", "Suspended")]),
            ["suspended; to go on: tandem resume small"],
            id="suspended",
        ),
        pytest.param(
            at_stage("train", conditions=[condition("Suspended", "True", "Suspended")]),
            at_stage("train"),
            ["resumed"],
            id="resumed",
        ),
        pytest.param(
            at_stage("train"),
            at_stage("train", conditions=[condition("Accepted", "True", "SpecChangeIgnored", "spec.model changed")]),
            ["warning: SpecChangeIgnored: spec.model changed"],
            id="a change that comes too late",
        ),
    ],
)
def test_what_holds_a_run_up_is_told(old: dict[str, Any], new: dict[str, Any], want: list[str]) -> None:
    assert obstacles(run_with(old).status, run_with(new).status, "small") == want


@pytest.mark.parametrize(
    ("held", "want"),
    [
        (
            condition("Progressing", "True", "Unschedulable", "0/3 nodes"),
            ["at step 1 (p), train", "warning: Unschedulable: 0/3 nodes"],
        ),
        (
            condition("Progressing", "True", "WaitingForQuota", "2 before it"),
            ["at step 1 (p), train", "WaitingForQuota: 2 before it"],
        ),
        (
            condition("ServingReady", "False", "ImagePullBackOff", "no such image"),
            ["at step 1 (p), train", "warning: ImagePullBackOff: no such image"],
        ),
        (
            condition("Suspended", "True", "Suspended"),
            ["at step 1 (p), train", "suspended; to go on: tandem resume small -n default --context test"],
        ),
        (
            condition("Accepted", "True", "SpecChangeIgnored", "spec.model changed"),
            ["going on with step 1 (p), train", "warning: SpecChangeIgnored: spec.model changed"],
        ),
    ],
)
def test_a_run_that_is_stuck_already_is_not_said_to_go_on(
    cluster: FakeCluster, held: dict[str, Any], want: list[str]
) -> None:
    status = at_stage("train", conditions=[condition("Succeeded", "Unknown", "Running"), held], stage={"failures": 1})
    cluster.put(with_status(manifest(), status))
    change_after_watches(cluster, 1, with_status(manifest(), ended()))
    assert lines(tandem("watch", "small", "--context", "test").stdout)[: len(want)] == want


@pytest.mark.parametrize(
    "held", [condition("Progressing", "True", "ImagePullBackOff"), condition("Suspended", "True", "Suspended")]
)
def test_a_stage_that_is_held_up_is_not_said_to_work(held: dict[str, Any]) -> None:
    run = run_with(at_stage("train", conditions=[held]))
    assert run.status.started is not None
    assert from_resource(run, run.status.started).progress is None
    assert from_resource(run_with(at_stage("train")), run.status.started).progress is not None


def test_the_panel_shows_what_the_resource_knows() -> None:
    status = at_stage(
        "optimize",
        step={"progress": 25, "eta": "2026-11-21T12:03:20Z", "message": "candidate 3 of 12"},
        serving={"name": "base", "since": NOW},
        conditions=[condition("ServingReady", "False", "PullingImage", "pulling")],
    )
    run = run_with(status)
    assert run.status.started is not None
    glance = from_resource(run, run.status.started)
    assert glance.amount == "25%"
    out = io.StringIO()
    Console(file=out, width=80).print(panel(run, glance))
    for text in (
        "small  step 1 of 0 (p)  optimize",
        "25%",
        "3 min 20 s left",
        "candidate 3 of 12",
        "model server: base, loading for 0 s: PullingImage",
    ):
        assert text in out.getvalue()
    ready = at_stage("optimize", serving={"name": "base"}, conditions=[condition("ServingReady", "True", "Ready")])
    assert from_resource(run_with(ready), run.status.started).serving == "base, ready"


def test_the_message_of_a_stage_that_waits_is_no_progress() -> None:
    run = run_with(at_stage("train", "Pending", step={"message": "the last attempt ran out of memory"}))
    assert run.status.started is not None
    assert from_resource(run, run.status.started) == Glance(run.status.started)


def test_a_run_that_nobody_has_taken_up_is_not_called_finishing() -> None:
    run = parse_run(manifest())
    out = io.StringIO()
    Console(file=out, width=80).print(panel(run, Glance(datetime.now(UTC))))
    assert out.getvalue().strip() == "waiting to begin"
