"""Conditions follow the Kubernetes conventions: one of a type, and the transition time moves with the status only."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from tandem_api.conditions import ACCEPTED, PROGRESSING, SUCCEEDED, find, is_true, with_condition

NOW = datetime(2026, 1, 1, tzinfo=UTC)
LATER = NOW + timedelta(hours=1)


def one(status="Unknown", reason="Running", message="", *, now=NOW, generation=1, before=()):
    return with_condition(before, SUCCEEDED, status, reason, message, now=now, generation=generation)


def test_a_new_condition_is_appended_after_the_others():
    both = with_condition(one(), ACCEPTED, "True", "Checked", "", now=NOW, generation=1)
    assert [condition.type for condition in both] == [SUCCEEDED, ACCEPTED]
    assert is_true(both, ACCEPTED)
    assert not is_true(both, SUCCEEDED)


def test_the_transition_time_stays_while_only_reason_and_message_change():
    (after,) = one(reason="Waiting", message="for the server", now=LATER, generation=2, before=one())
    assert (after.reason, after.message, after.observed_generation) == ("Waiting", "for the server", 2)
    assert after.last_transition_time == NOW


def test_the_transition_time_moves_when_the_status_does():
    (after,) = one("True", "Completed", now=LATER, before=one())
    assert after.last_transition_time == LATER


def test_setting_the_same_condition_again_changes_nothing():
    assert one(now=LATER, before=one()) == one()


def test_a_message_is_cut_to_what_kubernetes_allows():
    (condition,) = one(message="x" * 40_000)
    assert len(condition.message) == 32_768


def test_what_is_not_there_is_not_true():
    assert find((), SUCCEEDED) is None
    assert not any(is_true((), kind) for kind in (ACCEPTED, PROGRESSING, SUCCEEDED))
