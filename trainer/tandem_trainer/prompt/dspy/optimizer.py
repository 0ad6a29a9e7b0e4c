"""From the settings to an optimizer of DSPy, ready to compile; whatever is wrong with them is found before any call."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dspy
import dspy.teleprompt
from dspy.teleprompt import BetterTogether
from dspy.teleprompt.bootstrap_finetune import FinetuneTeleprompter

from tandem_api.errors import ConfigurationError
from tandem_api.v1alpha1.prompt_optimizers import DspyOptimizer
from tandem_trainer.program.code import import_entrypoint

#: What Tandem gives a compile method.
COMPILE_GIVEN = ("student", "trainset", "valset", "teacher")


@dataclass(frozen=True)
class Given:
    """What Tandem gives an optimizer where it takes it."""

    metric: Callable[..., Any]
    student: Any
    """The LM of the program."""
    proposer: Any
    """The LM that writes instructions."""
    is_foreign: bool
    """The proposer is another model than the student; then it bootstraps, too."""
    threads: int
    seed: int

    @property
    def fixed(self) -> dict[str, Any]:
        """Arguments of the constructor that users cannot give."""
        return {
            "metric": self.metric,
            "prompt_model": self.proposer,
            "reflection_lm": self.proposer,
            "task_model": self.student,
            "teacher_settings": {"lm": self.proposer} if self.is_foreign else {},
        }

    @property
    def defaults(self) -> dict[str, Any]:
        """Arguments of the constructor that users may give, too."""
        return {"num_threads": self.threads, "seed": self.seed}


def check(settings: DspyOptimizer, *, code_path: Path | None = None) -> None:
    """Raises ConfigurationError for a class or arguments that cannot be used; calls no model.

    `code_path`: the folder of the user's code, put first on the import path.
    """
    stand_in = dspy.BaseLM("none")

    def metric(example: Any, pred: Any, trace: Any = None, pred_name: Any = None, pred_trace: Any = None) -> float:
        return 0.0

    build(settings, Given(metric, stand_in, stand_in, is_foreign=False, threads=1, seed=0), code_path=code_path)


def build(settings: DspyOptimizer, given: Given, *, code_path: Path | None = None) -> Any:
    """The optimizer that the settings name. Raises ConfigurationError as `check`."""
    kind = _find(settings.class_name, code_path)
    _check_names(settings.compile_args or {}, kind.compile, COMPILE_GIVEN, "compileArgs")
    args = settings.args or {}
    _check_names(args, kind, tuple(given.fixed), "args")
    # A class that hands its other arguments on (InferRules) wants the metric among them.
    takes = _parameters(kind)
    fixed = {name: value for name, value in given.fixed.items() if name in takes or (name == "metric" and _rest(takes))}
    defaults = {name: value for name, value in given.defaults.items() if name in takes}
    try:
        return kind(**{**defaults, **args, **fixed})
    except Exception as error:
        raise ConfigurationError(
            f"promptOptimizer.args: {settings.class_name} refuses {args}: {type(error).__name__}: {error}"
        ) from error


def compile_arguments(optimizer: Any, settings: DspyOptimizer, given: Mapping[str, Any]) -> dict[str, Any]:
    """Those of `given` that the optimizer's compile method takes, and the user's own."""
    takes = _parameters(optimizer.compile)
    return {**{name: value for name, value in given.items() if name in takes}, **(settings.compile_args or {})}


def _find(name: str, code_path: Path | None) -> Any:
    field = "promptOptimizer.class"
    if ":" in name:
        kind = import_entrypoint(name, field=field, code_path=code_path)
    else:
        kind = getattr(dspy.teleprompt, name, None) or getattr(dspy, name, None)
    if not inspect.isclass(kind) or not callable(getattr(kind, "compile", None)):
        raise ConfigurationError(
            f"{field}: found {name!r}, which is no optimizer of DSPy {dspy.__version__}; allowed: "
            f"{', '.join(_allowed())}, or a class of your own as package.module:Class"
        )
    if issubclass(kind, (FinetuneTeleprompter, BetterTogether)):
        raise ConfigurationError(
            f"{field}: {name} tunes weights, which a p step does not; write a w step in the strategy instead: p -> w"
        )
    if not _makes_prompts(kind):
        raise ConfigurationError(
            f"{field}: {name}.compile takes no student and trainset, so it makes no prompts; allowed: "
            f"{', '.join(_allowed())}, or a class of your own as package.module:Class"
        )
    return kind


def _allowed() -> list[str]:
    kinds = {name: getattr(dspy.teleprompt, name) for name in dspy.teleprompt.__all__}
    return sorted(
        name
        for name, kind in kinds.items()
        if inspect.isclass(kind)
        and not issubclass(kind, (FinetuneTeleprompter, BetterTogether))
        and _makes_prompts(kind)
    )


def _makes_prompts(kind: Any) -> bool:
    return {"student", "trainset"} <= _parameters(kind.compile).keys()


def _check_names(args: Mapping[str, Any], function: Any, given: tuple[str, ...], field: str) -> None:
    takes = _parameters(function)
    ours = sorted(name for name in args if name in given)
    if ours:
        hint = "metric of the spec" if ours[0] == "metric" else "promptOptimizer.proposer"
        why = "Tandem gives the program and the examples" if field == "compileArgs" else f"that is the {hint}"
        raise ConfigurationError(f"promptOptimizer.{field}: found {ours[0]!r}; leave it out, {why}")
    unknown = sorted(name for name in args if name not in takes)
    if unknown and not _rest(takes):
        allowed = ", ".join(name for name in takes if name not in given) or "none"
        raise ConfigurationError(f"promptOptimizer.{field}: found {unknown[0]!r}; allowed: {allowed}")


def _parameters(function: Any) -> dict[str, inspect.Parameter]:
    parameters = inspect.signature(function).parameters
    return {name: parameter for name, parameter in parameters.items() if name != "self"}


def _rest(parameters: Mapping[str, inspect.Parameter]) -> bool:
    """Whether there is a **kwargs among them."""
    return any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in parameters.values())
