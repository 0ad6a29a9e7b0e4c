"""What a `p` step's optimizer was set to, in words for the page. Pure."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from tandem_api.v1alpha1.prompt_optimizers import (
    BootstrapRandomSearch,
    DemoSearch,
    DspyOptimizer,
    Gepa,
    Mipro,
    Proposer,
    Teacher,
)
from tandem_api.v1alpha1.spec import Spec

Row = tuple[str, str]
#: MIPRO's variants that leave the demos as they are.
INSTRUCTIONS_ONLY = ("zero-shot", "module-opro", "mipro++")


def prompt_settings(spec: Spec, index: int, *, predictors: int) -> tuple[Row, ...]:
    """The settings of step `index` that a reader should know, each with its name; `predictors`: of the program."""
    chosen = spec.prompts_of(index)
    start = spec.steps[index - 1].start_from or "original"
    rows: list[Row] = [("optimizer", chosen.type), ("starts from", f"the {start} prompts")]
    match chosen:
        case BootstrapRandomSearch():
            rows.append(("candidates", f"at most {chosen.candidates}"))
        case Mipro():
            rows += _mipro(chosen)
        case Gepa():
            calls = chosen.max_metric_calls
            rows.append(("budget", chosen.auto if calls is None else f"at most {calls:,} runs of the program"))
            rows.append(("reflects on", f"{chosen.reflection_minibatch_size} examples at a time"))
            merged = ", merged ones, too" if chosen.merge and predictors > 1 else ""
            rows.append(("next candidate", chosen.candidate_selection + merged))
        case DspyOptimizer():
            rows.append(("class", chosen.class_name))
            rows += [
                (name, _json(given))
                for name, given in (("arguments", chosen.args), ("arguments of compile", chosen.compile_args))
                if given
            ]
    if isinstance(chosen, DemoSearch):
        rows += _demos(chosen)
    else:
        rows.append(("writes", _model(chosen.proposer)))
    return tuple(rows)


def _mipro(chosen: Mipro) -> Iterator[Row]:
    counts = {"instructions": chosen.instructions, "demo sets": chosen.demo_sets, "trials": chosen.trials}
    given = [f"{count:,} {name}" for name, count in counts.items() if count is not None]
    yield "variant", chosen.variant
    yield "budget", ", ".join(given) if len(given) == len(counts) else ", ".join([chosen.auto, *given])
    yield "scores on", f"{chosen.search_on}, {chosen.minibatch_size} examples a trial"
    yield "in full", f"the best mean after every {chosen.full_evaluation_every} trials"
    if chosen.variant != "bayesian-bootstrap":
        yield "writes instructions", _model(chosen.proposer)


def _demos(chosen: DemoSearch) -> Iterator[Row]:
    if isinstance(chosen, Mipro) and chosen.variant in INSTRUCTIONS_ONLY:
        yield "demos", "those of the starting prompts"
        if chosen.grounding.demos and chosen.max_bootstrapped_demos:
            yield "shown to the proposer", "bootstrapped demos"
            yield from _bootstrapping(chosen)
    else:
        most = max(chosen.max_bootstrapped_demos, chosen.max_labeled_demos)
        yield "demos", f"at most {chosen.max_bootstrapped_demos} bootstrapped, {most} in all"
        yield from _bootstrapping(chosen)
    error_rate = f"at an error rate of {chosen.racing.error_rate}, first after {chosen.racing.first_round} examples"
    yield "drops candidates", "never (exhaustive)" if chosen.exhaustive else error_rate


def _bootstrapping(chosen: DemoSearch) -> Iterator[Row]:
    yield "threshold", chosen.threshold
    if chosen.samples_per_example > 1:
        yield "runs per example", f"{chosen.samples_per_example} at temperature {chosen.temperature}"
    if chosen.teacher is not None:
        yield "teacher", _teacher(chosen.teacher)


def _teacher(teacher: Teacher) -> str:
    program = f"{teacher.entrypoint} {_json(teacher.arguments) if teacher.arguments else ''}".strip()
    model = _model(teacher)
    return model if teacher.entrypoint is None else f"{program} on {model}"


def _model(settings: Proposer | Teacher) -> str:
    return "the served model" if settings.url is None else f"{settings.model} at {settings.url}"


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, default=str)
