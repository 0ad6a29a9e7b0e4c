"""A `p` step by an optimizer of DSPy: its compile method runs in a thread, on LMs that remember what they have said.

DSPy's code decides what is asked; `lm/recorded.py` sees to it that a restart is told the same again. Scores that DSPy
has made are its own affair: the result's prompts are read back and compared with the starting ones by our evaluator.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import types
from collections.abc import Callable, Sequence
from typing import Any

import dspy
import numpy as np

from tandem_api.canonical import seed_from
from tandem_api.errors import ConfigurationError
from tandem_api.records import PredictorPrompt, PromptSet
from tandem_api.v1alpha1.prompt_optimizers import DspyOptimizer, Proposer
from tandem_trainer.evaluate.examples import Example
from tandem_trainer.evaluate.metrics import Judgement, MetricError
from tandem_trainer.lm.client import BudgetExhausted
from tandem_trainer.lm.recorded import RecordedLM, Recording
from tandem_trainer.lm.writer import Writing
from tandem_trainer.program.recording import as_json
from tandem_trainer.prompt.candidates import Candidate
from tandem_trainer.prompt.demos import Demo, PredictorFields
from tandem_trainer.prompt.dspy.optimizer import Given, build, compile_arguments
from tandem_trainer.prompt.finalists import compare
from tandem_trainer.prompt.optimizer import Found, SearchTask

#: DSPy gives up after so many examples that fail; ours counts them (evaluation.maxErrorRate) and goes on.
NEVER = 10**9
#: A foreign exception's text is cut to this many characters.
MAX_ERROR = 500


async def optimize(task: SearchTask, settings: DspyOptimizer) -> Found:
    """Compile the program with the optimizer that the settings name; the result wins if it beats the start.

    Raises ConfigurationError for settings that cannot work (as `check`), for an optimizer that fails, and for a result
    that is another program; ServingError and the like, also where DSPy swallowed them.
    """
    recording = Recording()
    lms = await _models(task, settings, recording)
    given = Given(
        metric=_metric(task, recording),
        student=lms[0],
        proposer=lms[1],
        is_foreign=settings.proposer.url is not None,
        threads=task.evaluator.concurrency,
        seed=seed_from(task.seed, task.step, "dspy"),
    )
    optimizer = build(settings, given)
    candidates = [Candidate("starting", task.start)]
    is_complete, message = True, None
    try:
        compiled = await recording.bridge.run_in_thread(lambda: _compile(task, settings, optimizer, given, recording))
        candidates.append(Candidate("compiled", read_prompts(task, compiled), {"class": settings.class_name}))
    except BudgetExhausted as error:
        is_complete, message = False, f"{error}; it ended while {settings.class_name} compiled"
    finals = await compare(task, candidates, may_run=is_complete)
    await task.table.show(finals.scored)
    if is_complete and not finals.is_complete:
        message = "the token budget ended the step while the compiled prompts were scored"
    facts: dict[str, int | str] = {"class": settings.class_name[:128], "candidates": len(candidates)}
    if finals.best is None:
        return Found(is_complete=finals.is_complete, message=message, facts=facts)
    facts |= {"winner": finals.winner or 0, "winner_kind": finals.best.candidate.kind}
    return Found(finals.best.candidate.prompts, finals.best.full, finals.is_complete, message, facts)


def read_prompts(task: SearchTask, compiled: Any) -> PromptSet:
    """The prompts of a compiled program. Raises ConfigurationError when it is no longer the program that was given."""
    if not isinstance(compiled, dspy.Module):
        raise ConfigurationError(f"promptOptimizer.class: it compiled to a {type(compiled).__name__}, not to a program")
    predictors = dict(compiled.named_predictors())
    found = {name: _fields(predictor.signature) for name, predictor in predictors.items()}
    changed = sorted(name for name in {*found, *task.fields} if found.get(name) != task.fields.get(name))
    if changed:
        raise ConfigurationError(
            f"promptOptimizer.class: the compiled program differs from yours in the predictors {', '.join(changed)} "
            f"(yours: {', '.join(sorted(task.fields))}); only instructions and demos can be kept"
        )
    return PromptSet(
        predictors={
            name: PredictorPrompt(
                instruction=predictors[name].signature.instructions,
                demos=tuple(
                    plain for demo in predictors[name].demos if (plain := _demo(demo, task.fields[name])) is not None
                ),
            )
            for name in task.fields
        }
    )


async def _models(task: SearchTask, settings: DspyOptimizer, recording: Recording) -> tuple[RecordedLM, RecordedLM]:
    """The program's model and the one that writes."""
    sampling, proposer = task.evaluator.sampling, settings.proposer
    student = RecordedLM(
        await task.writer(Proposer(), "dspy"),
        recording,
        model=task.client.endpoint.model,
        mode=task.program.mode,
        defaults=Writing(
            float(sampling.temperature), sampling.max_tokens, top_p=float(sampling.top_p), stop=tuple(sampling.stop)
        ),
    )
    writer = RecordedLM(
        await task.writer(proposer, "dspy"),
        recording,
        model=proposer.model or task.client.endpoint.model,
        mode=task.program.mode if proposer.url is None else "chat",
        defaults=Writing(float(proposer.temperature), proposer.max_tokens),
    )
    return student, writer


def _compile(task: SearchTask, settings: DspyOptimizer, optimizer: Any, given: Given, recording: Recording) -> Any:
    """What the optimizer makes of the program; in a worker thread."""
    arguments = compile_arguments(
        optimizer,
        settings,
        {
            "trainset": _examples(task.train, task.inputs),
            "valset": _examples(task.subset, task.inputs),
            "seed": given.seed,
        },
    )
    # Some optimizers draw from the global generators.
    random.seed(given.seed)
    np.random.seed(given.seed)
    context = {
        "lm": given.student,
        "adapter": task.program.adapter,
        "num_threads": given.threads,
        "max_errors": NEVER,
        "disable_history": True,
        "warn_on_type_mismatch": False,
    }
    try:
        with dspy.context(**context):
            compiled = optimizer.compile(_callable(task.program.with_prompts(task.start)), **arguments)
    except Exception as error:
        recording.check()
        raise ConfigurationError(
            f"promptOptimizer.class: {settings.class_name} failed: {type(error).__name__}: {error}"[:MAX_ERROR]
        ) from error
    recording.check()
    return compiled


def _metric(task: SearchTask, recording: Recording) -> Callable[..., Any]:
    """The run's metric as DSPy calls it: in its threads, and with five arguments where it wants feedback (GEPA)."""
    loop, counter = asyncio.get_running_loop(), itertools.count(1)

    def report(done: int) -> None:
        task.report(done, done + len(task.validation), "compiling", None)

    def metric(example: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> Any:
        recording.check()
        judged = Judgement(0.0)
        if isinstance(pred, dspy.Prediction):
            fields = dict(example.items())
            try:
                judged = task.metric.judge(Example(str(fields.get("id", "")), fields), pred)
            except MetricError as error:
                judged = Judgement(0.0, f"{task.metric.name}: {error}")
        loop.call_soon_threadsafe(report, next(counter))
        if pred_name is not None and judged.feedback:
            return dspy.Prediction(score=judged.score, feedback=judged.feedback)
        return judged.score

    return metric


def _examples(examples: Sequence[Example], inputs: Sequence[str]) -> list[Any]:
    return [dspy.Example(**example.fields).with_inputs(*inputs) for example in examples]


def _callable(module: Any) -> Any:
    """`module`, which DSPy's optimizers call synchronously: one that has only `aforward` gets a `forward`.

    A subclass, not an attribute: optimizers make copies, and each has to run itself.
    """
    kind = type(module)
    if getattr(kind, "forward", None) is None:

        def forward(self: Any, **inputs: Any) -> Any:
            return asyncio.run(self.aforward(**inputs))

        names = {"forward": forward, "__module__": kind.__module__, "__qualname__": kind.__qualname__}
        module.__class__ = types.new_class(kind.__name__, (kind,), exec_body=lambda namespace: namespace.update(names))
    return module


def _fields(signature: Any) -> PredictorFields:
    return PredictorFields(tuple(signature.input_fields), tuple(signature.output_fields))


def _demo(demo: Any, fields: PredictorFields) -> Demo | None:
    """A demo's fields of the signature, without what else DSPy or the data set put there; None if it shows nothing."""
    values = dict(demo)
    known = [name for name in fields.inputs + fields.outputs if values.get(name) is not None]
    shows = any(name in known for name in fields.inputs) and any(name in known for name in fields.outputs)
    return {name: as_json(values[name]) for name in known} if shows else None
