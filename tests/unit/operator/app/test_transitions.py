"""What is read off a status, and what of it is told between two passes."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tandem_api.v1alpha1 import Status
from tandem_operator.app.transitions import KINDS, Seen, deletion, happened, transitions

NOW = datetime(2026, 11, 22, 8, 0, 0, 250_000, tzinfo=UTC)
LONG_AGO = NOW - timedelta(days=1)


def at(minute: int) -> str:
    return (NOW + timedelta(minutes=minute)).isoformat()


def condition(kind: str, status: str, reason: str, minute: int) -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "lastTransitionTime": at(minute)}


def seen(status: dict[str, Any], uid: str = "u1") -> Seen:
    return Seen("team", "reviews", uid, Status.model_validate(status))


def going(*conditions: dict[str, Any], **more: Any) -> dict[str, Any]:
    steps = [
        {"index": 0, "kind": "baseline", "state": "Succeeded", "started": at(0), "finished": at(5)},
        {"index": 1, "kind": "p", "state": "Running", "started": at(5)},
        {"index": 2, "kind": "w"},
        {"index": 3, "kind": "final"},
    ]
    found = conditions or (condition("Suspended", "False", "NotSuspended", 0),)
    return {"started": at(0), "steps": steps, "conditions": list(found), **more}


def ended(state: str = "True") -> dict[str, Any]:
    steps = [
        {"index": 0, "kind": "baseline", "state": "Succeeded", "started": at(0), "finished": at(5)},
        {"index": 1, "kind": "p", "state": "Succeeded", "started": at(5), "finished": at(9)},
        {"index": 2, "kind": "w", "state": "Skipped", "reason": "TargetReached"},
        {"index": 3, "kind": "final", "state": "Succeeded", "started": at(9), "finished": at(12)},
    ]
    found = [condition("Succeeded", state, "TargetReached", 12), condition("Suspended", "False", "NotSuspended", 0)]
    return {"started": at(0), "finished": at(12), "steps": steps, "conditions": found}


def told(found: list[Any]) -> list[str]:
    return [f"{one.what} {one.step}" if one.step is not None else one.what for one in found]


def test_a_whole_run_is_told_in_order() -> None:
    assert told(happened(seen(ended()))) == [
        "run.started", "step.started 0", "step.finished 0", "step.started 1", "step.finished 1",
        "step.finished 2", "step.started 3", "step.finished 3", "run.succeeded",
    ]  # fmt: skip


def test_between_two_passes_only_what_is_new_is_told() -> None:
    before, after = seen(going()), seen(ended())
    assert told(transitions(before, after, LONG_AGO)) == [
        *("step.finished 1", "step.finished 2", "step.started 3", "step.finished 3", "run.succeeded")
    ]
    assert transitions(after, after, LONG_AGO) == []


def test_every_way_of_seeing_it_gives_the_same_ids_and_no_two_are_equal() -> None:
    whole = happened(seen(ended()))
    parts = [*happened(seen(going())), *transitions(seen(going()), seen(ended()), LONG_AGO)]
    assert {one.id for one in whole} == {one.id for one in parts}
    assert len({one.id for one in whole}) == len(whole)
    assert not {one.id for one in whole} & {one.id for one in happened(seen(ended(), "u2"))}


def test_a_new_leader_tells_of_recent_minutes_only() -> None:
    found = transitions(None, seen(ended()), NOW + timedelta(minutes=9))
    assert told(found) == ["step.finished 1", "step.finished 2", "step.started 3", "step.finished 3", "run.succeeded"]
    assert transitions(None, seen(ended()), NOW + timedelta(hours=1)) == []


def test_a_run_made_anew_under_its_name_is_another() -> None:
    assert len(transitions(seen(ended(), "u1"), seen(ended(), "u2"), LONG_AGO)) == 9


def test_a_run_that_is_held_and_goes_on_again() -> None:
    held = seen(going(condition("Suspended", "True", "Suspended", 6)))
    on = seen(going(condition("Suspended", "False", "NotSuspended", 8)))
    again = seen(going(condition("Suspended", "True", "Suspended", 9)))
    assert told(transitions(seen(going()), held, LONG_AGO)) == ["run.suspended"]
    assert told(transitions(held, on, LONG_AGO)) == ["run.resumed"]
    assert told(transitions(on, again, LONG_AGO)) == ["run.suspended"]
    assert transitions(held, again, LONG_AGO)[0].id != transitions(seen(going()), held, LONG_AGO)[0].id


def test_a_run_that_was_made_suspended_starts_and_is_not_resumed() -> None:
    held = seen({"conditions": [condition("Suspended", "True", "Suspended", -3)], "steps": []})
    assert told(happened(held)) == ["run.suspended"]
    assert told(transitions(held, seen(going()), LONG_AGO)) == [*("run.started", "step.started 0"), *(
        "step.finished 0", "step.started 1")]  # fmt: skip


def test_a_run_that_ends_while_it_is_held_is_not_resumed() -> None:
    status = ended()
    status["conditions"][1]["lastTransitionTime"] = at(12)
    assert "run.resumed" not in told(happened(seen(status)))


def test_a_manifest_that_is_refused_twice_fails_twice() -> None:
    first = seen({"conditions": [condition("Succeeded", "False", "InvalidSpec", 0)]})
    mended = seen({"conditions": [condition("Succeeded", "Unknown", "Running", 1)]})
    second = seen({"conditions": [condition("Succeeded", "False", "InvalidSpec", 2)]})
    found = [*transitions(None, first, LONG_AGO), *transitions(first, mended, LONG_AGO)]
    found += transitions(mended, second, LONG_AGO)
    assert told(found) == ["run.failed", "run.failed"]
    assert found[0].id != found[1].id


def test_a_time_that_was_stored_without_its_fraction_is_the_same_transition() -> None:
    stored = seen({"conditions": [condition("Succeeded", "False", "Failed", 0)]})
    whole = stored.status.conditions[0].model_copy(update={"last_transition_time": NOW.replace(microsecond=0)})
    read = replace(stored, status=stored.status.model_copy(update={"conditions": (whole,)}))
    assert transitions(stored, read, LONG_AGO) == []


@pytest.mark.parametrize("state", ["Pending", "Running"])
def test_a_run_that_has_not_begun_tells_nothing(state: str) -> None:
    assert happened(seen({"steps": [{"index": 0, "kind": "baseline", "state": state}]})) == []


def test_every_kind_is_told_of_somewhere() -> None:
    everything = [*happened(seen(ended())), *happened(seen(ended("False"))), deletion(seen(ended()), NOW)]
    everything += happened(seen(going(condition("Suspended", "True", "Suspended", 6))))
    everything += happened(seen(going(condition("Suspended", "False", "NotSuspended", 8))))
    assert {one.what for one in everything} == set(KINDS)
