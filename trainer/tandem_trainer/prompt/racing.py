"""Racing: which candidates are dropped, decided from the scores so far. Pure.

The idea is that of Hoeffding races (Maron and Moore, NIPS 1993) with the paired comparisons of F-Race (Birattari et
al., GECCO 2002): all candidates are scored on the same examples, and what is clearly worse than the leader is dropped.

*Statistic.* After n of N examples a candidate is behind the leader by the sum S of the paired differences. What a full
evaluation would say is S plus N - n differences that are not known yet; with the mean and variance of those seen, it
puts the candidate behind by z = m / sqrt(v / n * (1 - n / N)) standard errors: the last factor is the finite-population
correction, since the N examples are all there is to say. To m and v one example on which the candidate wins and one on
which it loses are added, in the spirit of Agresti and Min (Biometrics 61, 2005): so a few equal differences, whose
variance is zero, are no proof.

*Limit.* A candidate is dropped when z exceeds a limit. The limit is what makes the whole race drop the one that a full
evaluation would have found to be the best with at most the stated probability, over the drawing of the examples and
all looks and candidates together. It is the quantile of the largest z of that candidate in races of equally good
candidates with independent normal scores, which are simulated. (Of candidates that differ, the best is lost more
rarely.) After a drop the limit is that of a race among those left. Bonferroni's correction costs about a fifth
more examples.

Besides, a candidate is dropped that could not catch up even if it had all and the leader nothing from now on.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Self

import numpy as np
from numpy.typing import NDArray

from tandem_api.v1alpha1.prompt_optimizers import Racing

#: Scores of candidates (rows) on examples (columns).
Scores = NDArray[np.float64]

#: Simulated races for a limit: its quantile is then good to about 0.02.
RACES = 10_000
#: As many at once: they need little memory also with hundreds of candidates.
_AT_ONCE = 500


@dataclass(frozen=True)
class Rules:
    """How a race is run."""

    error_rate: float
    """How likely the race may drop the candidate that a full evaluation would have found to be the best."""
    first_round: int
    """Examples before the first look."""
    exhaustive: bool
    """Nothing is dropped: one round with everything."""

    @classmethod
    def of(cls, settings: Racing, exhaustive: bool) -> Self:
        """The rules that a step's settings ask for."""
        return cls(float(settings.error_rate), settings.first_round, exhaustive)


def looks_at(examples: int, rules: Rules) -> tuple[int, ...]:
    """After how many examples the scores are looked at; the last look is after all of them.

    A round has as many examples as the first, or half of those seen where that is more: small at first, when there
    are many candidates to drop, and few rounds in all.
    """
    looks = []
    look = 0 if rules.exhaustive else rules.first_round
    while 0 < look < examples:
        looks.append(look)
        look += max(rules.first_round, look // 2)
    return (*looks, examples)


def leader(scores: Scores, alive: Sequence[int]) -> int:
    """The candidate in `alive` with the best mean; of equal ones the earliest."""
    # Rounded: the order in which equal scores are added must not decide.
    totals = scores[list(alive)].sum(axis=1).round(9)
    return alive[int(np.argmax(totals))]


def losers(scores: Scores, alive: Sequence[int], examples: int, rules: Rules) -> list[int]:
    """Those in `alive` to drop now: never the leader, and nobody after the last look.

    `scores`: in [0, 1], on the examples seen so far (rows of those not alive are not read); `examples`: how many a
    full evaluation has.
    """
    seen = scores.shape[1]
    if rules.exhaustive or len(alive) == 1 or seen == examples:
        return []
    behind = scores[leader(scores, alive)] - scores[list(alive)]
    total = behind.sum(axis=1)
    mean = total / (seen + 2)
    variance = ((behind**2).sum(axis=1) + 2) / (seen + 2) - mean**2
    errors = mean / np.sqrt(variance / (seen + 2) * (1 - seen / examples))
    is_lost = (errors > limit(len(alive), looks_at(examples, rules), rules.error_rate)) | (total > examples - seen)
    return [index for index, lost in zip(alive, is_lost, strict=True) if lost]


@lru_cache(maxsize=256)
def limit(candidates: int, looks: tuple[int, ...], error_rate: float) -> float:
    """How many standard errors behind a candidate is dropped, in a race of so many with these looks.

    The last look is not counted: after it nobody is dropped. Rounded up to two digits, so that no decision hangs on a
    machine's arithmetic.
    """
    random = np.random.default_rng(0)
    seen = np.array(looks, dtype=np.float64)
    steps = np.sqrt(np.diff(seen, prepend=0.0))
    # Of the difference of two independent scores with variance 1.
    error = np.sqrt(2 * seen[:-1] * (1 - seen[:-1] / seen[-1]))
    worst = []
    for _ in range(RACES // _AT_ONCE):
        totals = np.cumsum(random.standard_normal((_AT_ONCE, candidates, len(looks))) * steps, axis=2)
        best = totals[np.arange(_AT_ONCE), totals[:, :, -1].argmax(axis=1)]
        behind = (totals.max(axis=1) - best)[:, :-1]
        worst.append((behind / error).max(axis=1))
    return math.ceil(100 * float(np.quantile(np.concatenate(worst), 1 - error_rate))) / 100
