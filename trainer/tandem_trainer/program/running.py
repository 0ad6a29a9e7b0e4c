"""One run of the program: a prompt set, an example's inputs, and what came of it."""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import time
import traceback
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from typing import Any, Self

import dspy
from dspy.utils.exceptions import AdapterParseError

from tandem_api.canonical import seed_from
from tandem_api.records import ExampleStatus, PredictorCall, PromptSet
from tandem_api.v1alpha1.spec import Sampling
from tandem_api.v1alpha1.status import Usage
from tandem_trainer.lm.client import CallFailedError, LMClient
from tandem_trainer.lm.served import SCOPE, RunScope, ServedLM
from tandem_trainer.program.loading import LoadedProgram

#: Prompt sets whose modules are kept ready; a search has a dozen or so under way.
MAX_PREPARED = 64
#: An example's error text is cut to this many characters.
MAX_ERROR = 600


@dataclass(frozen=True)
class ProgramRun:
    """What one run came to."""

    prediction: Any
    """The `dspy.Prediction`; None when the run failed."""
    calls: tuple[PredictorCall, ...]
    """The program's predictor calls in the order of their starts."""
    status: ExampleStatus
    error: str | None
    usage: Usage
    seconds: float
    own_usage: Usage = field(default_factory=Usage)
    """Of predictors with a model of their own."""


@dataclass(frozen=True)
class _Prepared:
    """A module with its prompts set, ready to be run any number of times at once."""

    prompts: PromptSet
    sha256: str
    module: Any
    is_async: bool


class ProgramRunner:
    """Runs a program on the served model. An async context manager, used on one event loop.

    Modules with `aforward` run on the loop; others run in a pool of `concurrency` threads.
    """

    def __init__(
        self,
        program: LoadedProgram,
        client: LMClient,
        *,
        seed: int,
        concurrency: int,
        names: Mapping[str, str] | None = None,
    ) -> None:
        """`names`: the served name for each predictor that has an adapter of its own."""
        self.program = program
        self.client = client
        self.names = names
        self._seed = seed
        self._prepared: OrderedDict[int, _Prepared] = OrderedDict()
        self._threads = ThreadPoolExecutor(max_workers=concurrency, thread_name_prefix="program")
        self._lm: ServedLM

    async def __aenter__(self) -> Self:
        self._lm = ServedLM(self.client, mode=self.program.mode, names=self.names)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._lm.close()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def run(
        self, prompts: PromptSet, example_id: str, inputs: dict[str, Any], *, sample: int, sampling: Sampling
    ) -> ProgramRun:
        """One run. What the program or the model does wrong is in the result's status.

        Raises ServingError and BudgetExhausted, also when the program swallowed them.
        """
        prepared = self._prepare(prompts)
        scope = RunScope(seed_from(self._seed, prepared.sha256, example_id, sample), sampling)
        began = time.perf_counter()
        prediction, status, error = await self._attempt(prepared, scope, inputs)
        if scope.failure is not None:
            raise scope.failure
        return ProgramRun(
            prediction=prediction,
            calls=tuple(call for call in scope.calls if call is not None),
            status=status,
            error=error,
            usage=Usage(
                calls=scope.lm_calls, prompt_tokens=scope.prompt_tokens, completion_tokens=scope.completion_tokens
            ),
            seconds=time.perf_counter() - began,
            own_usage=reduce(Usage.plus, scope.own_usages, Usage()),
        )

    async def _attempt(
        self, prepared: _Prepared, scope: RunScope, inputs: dict[str, Any]
    ) -> tuple[Any, ExampleStatus, str | None]:
        settings = {
            SCOPE: scope,
            "lm": self._lm,  # of predictors that the program makes while it runs, and of frozen ones
            "adapter": self.program.adapter,
            "trace": [],
            "disable_history": True,
            "warn_on_type_mismatch": False,
        }
        try:
            with dspy.context(**settings):
                if prepared.is_async:
                    prediction = await prepared.module.acall(**inputs)
                else:
                    run = contextvars.copy_context().run
                    loop = asyncio.get_running_loop()
                    prediction = await loop.run_in_executor(self._threads, lambda: run(prepared.module, **inputs))
        except AdapterParseError as error:
            return None, "unparsable", _describe_unparsable(error)
        except CallFailedError as error:
            return None, "call_failed", str(error)[:MAX_ERROR]
        except (Exception, SystemExit) as error:
            return None, "program_failed", _describe(error)
        if not isinstance(prediction, dspy.Prediction):
            found = type(prediction).__name__
            return None, "program_failed", f"the program returned a {found!r}; it must return a dspy.Prediction"
        return prediction, "ok", None

    def _prepare(self, prompts: PromptSet) -> _Prepared:
        # By identity: the digest of a prompt set with long demos costs more than a call. The entry holds the prompt
        # set, so that its identity is not given to another one.
        prepared = self._prepared.get(id(prompts))
        if prepared is not None:
            self._prepared.move_to_end(id(prompts))
            return prepared
        module = self.program.with_prompts(prompts)
        for _, predictor in module.named_predictors():
            if predictor.lm is None:
                predictor.lm = self._lm
        prepared = _Prepared(
            prompts, prompts.sha256, module, inspect.iscoroutinefunction(getattr(module, "aforward", None))
        )
        self._prepared[id(prompts)] = prepared
        if len(self._prepared) > MAX_PREPARED:
            self._prepared.popitem(last=False)
        return prepared


def _describe_unparsable(error: AdapterParseError) -> str:
    reason = str(error).split("\n\n", 1)[0].strip()
    return f"{reason} (completion: {error.lm_response[:200]!r})"[:MAX_ERROR]


def _describe(error: BaseException) -> str:
    """The error and the line of the user's code that it came from."""
    text = f"{type(error).__name__}: {error}"[:MAX_ERROR]
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_library(frame.filename)]
    return f"{text} ({Path(frames[-1].filename).name}:{frames[-1].lineno})" if frames else text


def _is_library(filename: str) -> bool:
    folders = (Path(dspy.__file__).parent, Path(__file__).parent.parent, Path(asyncio.__file__).parent.parent)
    return filename.startswith("<") or any(Path(filename).is_relative_to(folder) for folder in folders)
