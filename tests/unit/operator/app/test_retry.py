"""How long a failed run waits, and what is said of the failure."""

from __future__ import annotations

import json

import pytest
from kubernetes.client import ApiException

from tandem_operator.app.retry import QUIET_CONFLICTS, Retry, after, describe, error_type


def answered(status: int, headers: dict[str, str] | None = None) -> ApiException:
    error = ApiException(status=status, reason="Because", body=json.dumps({"message": "jobs.batch is\nforbidden"}))
    error.headers = headers
    return error


@pytest.mark.parametrize(("failures", "seconds"), [(1, 1), (2, 2), (3, 4), (9, 256), (10, 300), (5000, 300)])
def test_errors_wait_twice_as_long_each_time_up_to_five_minutes(failures: int, seconds: float) -> None:
    assert after(ValueError(), failures) == Retry(seconds)
    assert after(answered(500), failures) == Retry(seconds)


def test_conflicts_do_not_wait_until_there_are_too_many() -> None:
    assert after(answered(409), QUIET_CONFLICTS) == Retry(0.0, is_quiet=True)
    assert after(answered(409), QUIET_CONFLICTS + 1) == Retry(32.0)


@pytest.mark.parametrize(("header", "seconds"), [("7", 7), ("0", 1), ("100000", 300)])
def test_the_api_servers_wish_binds(header: str, seconds: float) -> None:
    assert after(answered(429, {"Retry-After": header}), 1) == Retry(seconds, is_binding=True)
    assert after(answered(503, {"Retry-After": header}), 4) == Retry(seconds, is_binding=True)


def test_without_a_readable_wish_it_is_an_error_like_others() -> None:
    assert after(answered(429), 2) == Retry(2.0)
    assert after(answered(429, {"Retry-After": "Sat, 21 Nov 2026 07:00:00 GMT"}), 2) == Retry(2.0)


def test_errors_are_said_in_one_line_without_headers() -> None:
    error = answered(403, {"Authorization": "Bearer secret"})
    assert describe(error) == "the API server answered 403 Because: jobs.batch is forbidden"
    assert describe(ApiException(status=502, reason="Bad Gateway", body="<html>")).endswith(": no explanation")
    assert describe(ValueError("a\nb")) == "ValueError: a b"
    assert (error_type(error), error_type(ValueError()), error_type(ApiException())) == ("Api403", "ValueError", "Api0")
