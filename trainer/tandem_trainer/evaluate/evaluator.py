"""Runs candidates on examples: many at once, results in the order of the jobs, every result in the ledger.

Stages call `Evaluator.run` with one list of jobs, as long as they can make it, so that the slots stay filled. What an
earlier attempt has in the ledger is not run again. A failed example scores 0 and is counted; a dead server or a spent
budget is raised, never scored.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

from tandem_api.canonical import canonical_json, sha256_hex
from tandem_api.contract import CandidateScore, StageRequest
from tandem_api.errors import ErrorRateError
from tandem_api.records import ExampleStatus, PromptSet, ScoredExample
from tandem_api.v1alpha1.spec import Sampling
from tandem_api.v1alpha1.status import Artifact
from tandem_trainer.evaluate.examples import Example
from tandem_trainer.evaluate.ledger import Ledger
from tandem_trainer.evaluate.metrics import Judgement, Metric, MetricError
from tandem_trainer.evaluate.statistics import mean_interval, wilson
from tandem_trainer.lm.client import BudgetExhausted
from tandem_trainer.program.recording import as_json, writable
from tandem_trainer.program.running import ProgramRun, ProgramRunner

#: Called after each finished job of a run: finished, all, and the mean score so far.
ProgressCallback = Callable[[int, int, float], None]

#: With fewer finished examples an error rate says too little to end a stage early.
MIN_FINISHED = 20
#: A stage ends early when even the lower end of the error rate's interval at this many standard deviations (about one
#: in 30,000) is above the limit: an early end is then practically never one that the full count would not confirm.
EARLY_Z = 4.0
#: Foreign text (an exception's message) is cut to this many characters in a record.
MAX_ERROR = 500
#: User metrics that run at the same time.
METRIC_THREADS = 8

_VARYING = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\d+")


@dataclass(frozen=True)
class Job:
    """One run of a candidate on an example."""

    prompts: PromptSet
    example: Example
    sample: int = 0
    """Ordinal among several runs of the same example."""
    sampling: Sampling | None = None
    """None: the model's own (`model.sampling`)."""


class Scorer(Protocol):
    """What a race needs of an evaluator."""

    async def run(self, jobs: Sequence[Job], *, progress: ProgressCallback | None = None) -> list[ScoredExample]:
        """The scored jobs, in the order of `jobs`."""

    def scored(self, jobs: Sequence[Job]) -> list[ScoredExample | None]:
        """What is known of `jobs`, in their order; runs nothing."""


class Evaluator:
    """Runs and scores jobs for one stage. The error rate is that of the whole stage: all runs of this object."""

    def __init__(
        self, runner: ProgramRunner, metric: Metric, ledger: Ledger, *, request: StageRequest, program_sha256: str
    ) -> None:
        """`request` needs an endpoint: results depend on the model and adapter that it names."""
        assert request.endpoint is not None
        spec, adapter = request.spec, request.endpoint.adapter
        self._runner = runner
        self._metric = metric
        self._ledger = ledger
        self.sampling = spec.model.sampling
        """The model's own: of jobs that do not say it."""
        self._inputs = spec.data.inputs
        self.concurrency = spec.evaluation.concurrency
        """Runs that are under way at once."""
        self._max_error_rate = float(spec.evaluation.max_error_rate)
        base = (program_sha256, metric.name, request.endpoint.model, adapter.sha256 if adapter else "", str(spec.seed))
        self._keys = _Keys(base)
        # A search looks after a few examples already: its error rate is judged at its end.
        self._in_rounds = request.stage not in ("traces", "evaluate")
        self._finished = 0
        self._causes: Counter[str] = Counter()
        self._shown: dict[str, str] = {}
        self._metric_threads = ThreadPoolExecutor(METRIC_THREADS, "metric") if metric.in_thread else None

    def close(self) -> None:
        """Let go of the threads of user metrics."""
        if self._metric_threads is not None:
            self._metric_threads.shutdown(wait=False, cancel_futures=True)

    async def run(
        self, jobs: Sequence[Job], *, keep_calls: bool = False, progress: ProgressCallback | None = None
    ) -> list[ScoredExample]:
        """The scored jobs, in the order of `jobs`; equal jobs are run once. `keep_calls` keeps each run's trace.

        Raises ErrorRateError past `evaluation.maxErrorRate` (in a search only when that is beyond doubt); ServingError
        when the server stays away; BudgetExhausted when no tokens are left, after the runs in flight have ended:
        `scored` then tells what is there.
        """
        keys = self._keys.of_all(jobs, keep_calls)
        found = {key: record for key in keys if (record := self._find(key)) is not None}
        todo = {key: job for key, job in zip(keys, jobs, strict=True) if key not in found}
        run = _Run(found, len(found) + len(todo), keep_calls, progress)
        for record in tuple(found.values()):
            self._count(run, record)
        run.report()
        await self._run_all(run, iter(todo.items()))
        if not self._in_rounds:
            self.check_error_rate()
        return [found[key] for key in keys]

    def scored(self, jobs: Sequence[Job], *, keep_calls: bool = False) -> list[ScoredExample | None]:
        """What the ledger holds of `jobs`, in their order; runs nothing."""
        return [self._find(key) for key in self._keys.of_all(jobs, keep_calls)]

    def _find(self, key: str) -> ScoredExample | None:
        """The record of a job; a record with its trace serves one without, but not the other way round."""
        return self._ledger.get(key) or self._ledger.get(key + _WITH_CALLS)

    async def _run_all(self, run: _Run, todo: Iterator[tuple[str, Job]]) -> None:
        """Run `todo` in at most `concurrency` workers. The first failure ends all of them and is raised."""
        exhausted: list[BudgetExhausted] = []
        # Starts take turns, so that each call is on the wire before the next is prepared. Otherwise answers that come
        # together are all handled before any next call goes out, go out together, and come together again: measured at
        # 512 slots and 0.3 s a call, that leaves slots idle for 40% of the time.
        turn, release_soon = asyncio.Lock(), asyncio.get_running_loop().call_soon

        async def work() -> None:
            while True:
                await self._ledger.room()
                await turn.acquire()
                release_soon(turn.release)
                # Taken only now: a job in the hands of one that waits would be overtaken by those after it.
                if exhausted or (item := next(todo, None)) is None:
                    return
                try:
                    await self._run_one(run, *item)
                except BudgetExhausted as error:
                    exhausted.append(error)
                    return

        workers = [asyncio.ensure_future(work()) for _ in range(min(self.concurrency, run.total - run.finished))]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        if exhausted:
            raise exhausted[0]

    async def _run_one(self, run: _Run, key: str, job: Job) -> None:
        outcome = await self._runner.run(
            job.prompts,
            job.example.id,
            job.example.inputs(self._inputs),
            sample=job.sample,
            sampling=job.sampling or self.sampling,
        )
        status, judgement, error = await self._judge(job.example, outcome)
        record = ScoredExample(
            key=key,
            candidate=self._keys.candidate(job.prompts),
            example=job.example.id,
            example_sha256=job.example.digest,
            sample=job.sample,
            status=status,
            score=judgement.score,
            error=writable(error[:MAX_ERROR]) if error else None,
            feedback=writable(judgement.feedback) if judgement.feedback else None,
            prediction=as_json(dict(outcome.prediction.items())) if outcome.prediction is not None else None,
            seconds=round(outcome.seconds, 4),
            usage=outcome.usage,
            own_usage=outcome.own_usage,
            calls=outcome.calls if run.keep_calls else (),
        )
        self._ledger.add(record)
        run.found[key] = record
        self._count(run, record)
        if record.status != "ok":
            self._check_early(run.total - run.finished)
        run.report()

    async def _judge(self, example: Example, outcome: ProgramRun) -> tuple[ExampleStatus, Judgement, str | None]:
        if outcome.status != "ok" or outcome.prediction is None:
            return outcome.status, Judgement(0.0), outcome.error
        try:
            if self._metric_threads is None:
                return "ok", self._metric.judge(example, outcome.prediction), None
            loop = asyncio.get_running_loop()
            judged = await loop.run_in_executor(self._metric_threads, self._metric.judge, example, outcome.prediction)
            return "ok", judged, None
        except MetricError as error:
            return "metric_failed", Judgement(0.0), f"{self._metric.name}: {error}"

    def _count(self, run: _Run, record: ScoredExample) -> None:
        self._finished += 1
        run.finished += 1
        run.score_sum += record.score
        if record.status != "ok":
            text = record.error or record.status
            cause = f"{record.status}: {_VARYING.sub('_', text)[:160]}"
            self._causes[cause] += 1
            self._shown.setdefault(cause, f"{record.status}: {text[:160]} (example {record.example})")

    def check_error_rate(self) -> None:
        """Raises ErrorRateError when too many of all runs so far failed. A search asks at its end."""
        errors = self._causes.total()
        if errors <= self._max_error_rate * self._finished:
            return
        causes = "; ".join(f"{count} times {self._shown[cause]}" for cause, count in self._causes.most_common(3))
        raise ErrorRateError(
            f"{errors} of {self._finished} examples failed, more than evaluation.maxErrorRate "
            f"{self._max_error_rate:g} allows. Most often: {causes}"
        )

    def _check_early(self, left: int) -> None:
        """The same with `left` jobs of this run to come, when it is beyond doubt."""
        errors = self._causes.total()
        low, _ = wilson(errors / self._finished, self._finished, EARLY_Z)
        certain = not self._in_rounds and errors > self._max_error_rate * (self._finished + left)
        if certain or (self._finished >= MIN_FINISHED and low > self._max_error_rate):
            self.check_error_rate()


@dataclass
class _Run:
    """The state of one `Evaluator.run`."""

    found: dict[str, ScoredExample]
    total: int
    keep_calls: bool
    progress: ProgressCallback | None
    finished: int = 0
    score_sum: float = 0.0

    def report(self) -> None:
        if self.progress is not None:
            self.progress(self.finished, self.total, self.score_sum / self.finished if self.finished else 0.0)


_WITH_CALLS = "+calls"


class _Keys:
    """Ledger keys: digests of all that a result depends on. Parts shared by many jobs are computed once."""

    def __init__(self, base: tuple[str, ...]) -> None:
        self._base = "\x1f".join(base)
        # By identity, and holding on to the object: hashing a prompt set costs more than a whole job may.
        self._candidates: dict[int, tuple[PromptSet, str]] = {}
        self._samplings: dict[int, tuple[Sampling | None, str]] = {}

    def of_all(self, jobs: Sequence[Job], keep_calls: bool) -> list[str]:
        suffix = _WITH_CALLS if keep_calls else ""
        return [self._of(job) + suffix for job in jobs]

    def candidate(self, prompts: PromptSet) -> str:
        """The prompt set's sha256."""
        known = self._candidates.get(id(prompts))
        if known is None:
            known = self._candidates[id(prompts)] = (prompts, prompts.sha256)
        return known[1]

    def _of(self, job: Job) -> str:
        sampling = self._sampling(job.sampling)
        parts = (self._base, self.candidate(job.prompts), job.example.digest, str(job.sample), sampling)
        return sha256_hex("\x1f".join(parts).encode())

    def _sampling(self, sampling: Sampling | None) -> str:
        known = self._samplings.get(id(sampling))
        if known is None:
            text = canonical_json(sampling.model_dump(mode="json")) if sampling else ""
            known = self._samplings[id(sampling)] = (sampling, text)
        return known[1]


def summarize(records: Sequence[ScoredExample], prompts: Artifact | None = None) -> CandidateScore:
    """The candidate's mean score with its 95% interval. `prompts`: where its prompt set lies (None: the original)."""
    interval = mean_interval([record.score for record in records])
    return CandidateScore(
        prompts=prompts,
        score=round(interval.mean, 6),
        low=round(interval.low, 6),
        high=round(interval.high, 6),
        n=interval.n,
        errors=sum(record.status != "ok" for record in records),
    )
