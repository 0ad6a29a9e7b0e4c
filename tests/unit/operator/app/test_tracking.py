"""What the watch owes: told from what it has told and from what is listed."""

from __future__ import annotations

import pytest
from tests.unit.operator.app.helpers import Clock

from tandem_operator.app.tracking import Tracker, spread

A, B = ("team", "a"), ("team", "b")


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def tracker(clock: Clock) -> Tracker:
    found = Tracker(clock)
    found.delivered(A, "1")
    found.delivered(B, "2")
    clock.now += 10
    return found


def test_nothing_is_owed_while_the_versions_agree(tracker: Tracker, clock: Clock) -> None:
    assert tracker.known == [A, B]
    assert tracker.compare({A: "1", B: "2"}, clock.now) == []
    clock.now += 1000
    assert tracker.unseen_seconds() == 0


def test_a_change_that_is_not_told_is_owed_until_it_is(tracker: Tracker, clock: Clock) -> None:
    assert tracker.compare({A: "7", B: "2"}, clock.now) == [A]
    clock.now += 60
    assert tracker.compare({A: "8", B: "2"}, clock.now) == [A]
    assert tracker.unseen_seconds() == 60
    tracker.delivered(A, "8")
    assert tracker.unseen_seconds() == 0


def test_a_new_run_that_is_not_told_of_is_owed(tracker: Tracker, clock: Clock) -> None:
    assert tracker.compare({A: "1", B: "2", ("team", "c"): "3"}, clock.now) == [("team", "c")]
    clock.now += 5
    assert tracker.unseen_seconds() == 5


def test_what_was_told_after_the_question_may_be_newer_than_the_answer(tracker: Tracker, clock: Clock) -> None:
    asked_at = clock.now
    clock.now += 1
    tracker.delivered(A, "9")
    tracker.delivered(("team", "c"), "10")
    tracker.gone(B)
    assert tracker.compare({A: "8", B: "2"}, asked_at) == []
    assert tracker.known == [A, ("team", "c")]


def test_a_lost_deletion_brings_a_last_pass_and_no_alarm(tracker: Tracker, clock: Clock) -> None:
    assert tracker.compare({A: "1"}, clock.now) == [B]
    clock.now += 500
    assert tracker.unseen_seconds() == 0
    assert tracker.known == [A]
    assert tracker.compare({A: "1"}, clock.now) == []


def test_a_deletion_that_lies_back_does_not_excuse_a_run_of_the_same_name(tracker: Tracker, clock: Clock) -> None:
    tracker.gone(B)
    clock.now += 1
    assert tracker.compare({A: "1", B: "30"}, clock.now) == [B]


def test_runs_are_spread_evenly() -> None:
    assert list(spread([A, B], 10)) == [(A, 0.0), (B, 5.0)]
    assert list(spread([], 10)) == []
