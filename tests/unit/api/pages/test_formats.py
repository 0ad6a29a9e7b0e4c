"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest

from tandem_api.pages.formats import count, counted, duration, interval, measure, percent, points, text


@pytest.mark.parametrize(
    ("seconds", "wanted"),
    [
        (-0.1, "0 s"), (0.04, "0 s"), (0.44, "0.4 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.4, "59 s"),
        (59.6, "1 min"), (125, "2 min 5 s"), (3599.7, "1 h"), (11_040, "3 h 4 min"), (86_400 * 2 + 3700, "2 d 1 h"),
    ],
)  # fmt: skip
def test_durations_have_their_two_largest_units(seconds: float, wanted: str) -> None:
    assert duration(seconds) == wanted


def test_scores_are_percentages_of_numbers_and_of_the_statuss_texts() -> None:
    assert (percent(0.875), percent("0.8750"), percent(None)) == ("87.5%", "87.5%", "–")
    assert (interval("0.1", 0.25), interval(None, 1)) == ("10.0% to 25.0%", "–")
    assert (points(0.325), points(-0.025), points(0.0001)) == ("+32.5 points", "−2.5 points", "0 points")


def test_counts_losses_and_values() -> None:
    assert (count(1234567), counted(1, "row"), counted(1234, "row")) == ("1,234,567", "1 row", "1,234 rows")
    assert (measure(0.123456), measure(math.nan), measure(None)) == ("0.1235", "–", "–")
    assert (text("a\nb"), text({"é": [1, None]}), text({1}.__class__)) == (
        "a\nb",
        '{"é": [1, null]}',
        "\"<class 'set'>\"",
    )
