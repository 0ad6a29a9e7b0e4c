"""Bootstrapping: the program answers training examples, and the runs that pass give demos.

All examples of the round run in parallel. Source: BetterTogether (arXiv 2407.10930), section 3; the second round with
labelled demos is DSPy's, where it helps programs whose starting prompts hardly ever pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tandem_api.records import PromptSet, ScoredExample
from tandem_api.v1alpha1.optimizers import PromptOptimizer
from tandem_trainer.evaluate.evaluator import Evaluator, Job, ProgressCallback
from tandem_trainer.evaluate.examples import Example
from tandem_trainer.prompt.bfrs import retry_prompts
from tandem_trainer.prompt.demos import DemoPool, PredictorFields, build_pool, without_own_demos
from tandem_trainer.traces.filtering import passed

#: Called with the runs finished so far, what is going on, and the best score so far, if there is one.
Report = Callable[[int, str, float | None], None]


@dataclass(frozen=True)
class Bootstrap:
    """What bootstrapping came to."""

    pool: DemoPool
    examples: int
    """Examples that were run."""
    passed: int
    """Those that passed in the first round."""
    retried: int = 0
    retry_passed: int = 0
    """Examples that passed only with labelled demos in the prompt."""

    @property
    def runs(self) -> int:
        """Runs of the program that it took."""
        return self.examples + self.retried

    @property
    def facts(self) -> dict[str, int | str]:
        """The counts, for the stage's result."""
        return {
            "bootstrap_examples": self.examples,
            "bootstrap_passed": self.passed,
            "retried": self.retried,
            "retry_passed": self.retry_passed,
        }


@dataclass(frozen=True)
class Bootstrapper:
    """Bootstraps one program; the settings are the step's."""

    evaluator: Evaluator
    fields: Mapping[str, PredictorFields]
    settings: PromptOptimizer
    inputs: Sequence[str]
    """The fields of an example that the program is given."""
    seed: int
    step: int

    async def run(self, start: PromptSet, examples: Sequence[Example], report: Report) -> Bootstrap:
        """Run `start` on `examples`; where too few pass, run those that failed once more with labelled demos.

        With `maxBootstrappedDemos: 0` nothing is run. An example never sees itself among the demos.
        """
        if self.settings.max_bootstrapped_demos == 0:
            return Bootstrap(build_pool(self.fields, examples, ()), examples=0, passed=0)
        first = [Job(without_own_demos(start, example, self.inputs), example) for example in examples]
        good = await self._passing(first, lambda done, _, __: report(done, "bootstrapping", None))
        if len(good) >= self.settings.max_bootstrapped_demos:
            return Bootstrap(build_pool(self.fields, examples, good), len(examples), len(good))
        done = {record.example for record in good}
        again = self._retries(start, examples, [example for example in examples if example.id not in done])
        message = "bootstrapping with labelled demos"
        better = await self._passing(again, lambda done, _, __: report(len(first) + done, message, None))
        pool = build_pool(self.fields, examples, [*good, *better])
        return Bootstrap(pool, len(examples), len(good), len(again), len(better))

    async def _passing(self, jobs: Sequence[Job], progress: ProgressCallback) -> list[ScoredExample]:
        records = await self.evaluator.run(jobs, keep_calls=True, progress=progress)
        return [record for record in records if passed(record, self.settings.threshold)]

    def _retries(self, start: PromptSet, examples: Sequence[Example], failed: Sequence[Example]) -> list[Job]:
        labeled = build_pool(self.fields, examples, ())
        known: dict[str, PromptSet] = {}
        jobs = []
        for example in failed:
            prompts = retry_prompts(start, labeled, self.settings, example, self.inputs, seed=self.seed, step=self.step)
            if prompts is not None:
                # One object for equal prompt sets: programs are prepared and keys are made per object.
                jobs.append(Job(known.setdefault(prompts.sha256, prompts), example))
        return jobs
