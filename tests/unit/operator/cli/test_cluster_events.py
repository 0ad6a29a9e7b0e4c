"""`tandem events`: what was told of a run, in order, within 80 columns."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from tests.unit.operator.cli.cluster_case import manifest, tandem
from tests.unit.operator.cli.fake_cluster import FakeCluster

from tandem_operator.cli.cluster import events


def event(reason: str, minute: int, *, kind: str = "Normal", name: str = "small", **more: Any) -> dict[str, Any]:
    moment = f"2026-11-21T12:{minute:02}:00Z"
    return {
        "metadata": {
            "name": f"{name}.{reason}",
            "namespace": "default",
            "uid": f"{name}-{reason}",
            "resourceVersion": "1",
        },
        "involvedObject": {"kind": "OptimizationRun", "name": name},
        "type": kind,
        "reason": reason,
        "message": f"{reason} it is",
        "firstTimestamp": moment,
        "lastTimestamp": moment,
        "source": {"component": "tandem-operator"},
        **more,
    }


def test_events_come_in_order_and_those_of_others_do_not(cluster: FakeCluster) -> None:
    cluster.put(manifest())
    cluster.told += [event("StepSucceeded", 2), event("StepStarted", 1), event("RunFailed", 3, name="other")]
    head, *lines = tandem("events", "small").stdout.splitlines()
    assert head.split("  ")[0] == "LAST SEEN"
    assert [line.split()[2] for line in lines] == ["StepStarted", "StepSucceeded"]


def test_a_long_message_is_wrapped_in_80_columns_and_nothing_of_it_is_lost(cluster: FakeCluster) -> None:
    words = [f"word{n}" for n in range(60)]
    name = "y" * 52
    cluster.put(manifest(name))
    cluster.told.append(event("CannotCreatePod", 1, kind="Warning", name=name, message=" ".join(words), count=4))
    said = tandem("events", name).stdout
    assert max(len(line.rstrip()) for line in said.splitlines()) <= 80
    assert all(word in said.split() for word in words)
    assert "(x4 over" in " ".join(said.split())
    wide = tandem("events", name, "-o", "wide").stdout.splitlines()
    assert len(wide) == 2
    assert wide[1].split()[4:6] == ["4", "tandem-operator"]


def test_events_are_printed_for_other_programs(cluster: FakeCluster) -> None:
    cluster.put(manifest())
    cluster.told.append(event("StepStarted", 1))
    assert json.loads(tandem("events", "small", "-o", "json").stdout)["items"][0]["reason"] == "StepStarted"
    assert tandem("events", "small", "-o", "name").stdout == "event/small.StepStarted\n"


def test_the_events_of_a_run_that_is_gone_are_still_told(cluster: FakeCluster) -> None:
    cluster.told.append(event("RunFailed", 1))
    assert "RunFailed" in tandem("events", "small").stdout


def test_a_run_without_events_is_told_from_one_that_is_not_there(cluster: FakeCluster) -> None:
    cluster.put(manifest())
    result = tandem("events", "small")
    assert (result.exit_code, result.stdout) == (0, "")
    assert "there are no events of small in namespace default" in result.stderr
    result = tandem("events", "smal")
    assert result.exit_code == 2
    assert "there is no run 'smal' in namespace default; did you mean small?" in result.stderr


def test_watched_events_are_added_below(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.put(manifest())
    cluster.told.append(event("StepStarted", 1))

    def two(cluster: FakeCluster) -> Iterator[dict[str, Any]]:
        yield {"type": "ADDED", "object": event("StepSucceeded", 2)}
        yield {"type": "DELETED", "object": event("StepStarted", 1)}
        yield {"type": "ADDED", "object": event("RunSucceeded", 3)}

    def again(cluster: FakeCluster) -> Iterator[dict[str, Any]]:
        raise ConnectionAbortedError
        yield {}

    cluster.watch_plan += [two, again]
    printed = events._print
    monkeypatch.setattr(events, "_print", lambda found, **options: (printed(found, **options), stop(found)))

    def stop(found: list[dict[str, Any]]) -> None:
        if found[-1]["reason"] == "RunSucceeded":
            raise KeyboardInterrupt

    result = tandem("events", "small", "-w")
    assert result.exit_code == 130
    reasons = [line.split()[2] for line in result.stdout.splitlines()[1:]]
    assert reasons == ["StepStarted", "StepSucceeded", "RunSucceeded"]
