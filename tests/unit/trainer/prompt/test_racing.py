"""Who is dropped: the stated error rate really held, the power it leaves, and the odd cases."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import NormalDist

import numpy as np
import pytest

from tandem_api.v1alpha1.prompt_optimizers import Racing
from tandem_trainer.prompt.racing import Rules, Scores, leader, limit, looks_at, losers

RULES = Rules(error_rate=0.05, first_round=10, exhaustive=False)
Draw = Callable[[np.random.Generator], Scores]


def run_race(scores: Scores, rules: Rules = RULES) -> tuple[int, int, list[int]]:
    """The winner, the runs that it took, and after how many examples each candidate left."""
    alive, seen, runs = list(range(len(scores))), 0, 0
    examples = scores.shape[1]
    left = [examples] * len(scores)
    for look in looks_at(examples, rules):
        runs += len(alive) * (look - seen)
        seen = look
        for index in losers(scores[:, :seen], alive, examples, rules):
            alive.remove(index)
            left[index] = seen
    return leader(scores, alive), runs, left


def answers(rates: Sequence[float], examples: int, random: np.random.Generator) -> Scores:
    """Right and wrong answers at these rates; half of the variance is the example's difficulty, which all share."""
    difficulty = random.standard_normal(examples)
    luck = random.standard_normal((len(rates), examples))
    quantiles = np.array([NormalDist().inv_cdf(rate) for rate in rates])
    return ((difficulty + luck) / np.sqrt(2) < quantiles[:, None]).astype(float)


def with_tie_breaks(scores: Scores, random: np.random.Generator) -> Scores:
    """Nearly right or wrong, so that exactly one candidate is the best and each mistake counts."""
    return 0.97 * scores + 0.03 * random.random(scores.shape)


EQUALLY_GOOD: dict[str, Draw] = {
    "six, with one best": lambda random: with_tie_breaks(answers([0.6] * 6, 100, random), random),
    "two, with one best": lambda random: with_tie_breaks(answers([0.6] * 2, 100, random), random),
    "twelve, with one best": lambda random: with_tie_breaks(answers([0.5] * 12, 100, random), random),
    "mostly right": lambda random: with_tie_breaks(answers([0.93] * 6, 100, random), random),
    "fractions": lambda random: random.beta(0.4, 0.4, size=(6, 100)),
    "rare failures": lambda random: np.where(random.random((6, 100)) < 0.08, 0.0, 0.9 + random.random((6, 100)) / 10),
    "few examples": lambda random: with_tie_breaks(answers([0.6] * 6, 30, random), random),
    "one slightly better": lambda random: with_tie_breaks(answers([0.6] * 5 + [0.64], 100, random), random),
    "three beside three bad ones": lambda random: with_tie_breaks(answers([0.6] * 3 + [0.3] * 3, 100, random), random),
}


@pytest.mark.parametrize("name", EQUALLY_GOOD)
def test_the_best_is_lost_no_more_often_than_stated(name: str) -> None:
    random, races, lost = np.random.default_rng(3), 2000, 0
    for _ in range(races):
        scores = EQUALLY_GOOD[name](random)
        winner, _, _ = run_race(scores)
        lost += scores[winner].mean() < scores.mean(axis=1).max() - 1e-9
    assert lost / races <= 0.05


def test_a_smaller_error_rate_loses_the_best_more_rarely_and_a_larger_one_saves_runs() -> None:
    random, runs, lost = np.random.default_rng(4), {0.01: 0, 0.2: 0}, {0.01: 0, 0.2: 0}
    for _ in range(500):
        scores = with_tie_breaks(answers([0.6] * 6, 100, random), random)
        for rate in runs:
            winner, cost, _ = run_race(scores, Rules(rate, 10, False))
            runs[rate] += cost
            lost[rate] += winner != leader(scores, range(6))
    assert lost[0.01] / 500 <= 0.01 < lost[0.2] / 500 <= 0.2
    assert runs[0.2] < 0.85 * runs[0.01]


def test_what_is_clearly_worse_is_gone_after_the_first_looks() -> None:
    random = np.random.default_rng(5)
    left = [run_race(answers([0.9, 0.15, 0.45], 100, random))[2] for _ in range(200)]
    worst, middle = np.array(left)[:, 1:].T
    assert np.mean(worst <= 20) > 0.95
    assert np.mean(middle <= 45) > 0.9


def test_candidates_that_differ_cost_less_than_half_of_a_full_evaluation_and_the_choice_is_as_good() -> None:
    """The scripted benchmark's problem: a weak start, a labelled one, and four of unknown worth."""
    random, runs, loss = np.random.default_rng(6), [], []
    for _ in range(100):
        rates = [0.35, random.uniform(0.4, 0.45), *random.uniform(0.35, 0.85, 4)]
        scores = answers(rates, 100, random)
        winner, cost, _ = run_race(scores)
        runs.append(cost)
        loss.append(rates[leader(scores, range(6))] - rates[winner])
    assert np.mean(runs) < 285
    assert np.mean(loss) <= 0.005


def test_equal_candidates_stay_and_the_earlier_wins() -> None:
    one = answers([0.6], 100, np.random.default_rng(7))
    winner, runs, _ = run_race(np.repeat(one, 4, axis=0))
    assert (winner, runs) == (0, 400)


def test_equal_scores_added_in_another_order_are_a_tie() -> None:
    scores = np.array([[0.1, 0.2, 0.3], [0.3, 0.2, 0.1]])
    assert leader(scores, (0, 1)) == 0 and leader(scores[::-1], (0, 1)) == 0


def test_one_candidate_is_its_own_leader_and_nobody_is_dropped() -> None:
    assert run_race(np.zeros((1, 50)))[:2] == (0, 50)


def test_fewer_examples_than_the_first_round_are_one_round() -> None:
    assert looks_at(8, RULES) == (8,)
    assert run_race(np.array([[0.0] * 8, [1.0] * 8]))[:2] == (1, 16)


def test_rounds_grow_by_half_of_what_was_seen_and_the_last_look_is_after_all() -> None:
    assert looks_at(100, RULES) == (10, 20, 30, 45, 67, 100)
    assert looks_at(10, RULES) == (10,) and looks_at(11, RULES) == (10, 11)
    assert looks_at(100, Rules(0.05, 10, exhaustive=True)) == (100,)


def test_a_few_equal_differences_are_no_proof_though_their_variance_is_zero() -> None:
    rules = Rules(0.05, 2, False)
    assert losers(np.array([[1.0, 1.0], [0.0, 0.0]]), (0, 1), 100, rules) == []
    assert losers(np.array([[0.51] * 10, [0.5] * 10]), (0, 1), 100, RULES) == []


def test_who_cannot_catch_up_any_more_is_dropped_whatever_the_doubt() -> None:
    six_to_four = np.array([[1.0] * 6 + [0.0] * 4, [0.0] * 6 + [1.0] * 4])
    sure = Rules(1e-4, 10, False)
    assert losers(six_to_four, (0, 1), 12, sure) == [], "it could still draw level"
    assert losers(six_to_four, (0, 1), 11, sure) == [1]


def test_nobody_is_dropped_at_the_end_or_when_racing_is_off() -> None:
    scores = np.array([[1.0] * 40, [0.0] * 40])
    assert losers(scores, (0, 1), 40, RULES) == []
    assert losers(scores, (0, 1), 400, Rules(0.05, 10, exhaustive=True)) == []
    assert losers(scores, (0, 1), 400, RULES) == [1]


def test_the_rows_of_those_dropped_before_are_not_read() -> None:
    scores = np.array([[0.0] * 20, [1.0] * 20, [0.0] * 20])
    assert losers(scores, (0, 2), 100, RULES) == []
    scores[1] = np.nan
    assert leader(scores, (0, 2)) == 0


def test_the_limit_rises_with_the_candidates_and_falls_with_the_error_rate() -> None:
    looks = looks_at(100, RULES)
    assert limit(2, looks, 0.05) < limit(6, looks, 0.05) < limit(12, looks, 0.05)
    assert limit(6, looks, 0.2) < limit(6, looks, 0.05) < limit(6, looks, 0.01)


def test_rules_are_those_of_the_settings() -> None:
    assert Rules.of(Racing(error_rate="0.1", first_round=7), exhaustive=True) == Rules(0.1, 7, True)
