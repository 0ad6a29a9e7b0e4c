"""`check`: everything that can be found wrong before a model is served, all of it at once.

The program is built, the data sets are read and compared, the metric is tried on one training example with its own
gold answers as the prediction, and each step's optimizer says what it lacks here. The digests of the data go into the
result, so that later stages refuse others.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import dspy

from tandem_api.adapters import MAX_ADAPTERS
from tandem_api.canonical import canonical_json
from tandem_api.contract import StageResult
from tandem_api.errors import ConfigurationError, DataError
from tandem_api.v1alpha1 import Spec
from tandem_api.v1alpha1.prompt_optimizers import DemoSearch, PromptOptimizer
from tandem_trainer.context import StageContext
from tandem_trainer.evaluate.examples import Example, Splits, load_splits
from tandem_trainer.evaluate.metrics import Metric, MetricError, load_metric
from tandem_trainer.program.code import make_importable
from tandem_trainer.program.loading import LoadedProgram, load_program
from tandem_trainer.program.teacher import load_teacher
from tandem_trainer.stages.code import locate_code
from tandem_trainer.stages.optimize import check_settings

#: The result is small: so many warnings are told in full, each cut to so many characters.
MAX_WARNINGS = 6
MAX_WARNING = 200


def run(context: StageContext) -> StageResult:
    """Check the run's program, metric, optimizers and data.

    Raises ConfigurationError with every problem, one a line; DataError if only the data are at fault.
    """
    spec = context.request.spec
    problems: list[ConfigurationError | DataError] = []
    program = metric = splits = None
    try:
        code_path = locate_code(spec, context.store, context.cache)
    except (ConfigurationError, DataError) as error:
        problems.append(error)
    else:
        if code_path is not None:
            make_importable(code_path)
        try:
            program = load_program(spec, code_path=code_path)
        except ConfigurationError as error:
            problems.append(error)
        try:
            metric = load_metric(spec, code_path=code_path)
        except ConfigurationError as error:
            problems.append(error)
        problems += _optimizer_problems(spec, program, code_path)
    context.raise_if_stopping()
    try:
        splits = load_splits(spec, context.store)
    except (ConfigurationError, DataError) as error:
        problems.append(error)
    context.raise_if_stopping()
    warnings: list[str] = []
    if splits is not None:
        problems += _label_problems(spec, splits)
    if program is not None and splits is not None and metric is not None and not problems:
        try:
            warnings += try_metric(metric, splits.train[0], program)
        except ConfigurationError as error:
            problems.append(error)
    if problems or program is None or splits is None:
        kind = DataError if all(isinstance(problem, DataError) for problem in problems) else ConfigurationError
        raise kind("\n".join(str(problem) for problem in problems))
    warnings += splits.warnings
    accepted = canonical_json(spec.to_json()).encode()
    context.store.put(context.request.layout.run_json, accepted)
    context.progress.report(1, 1, message="program, metric and data are in order")
    return StageResult(facts=_facts(program, splits, warnings))


def try_metric(metric: Metric, example: Example, program: LoadedProgram) -> list[str]:
    """Score `example` with its own fields as the prediction. Returns warnings.

    Fields that the program puts out but the data lack (the reasoning of a chain of thought) are empty texts there.
    Raises ConfigurationError when the metric raises or gives no number in [0, 1].
    """
    made = {name: "" for predictor in program.predictors for name in program.signature(predictor).output_fields}
    try:
        score = metric(example, dspy.Prediction(**{**made, **example.fields}))
    except MetricError as failure:
        raise ConfigurationError(
            f"metric {metric.name}: tried on the training example {example.id!r} with its own answer as the "
            f"prediction: {failure}; a metric returns a number from 0 to 1 for every example"
        ) from failure
    if score < 1:
        return [f"metric {metric.name} gives the training example {example.id!r} {score:g} for its own answer, not 1"]
    return []


def _optimizer_problems(spec: Spec, program: LoadedProgram | None, code_path: Path | None) -> list[ConfigurationError]:
    """What keeps an optimizer from working, as far as that can be seen without a model."""
    problems = []
    known: list[PromptOptimizer] = []
    if program is not None and spec.has_own_adapters and len(program.predictors) > MAX_ADAPTERS:
        problems.append(
            ConfigurationError(
                f"weightOptimizer.adapters: per-predictor serves at most {MAX_ADAPTERS} adapters, but the program "
                f"has {len(program.predictors)} predictors; set adapters: shared"
            )
        )
    for index, step in enumerate(spec.steps, start=1):
        settings = spec.prompts_of(index)
        if step.kind != "p" or settings in known:
            continue
        known.append(settings)
        try:
            check_settings(settings)
            teacher = settings.teacher if isinstance(settings, DemoSearch) else None
            if program is not None and teacher is not None and teacher.entrypoint is not None:
                load_teacher(spec, teacher, program, code_path=code_path)
        except ConfigurationError as error:
            where = f"strategy step {index}: " if step.prompt_optimizer is not None else ""
            problems.append(ConfigurationError(f"{where}{error}"))
    return problems


def _label_problems(spec: Spec, splits: Splits) -> list[ConfigurationError | DataError]:
    """What a builtin metric needs: its field in every example."""
    field = spec.metric.field
    problems: list[ConfigurationError | DataError] = []
    for name, examples in _by_name(splits).items():
        lacking = [example for example in examples if field is not None and example.fields.get(field) is None]
        if lacking:
            there = ", ".join(sorted(lacking[0].fields))
            problems.append(
                DataError(
                    f"data.{name}: {len(lacking)} of {len(examples)} examples lack the field {field!r} (metric.field), "
                    f"which the metric compares (first: {lacking[0].id!r}, with the fields {there})"
                )
            )
    return problems


def _by_name(splits: Splits) -> Mapping[str, tuple[Example, ...]]:
    return {"train": splits.train, "validation": splits.validation, "test": splits.test}


def _facts(program: LoadedProgram, splits: Splits, warnings: list[str]) -> dict[str, int | str]:
    facts: dict[str, int | str] = {name: len(examples) for name, examples in _by_name(splits).items()}
    facts["predictors"] = len(program.predictors)
    facts["warnings"] = len(warnings)
    facts |= {f"digest.{name}": sha256 for name, sha256 in splits.digests.items()}
    facts |= {f"warning.{n}": text[:MAX_WARNING] for n, text in enumerate(warnings[:MAX_WARNINGS], start=1)}
    return facts
