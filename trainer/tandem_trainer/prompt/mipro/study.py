"""The surrogate of MIPRO (section 3.3): a tree-structured Parzen estimator over categorical variables, by Optuna.

The study lives in memory. It is seeded and asked in batches of a constant size, so that a stage that starts again asks
and is told the same: the scores come from the ledger, and the trial table shows every trial's values.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution
from optuna.trial import Trial, TrialState, create_trial

optuna.logging.set_verbosity(optuna.logging.WARNING)


class Study:
    """Suggests values of categorical variables, given the scores of those before."""

    def __init__(self, variables: Mapping[str, int], *, seed: int, random_trials: int) -> None:
        """`variables`: how many values each has. The first `random_trials` suggestions are uniform draws."""
        self._distributions: dict[str, BaseDistribution] = {
            name: CategoricalDistribution(tuple(range(count))) for name, count in variables.items()
        }
        with warnings.catch_warnings():
            # `multivariate` has been called experimental for years.
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(multivariate=True, seed=seed, n_startup_trials=random_trials)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)

    def ask(self) -> Trial:
        """The next suggestion, in its `params`. Those that were asked before and not told count as bad ones, so that
        a batch is spread."""
        return self._study.ask(self._distributions)

    def tell(self, trial: Trial, score: float) -> None:
        """The score of a suggestion."""
        self._study.tell(trial, score)

    def skip(self, trial: Trial) -> None:
        """Forget a suggestion that was not followed."""
        self._study.tell(trial, state=TrialState.FAIL)

    def add(self, values: Mapping[str, int], score: float) -> None:
        """A score that no suggestion was made for: the starting point's, or a full evaluation's."""
        params = {name: values.get(name, 0) for name in self._distributions}
        self._study.add_trial(create_trial(params=params, distributions=self._distributions, value=score))
