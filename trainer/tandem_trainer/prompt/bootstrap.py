"""Bootstrapping: the program answers training examples, and the runs that pass give demos.

Examples are run in rounds, until enough have passed; those of a round in parallel. Source: BetterTogether (arXiv
2407.10930), section 3, which runs all examples (`exhaustive: true`); the second pass with labelled demos is DSPy's,
where it helps programs whose starting prompts hardly ever pass.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from tandem_api.canonical import seed_from
from tandem_api.records import PromptSet, ScoredExample
from tandem_api.v1alpha1.prompt_optimizers import BootstrapRandomSearch
from tandem_trainer.evaluate.evaluator import Evaluator, Job, ProgressCallback
from tandem_trainer.evaluate.examples import Example
from tandem_trainer.prompt.bfrs import retry_prompts
from tandem_trainer.prompt.demos import DemoPool, PredictorFields, build_pool, without_own_demos
from tandem_trainer.prompt.optimizer import SearchTask
from tandem_trainer.traces.filtering import passed

#: Called with the runs finished so far, what is going on, and the best score so far, if there is one.
Report = Callable[[int, str, float | None], None]
#: The prompts with which an example is run; None: it is left out.
PromptsOf = Callable[[Example], PromptSet | None]

#: The smallest round, in examples: a smaller one would hardly be faster.
MIN_ROUND = 8


@dataclass(frozen=True)
class Bootstrap:
    """What bootstrapping came to."""

    pool: DemoPool
    examples: int
    """Examples that were run."""
    passed: int
    """Those that passed in the first pass, in at least one of their runs."""
    retried: int = 0
    retry_passed: int = 0
    """Examples that passed only with labelled demos in the prompt."""
    samples: int = 1
    """Runs per example."""

    @property
    def runs(self) -> int:
        """Runs of the program that it took."""
        return (self.examples + self.retried) * self.samples

    @property
    def facts(self) -> dict[str, int | str]:
        """The counts, for the stage's result."""
        return {
            "bootstrap_examples": self.examples,
            "bootstrap_passed": self.passed,
            "retried": self.retried,
            "retry_passed": self.retry_passed,
        }


async def bootstrap(task: SearchTask, settings: BootstrapRandomSearch, report: Report) -> Bootstrap:
    """Bootstrap for a search: the program itself from the starting prompts, or the teacher from its own."""
    evaluator, start = task.evaluator, task.start
    if settings.teacher is not None and settings.max_bootstrapped_demos > 0:
        program, evaluator = await task.teacher(settings.teacher)
        start = program.vanilla
    bootstrapper = Bootstrapper(evaluator, task.fields, settings, task.inputs, task.seed, task.step)
    found = await bootstrapper.run(start, task.train, report)
    if evaluator is not task.evaluator:
        evaluator.check_error_rate()  # of the teacher alone: it has no other runs
    return found


@dataclass(frozen=True)
class Bootstrapper:
    """Bootstraps one program; the settings are the step's."""

    evaluator: Evaluator
    fields: Mapping[str, PredictorFields]
    settings: BootstrapRandomSearch
    inputs: Sequence[str]
    """The fields of an example that the program is given."""
    seed: int
    step: int

    async def run(self, start: PromptSet, examples: Sequence[Example], report: Report) -> Bootstrap:
        """Run `start` on `examples`, in an order drawn by the seed, until enough have passed (`passingExamples`).

        Where fewer pass than a candidate has demos, those that failed are run once more with labelled demos. With
        `maxBootstrappedDemos: 0` nothing is run. An example never sees itself among the demos.
        """
        settings = self.settings
        order = list(examples)
        random.Random(seed_from(self.seed, self.step, "bootstrap", "order")).shuffle(order)
        if settings.max_bootstrapped_demos == 0:
            return Bootstrap(build_pool(self.fields, order, ()), examples=0, passed=0)
        wanted = wanted_examples(settings, len(order))
        first = _Pass(self, lambda example: without_own_demos(start, example, self.inputs))
        await first.run(order, wanted, lambda done: report(done, "bootstrapping", None))
        second = _Pass(self, self._retries(start, order))
        if len(first.passed) < min(settings.max_bootstrapped_demos, wanted):
            failed = [example for example in order if example.id not in first.passed]
            message = "bootstrapping with labelled demos"
            await second.run(failed, wanted - len(first.passed), lambda done: report(first.runs + done, message, None))
        return Bootstrap(
            pool=build_pool(self.fields, order, [*first.good, *second.good]),
            examples=first.examples,
            passed=len(first.passed),
            retried=second.examples,
            retry_passed=len(second.passed),
            samples=settings.samples_per_example,
        )

    def _retries(self, start: PromptSet, examples: Sequence[Example]) -> PromptsOf:
        labeled = build_pool(self.fields, examples, ())
        known: dict[str, PromptSet] = {}

        def prompts_of(example: Example) -> PromptSet | None:
            prompts = retry_prompts(start, labeled, self.settings, example, self.inputs, seed=self.seed, step=self.step)
            # One object for equal prompt sets: programs are prepared and keys are made per object.
            return None if prompts is None else known.setdefault(prompts.sha256, prompts)

        return prompts_of


def wanted_examples(settings: BootstrapRandomSearch, examples: int) -> int:
    """How many examples are to pass before bootstrapping ends; at most all.

    By default one for each demo of a candidate and one more for each candidate: then all of them can differ in more
    than the order of their demos.
    """
    if settings.exhaustive:
        return examples
    return min(examples, settings.passing_examples or settings.max_bootstrapped_demos + settings.candidates)


def round_size(wanted: int, passing: int, run: int) -> int:
    """Examples of the next round: as many as it should take at the rate so far, by Laplace's rule of succession."""
    return max(MIN_ROUND, math.ceil((wanted - passing) * (run + 2) / (passing + 1)))


class _Pass:
    """One pass over examples, in rounds."""

    def __init__(self, bootstrapper: Bootstrapper, prompts_of: PromptsOf) -> None:
        self._evaluator = bootstrapper.evaluator
        self._settings = bootstrapper.settings
        self._prompts_of = prompts_of
        self.good: list[ScoredExample] = []
        self.passed: set[str] = set()
        """The ids of the examples that passed."""
        self.examples = 0
        """Those that were run."""

    @property
    def runs(self) -> int:
        return self.examples * self._settings.samples_per_example

    async def run(self, examples: Sequence[Example], wanted: int, report: Callable[[int], None]) -> None:
        """Run examples, in their order, until so many have passed."""
        usable = [(prompts, example) for example in examples if (prompts := self._prompts_of(example)) is not None]
        samples = self._settings.samples_per_example
        sampling = None
        if samples > 1:
            sampling = self._evaluator.sampling.model_copy(update={"temperature": self._settings.temperature})
        while self.examples < len(usable) and len(self.passed) < wanted:
            size = round_size(wanted, len(self.passed), self.examples)
            chosen = usable[self.examples : self.examples + size]
            jobs = [Job(prompts, example, nth, sampling) for prompts, example in chosen for nth in range(samples)]
            records = await self._evaluator.run(jobs, keep_calls=True, progress=self._progress(report))
            self.good += [record for record in records if passed(record, self._settings.threshold)]
            self.passed = {record.example for record in self.good}
            self.examples += len(chosen)

    def _progress(self, report: Callable[[int], None]) -> ProgressCallback:
        before = self.runs
        return lambda done, _total, _mean: report(before + done)
