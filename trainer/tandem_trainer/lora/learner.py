"""One training process's work: load the model, train its adapter, write it down. Alone, or one of several."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer

from tandem_api.errors import PreemptedError
from tandem_trainer.lora.adapter import continued_adapter, new_adapter, write_adapter
from tandem_trainer.lora.canary import CanaryKeeper, write_canary
from tandem_trainer.lora.checkpoint import Keeper
from tandem_trainer.lora.dataset import TrainingSet
from tandem_trainer.lora.model import load_base
from tandem_trainer.lora.train import Plan, Trained, train
from tandem_trainer.lora.trainer import Hooks


@dataclass(frozen=True)
class Lesson:
    """What is learnt, from what and with what; it can be sent to another process of the same machine."""

    model: Path
    """The base model's folder."""
    model_uri: str
    start: Path | None
    """The folder of the adapter to continue; None: a new one."""
    data: TrainingSet
    plan: Plan

    @property
    def adapter(self) -> Path:
        """Where the trained adapter is written to."""
        return self.plan.workspace / "adapter"


def learn(lesson: Lesson, keeper: Keeper, hooks: Hooks, *, writes: bool = True) -> Trained:
    """Train as the lesson says; the adapter is then in its folder, if this process `writes`.

    Raises PreemptedError when asked to stop, ConfigurationError for settings that this model or training cannot take,
    DataError for a damaged adapter to continue.
    """
    plan = lesson.plan
    base = load_base(lesson.model, plan.precision, packing=plan.settings.packing)
    if lesson.start is None:
        model = new_adapter(base, plan.settings, plan.seed)
    else:
        model = continued_adapter(base, lesson.start, plan.settings)
    if hooks.should_stop():
        raise PreemptedError("the worker was asked to stop (SIGTERM) before the first step; nothing is lost")
    if writes:
        keeper = CanaryKeeper(keeper, model, lesson.data.train, plan.settings.kept_epochs[:-1])
    trained = train(model, AutoTokenizer.from_pretrained(lesson.model), lesson.data, plan, keeper, hooks)
    if writes:
        write_adapter(model, lesson.adapter, lesson.model_uri)
        write_canary(model, lesson.data.train, lesson.adapter)
    return trained
