"""The mean's interval: known values, its limits, and what it covers."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem_trainer.evaluate.statistics import mean_interval, wilson


@pytest.mark.parametrize(
    ("successes", "n", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962)],
    ids=["8 of 10", "none of 10: not a point", "all of 10: not a point", "half of 100"],
)
def test_zero_one_scores_give_wilsons_interval(successes: int, n: int, low: float, high: float) -> None:
    interval = mean_interval([1.0] * successes + [0.0] * (n - successes))
    assert interval.mean == successes / n
    assert (interval.low, interval.high) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_interval_holds_its_mean_and_stays_within_zero_and_one(scores: list[float]) -> None:
    interval = mean_interval(scores)
    assert 0 <= interval.low <= interval.mean <= interval.high <= 1
    assert interval.n == len(scores)


def test_fractional_scores_with_little_spread_have_a_narrow_interval() -> None:
    graded = mean_interval([0.7, 0.8] * 50)
    low, high = wilson(0.75, 100)
    assert graded.high - graded.low < 0.3 * (high - low)


def test_interval_covers_the_true_mean_of_fractional_scores_about_19_times_in_20() -> None:
    source = random.Random(1)
    covered = 0
    for _ in range(400):
        interval = mean_interval([source.betavariate(0.4, 0.6) for _ in range(40)])
        covered += interval.low <= 0.4 <= interval.high
    assert 0.92 <= covered / 400 <= 0.98


def test_no_scores_have_no_mean() -> None:
    with pytest.raises(ValueError, match="no scores"):
        mean_interval([])
