"""What all stages that call the model share: program, data, metric, client, ledger and evaluator, opened in one place.

    async def _work(context: StageContext) -> StageResult:
        async with open_session(context) as session:
            records = await session.evaluator.run(jobs, progress=session.reporter("candidate 1 of 12"))
        return StageResult(..., usage=session.usage)

    def run(context: StageContext) -> StageResult:
        return context.run(_work(context))

The ledger is flushed when the block ends, however it ends: also when the worker was asked to stop.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from pydantic import ValidationError

from tandem_api.canonical import digest, seed_from
from tandem_api.contract import ENV_PROPOSER_KEY, ENV_TEACHER_KEY, Endpoint, StageRequest, served_names
from tandem_api.errors import ConfigurationError, DataError, WrongAdapterError
from tandem_api.records import PromptSet, WrittenText
from tandem_api.v1alpha1.prompt_optimizers import Proposer, Teacher
from tandem_api.v1alpha1.status import Artifact, Usage
from tandem_trainer.adapters.canary import CanaryUnansweredError, fetch_canaries, find_fault
from tandem_trainer.adapters.predictors import names_by_predictor
from tandem_trainer.context import StageContext
from tandem_trainer.evaluate.evaluator import Evaluator, ProgressCallback
from tandem_trainer.evaluate.examples import Splits, load_splits
from tandem_trainer.evaluate.ledger import Ledger
from tandem_trainer.evaluate.metrics import Metric, load_metric
from tandem_trainer.journal import Journal
from tandem_trainer.lm.budget import TokenBudget
from tandem_trainer.lm.client import CallFailedError, LMClient
from tandem_trainer.lm.writer import Writer
from tandem_trainer.program.code import make_importable
from tandem_trainer.program.loading import LoadedProgram, load_program
from tandem_trainer.program.running import ProgramRunner
from tandem_trainer.program.teacher import load_teacher
from tandem_trainer.stages.code import locate_code

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Session:
    """All that an LM-calling stage works with."""

    context: StageContext
    program: LoadedProgram
    metric: Metric
    splits: Splits
    client: LMClient
    runner: ProgramRunner
    ledger: Ledger
    calls: Journal[WrittenText]
    """Calls of models outside of the program."""
    evaluator: Evaluator
    budget: TokenBudget
    _stack: AsyncExitStack
    """Closes what the stage opens later."""

    @property
    def request(self) -> StageRequest:
        return self.context.request

    @property
    def usage(self) -> Usage:
        """What the stage has spent, all its attempts together."""
        return self.ledger.usage.plus(self.calls.usage)

    async def writer(self, proposer: Proposer, *purpose: object) -> Writer:
        """The model that a proposer's settings name; `purpose` goes into its seed.

        Raises ConfigurationError when its key is missing.
        """
        seed = seed_from(self.request.spec.seed, self.request.index, self.request.stage, *purpose)
        if proposer.url is None or proposer.model is None:
            return Writer(self.client, self.calls, mode=self.program.mode, seed=seed)
        client = await self.foreign_client(proposer.url, proposer.model, proposer.key_secret, ENV_PROPOSER_KEY)
        return Writer(client, self.calls, mode="chat", seed=seed)

    async def teacher(self, settings: Teacher) -> tuple[LoadedProgram, Evaluator]:
        """The program that bootstraps in the program's place, and the evaluator that runs it.

        It is written and read in the program's own format, so that its traces are what the program would have said.
        Another model is therefore asked over the chat API, but for the plain format over the completions API: its
        server must have that one. The evaluator scores with the run's metric and keeps its runs in the stage's ledger
        under keys of their own; its error rate is the teacher's alone.

        Raises ConfigurationError when the teacher's program cannot be used or its model's key is missing.
        """
        request, program, client = self.request, self.program, self.client
        if settings.entrypoint is not None:
            code_path = locate_code(request.spec, self.context.store, self.context.cache)
            program = load_teacher(request.spec, settings, program, code_path=code_path)
        if settings.url is not None and settings.model is not None:
            client = await self.foreign_client(settings.url, settings.model, settings.key_secret, ENV_TEACHER_KEY)
        # The same model is the same adapters, too.
        names = self.runner.names if client is self.client else None
        seed = seed_from(request.spec.seed, request.index, request.stage, "teacher")
        concurrency = request.spec.evaluation.concurrency
        runner = await self._stack.enter_async_context(
            ProgramRunner(program, client, seed=seed, concurrency=concurrency, names=names)
        )
        evaluator = Evaluator(
            runner,
            self.metric,
            self.ledger,
            request=request.model_copy(update={"endpoint": client.endpoint}),
            # A teacher may be this very program on a model of this very name: its runs are others all the same.
            program_sha256=digest(["teacher", settings.url, program.sha256]),
        )
        self._stack.callback(evaluator.close)
        return program, evaluator

    async def foreign_client(self, url: str, model: str, key_secret: str | None, variable: str) -> LMClient:
        """A client of another model, on the stage's own budget; closed with the session.

        A key goes only to an API whose settings name a Secret for it. Raises ConfigurationError when the environment
        variable with that key is not set.
        """
        # A Secret made from a file ends in a newline, which no header may hold.
        key = os.environ.get(variable, "").strip() if key_secret is not None else None
        if key_secret is not None and not key:
            raise ConfigurationError(f"{variable} is not set; it holds the key (API_KEY of the Secret {key_secret})")
        evaluation = self.request.spec.evaluation
        return await self._stack.enter_async_context(
            LMClient(
                Endpoint(url=url.rstrip("/").removesuffix("/v1"), model=model),
                concurrency=evaluation.concurrency,
                request_timeout_seconds=evaluation.request_timeout_seconds,
                unavailable_timeout_seconds=evaluation.unavailable_timeout_seconds,
                budget=self.budget,
                api_key=key,
                is_ours=False,
            )
        )

    def prompt_set(self, artifact: Artifact | None) -> PromptSet:
        """The prompt set at `artifact`; None: the program's original prompts."""
        return self.program.vanilla if artifact is None else read_prompt_set(self.context, artifact)

    def reporter(self, message: str, *, done: int = 0, total: int | None = None) -> ProgressCallback:
        """A progress callback for `Evaluator.run`.

        `done` jobs came before this run; `total`: all jobs of the stage, where that is known and more than this run's.
        """

        def report(finished: int, jobs: int, score: float) -> None:
            self.context.progress.report(
                done + finished, max(total or 0, done + jobs), message=message, score=round(score, 4), usage=self.usage
            )

        return report


@asynccontextmanager
async def open_session(context: StageContext, *, with_test: bool = False) -> AsyncIterator[Session]:
    """Open what the stage needs, and close it when the block ends. The test set is read only `with_test`.

    Raises ConfigurationError or DataError for a program, metric or data that cannot be used, DataError for data that
    has changed since the run's `check`, AdapterMissingError, WrongAdapterError or ServingError when the wanted model is
    not served.
    """
    request = context.request
    assert request.endpoint is not None, f"stage {request.stage} calls the model, but its request has no endpoint"
    spec = request.spec
    _calm_collector()
    code_path = locate_code(spec, context.store, context.cache)
    if code_path is not None:
        make_importable(code_path)
    program = load_program(spec, code_path=code_path)
    metric = load_metric(spec, code_path=code_path)
    splits = load_splits(spec, context.store, with_test=with_test)
    verify_digests(request, splits)
    ledger = Ledger(context.store, request.stage_layout.ledger, batch=spec.evaluation.concurrency)
    ledger.load()
    calls = Journal(WrittenText, context.store, request.stage_layout.calls, batch=spec.evaluation.concurrency)
    calls.load()
    paid = ledger.usage.plus(calls.usage)
    context.meter.usage = paid
    # The engine leaves this stage's own spending in: what its earlier attempts paid is in the journals.
    budget = TokenBudget(None if request.tokens_left is None else request.tokens_left - paid.tokens)
    async with AsyncExitStack() as stack:
        stack.push_async_callback(_close, ledger, calls, context)
        client = await stack.enter_async_context(
            LMClient(
                request.endpoint,
                concurrency=spec.evaluation.concurrency,
                request_timeout_seconds=spec.evaluation.request_timeout_seconds,
                unavailable_timeout_seconds=spec.evaluation.unavailable_timeout_seconds,
                budget=budget,
            )
        )
        names = await asyncio.to_thread(names_by_predictor, context.store, request.endpoint)
        await client.check_model()
        await _check_adapter(client, context)
        seed = seed_from(spec.seed, request.index, request.stage)
        runner = await stack.enter_async_context(
            ProgramRunner(program, client, seed=seed, concurrency=spec.evaluation.concurrency, names=names)
        )
        evaluator = Evaluator(runner, metric, ledger, request=request, program_sha256=program.sha256)
        stack.callback(evaluator.close)
        yield Session(context, program, metric, splits, client, runner, ledger, calls, evaluator, budget, stack)


async def _check_adapter(client: LMClient, context: StageContext) -> None:
    """Raises WrongAdapterError when the server answers under an adapter's name with other weights."""
    endpoint = client.endpoint
    if endpoint.adapter is None:
        return
    canaries = await asyncio.to_thread(fetch_canaries, context.store, endpoint.adapter)
    for name, canary in zip(served_names(endpoint.model, endpoint.adapter), canaries, strict=True):
        try:
            fault = await find_fault(canary, name, client.named(name).ask)
        except (CanaryUnansweredError, CallFailedError) as error:
            logger.warning("%s is taken without its canary: %s", name, error)
            continue
        if fault is not None:
            raise WrongAdapterError(f"{fault}; the model server at {endpoint.url}")


def _calm_collector() -> None:
    """Look for cyclic garbage less often, and not among what is loaded by now.

    A search keeps every result, so that each collection walks over more and finds hardly anything: with Python's
    defaults that is a quarter of an evaluation's CPU time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


async def _close(ledger: Ledger, calls: Journal[WrittenText], context: StageContext) -> None:
    context.meter.usage = ledger.usage.plus(calls.usage)
    context.progress.flush()

    def close() -> None:
        try:
            ledger.close()
        finally:
            calls.close()

    # Shielded: a second cancellation must not leave paid results unwritten.
    await asyncio.shield(asyncio.to_thread(close))


def verify_digests(request: StageRequest, splits: Splits) -> None:
    """Raises DataError when a split's content is not what the run's `check` saw: its scores would not compare."""
    for name, sha256 in splits.digests.items():
        expected = request.data_digests.get(name)
        if expected is not None and expected != sha256:
            raise DataError(
                f"data.{name} has changed since the run began (sha256 {sha256[:12]}, then {expected[:12]}); "
                "restore the data, or start a new run"
            )


def read_prompt_set(context: StageContext, artifact: Artifact) -> PromptSet:
    """The prompt set at `artifact`. Raises DataError when it is missing, damaged or no prompt set."""
    try:
        return PromptSet.model_validate_json(context.store.fetch(artifact))
    except ValidationError as error:
        raise DataError(f"{artifact.uri} is not a prompt set: {error.error_count()} problems") from error
