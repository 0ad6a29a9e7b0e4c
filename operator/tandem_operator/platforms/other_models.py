"""The models that `p` steps ask beside the served one: where their APIs are, and whose keys they need. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tandem_api.contract import ENV_PROPOSER_KEY, ENV_TEACHER_KEY, StageRequest
from tandem_api.v1alpha1 import Spec
from tandem_api.v1alpha1.prompt_optimizers import PromptOptimizer, Proposer, Teacher

#: The variable that holds the key of the model that such a field names.
VARIABLES = {"proposer": ENV_PROPOSER_KEY, "teacher": ENV_TEACHER_KEY}


@dataclass(frozen=True)
class OtherModel:
    """A model behind an API of somebody else."""

    path: str
    """The field that names it, as in `spec.promptOptimizer.proposer`."""
    url: str
    key_secret: str | None
    """The Secret with its key; None: the API takes no key."""
    variable: str
    """The environment variable that the worker reads the key from."""


def other_models(spec: Spec) -> tuple[OtherModel, ...]:
    """Those of all steps."""
    return tuple(model for path, settings in prompt_optimizers(spec) for model in _of(settings, path))


def models_of(request: StageRequest) -> tuple[OtherModel, ...]:
    """Those that an attempt asks: a stage other than `optimize` asks none."""
    if request.stage != "optimize":
        return ()
    settings = request.prompt_optimizer or request.spec.prompts_of(request.index)
    return tuple(_of(settings, "spec.promptOptimizer"))


def prompt_optimizers(spec: Spec) -> tuple[tuple[str, PromptOptimizer], ...]:
    """The settings of all `p` steps, with the path of each; those that several steps share once."""
    found: dict[str, PromptOptimizer] = {}
    for index, step in enumerate(spec.steps):
        if step.kind == "p":
            path = (
                "spec.promptOptimizer" if step.prompt_optimizer is None else f"spec.strategy[{index}].promptOptimizer"
            )
            found[path] = spec.prompts_of(index + 1)
    return tuple(found.items())


def _of(settings: PromptOptimizer, path: str) -> Iterator[OtherModel]:
    for name, variable in VARIABLES.items():
        model: Proposer | Teacher | None = getattr(settings, name, None)
        if model is not None and model.url is not None:
            yield OtherModel(f"{path}.{name}", model.url, model.key_secret, variable)
