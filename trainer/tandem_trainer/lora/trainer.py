"""TRL's SFTTrainer without what it measures beside the loss, and the callback that keeps a training run safe."""

from __future__ import annotations

import inspect
import logging
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from accelerate.data_loader import SeedableRandomSampler  # type: ignore[import-untyped]
from transformers import TrainerCallback
from trl import SFTTrainer

from tandem_api.errors import ConfigurationError, PreemptedError, StorageUnavailableError
from tandem_trainer.lora.checkpoint import Keeper

logger = logging.getLogger(__name__)

#: More logits than this are left to TRL's head, which is slower on a CPU but works in tiles (1 GiB in fp32).
MAX_LOGITS: Final = 2**28


class CompletionTrainer(SFTTrainer):  # type: ignore[misc]  # TRL has no types
    """An SFTTrainer that projects only the completions' positions onto the vocabulary, for the loss alone.

    SFTTrainer 1.16 scores every position, prompt and padding included, and computes entropy and accuracy over the
    whole vocabulary on each step; there is no switch for it. On a CPU that cost 2.6 s of a 6.4 s step (SmolLM2-135M,
    8 rows of 70 tokens, fp32, one core). On a GPU its kernel skips the prompts and is kept. The loss is the same.
    """

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The negative log-likelihood per completion token, as SFTTrainer defines it."""
        labels = inputs["labels"]
        targets = torch.nn.functional.pad(labels[:, 1:], (0, 1), value=-100)
        is_wanted = targets != -100
        positions = is_wanted.any(dim=0).nonzero().flatten()
        vocabulary = self.model.config.get_text_config().vocab_size
        is_plain = labels.device.type == "cpu" and not return_outputs and not self.aux_loss_enabled
        if not is_plain or len(positions) * len(labels) * vocabulary > MAX_LOGITS or not self._selects_positions:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        given = {name: value for name, value in inputs.items() if name != "labels"}
        logits = model(**given, use_cache=False, logits_to_keep=positions).logits
        is_wanted = is_wanted[:, positions]
        loss = torch.nn.functional.cross_entropy(
            logits[is_wanted].float(), targets[:, positions][is_wanted], reduction="sum"
        )
        if num_items_in_batch is None:
            return loss / is_wanted.sum().clamp(min=1)
        # The number is that of all processes, and their gradients are averaged.
        return loss * self.accelerator.num_processes / torch.as_tensor(num_items_in_batch).clamp(min=1)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        """The rows' order; of several processes the same as of one alone, made even."""
        if self.accelerator.num_processes == 1:
            return super()._get_train_sampler(train_dataset)
        rows = len(self.train_dataset) - 1  # the last one is the empty one
        return EvenOrder(rows, self.args.train_batch_size * self.accelerator.num_processes, self.args.data_seed)

    @property
    def _selects_positions(self) -> bool:
        return "logits_to_keep" in inspect.signature(self.model.get_base_model().forward).parameters


class EvenOrder(torch.utils.data.Sampler[int]):
    """The order in which one process alone takes `rows` rows, and then row number `rows`, the empty one, until the
    number of all is a multiple of `part`: else the last processes would be given rows of the beginning once more."""

    def __init__(self, rows: int, part: int, seed: int) -> None:
        self._order = SeedableRandomSampler(range(rows), generator=torch.Generator(), data_seed=seed)
        self._empty = -rows % part

    def __len__(self) -> int:
        return len(self._order) + self._empty

    def __iter__(self) -> Iterator[int]:
        yield from self._order
        yield from [len(self._order)] * self._empty

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer at the beginning of each epoch."""
        self._order.set_epoch(epoch)


@dataclass(frozen=True)
class Hooks:
    """What a training run tells and asks of the stage around it."""

    should_stop: Callable[[], bool]
    report: Callable[[int, int, str, float | None], None]
    """done steps, all steps, message, loss."""


class Guard(TrainerCallback):  # type: ignore[misc]  # transformers has no types
    """Reports each step, keeps checkpoints, and ends the run when it is asked to stop or cannot go on.

    Raises PreemptedError out of the trainer once the checkpoint of a stop is in the store.
    """

    def __init__(self, hooks: Hooks, checkpoints: Keeper, *, steps_per_epoch: int, seconds_before: float) -> None:
        self._hooks = hooks
        self._checkpoints = checkpoints
        self._steps_per_epoch = steps_per_epoch
        self._seconds_before = seconds_before
        self._started = time.monotonic()
        self._loss: float | None = None

    @property
    def seconds(self) -> float:
        """Training time so far, all attempts together."""
        return self._seconds_before + time.monotonic() - self._started

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        self._started = time.monotonic()
        self._report(state)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_: Any) -> None:
        loss = (logs or {}).get("loss")
        if loss is None:
            return
        if not math.isfinite(loss):
            raise ConfigurationError(
                f"weightOptimizer: the training diverged, the loss of step {state.global_step} is {loss}; "
                f"lower learningRate ({args.learning_rate:g}), or set precision: fp32"
            )
        self._loss = loss
        self._report(state)

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        if self._hooks.should_stop() and state.global_step % self._steps_per_epoch:
            control.should_save = True  # the last step of an epoch is saved anyway, after the validation

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        epochs, rest = divmod(state.global_step, self._steps_per_epoch)
        is_stopping = self._hooks.should_stop() and state.global_step < state.max_steps
        try:
            self._checkpoints.save(
                Path(args.output_dir) / f"checkpoint-{state.global_step}",
                name=f"step-{state.global_step}" if rest else f"epoch-{epochs}",
                step=state.global_step,
                seconds=self.seconds,
            )
        except StorageUnavailableError as error:
            if is_stopping:
                raise
            # The next one may get through; to give up here would lose what the checkpoint is there to keep.
            logger.warning("the checkpoint of step %d is left out: %s", state.global_step, error)
        if is_stopping:
            raise PreemptedError(
                f"the worker was asked to stop (SIGTERM) after step {state.global_step} of {state.max_steps}; "
                "the checkpoint is kept and the training will be continued from it"
            )

    def _report(self, state: Any) -> None:
        epoch = min(state.global_step // self._steps_per_epoch + 1, state.num_train_epochs)
        self._hooks.report(state.global_step, state.max_steps, f"epoch {epoch} of {state.num_train_epochs}", self._loss)
