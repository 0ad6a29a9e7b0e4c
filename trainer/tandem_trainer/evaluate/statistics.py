"""The mean of scores with its 95% confidence interval."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

#: The standard normal's 97.5% quantile: two-sided 95%.
Z95 = 1.959963984540054


@dataclass(frozen=True)
class Interval:
    """A mean of `n` scores in [0, 1] and its 95% confidence interval."""

    mean: float
    low: float
    high: float
    n: int


def wilson(mean: float, n: float, z: float = Z95) -> tuple[float, float]:
    """Wilson's score interval (1927) for a mean of `n` > 0 scores that are 0 or 1."""
    shrink = 1 + z * z / n
    centre = (mean + z * z / (2 * n)) / shrink
    half = z / shrink * math.sqrt(mean * (1 - mean) / n + z * z / (4 * n * n))
    return max(0.0, min(mean, centre - half)), min(1.0, max(mean, centre + half))


def mean_interval(scores: Sequence[float]) -> Interval:
    """The mean of scores in [0, 1] with a 95% interval. Raises ValueError without any score.

    For 0/1 scores it is Wilson's interval. For fractional scores (F1, graded metrics) it is Wilson's interval at the
    effective sample size n * m(1 - m) / v, where m is the mean and v the scores' variance: the design-effect
    correction of survey statistics (Kott and Carr, Journal of Official Statistics 13, 1997). 0/1 scores have
    v = m(1 - m), so the second contains the first. It was chosen over the bootstrap and Student's t because it never
    leaves [0, 1], keeps its width where the mean is near 0 or 1, and needs neither a seed nor resampling.
    """
    n = len(scores)
    if n == 0:
        raise ValueError("no scores: a mean needs at least one")
    mean = math.fsum(scores) / n
    spread = mean * (1 - mean)
    variance = math.fsum((score - mean) ** 2 for score in scores) / n
    # Equal scores say nothing of the spread: then n itself, which is too wide rather than too narrow.
    effective = n * spread / variance if variance > 0 and spread > 0 else n
    low, high = wilson(mean, effective)
    return Interval(mean, low, high, n)
