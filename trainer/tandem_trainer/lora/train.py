"""One LoRA training run, from token rows to an adapter in memory; interrupted anywhere it goes on where it was."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from datasets import Dataset
from transformers import PrinterCallback
from trl import SFTConfig
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from tandem_api.v1alpha1.weight_optimizers import WeightOptimizer
from tandem_trainer.lora.checkpoint import Keeper
from tandem_trainer.lora.dataset import Row, TrainingSet
from tandem_trainer.lora.model import Hardware, Precision, TokenRow, keeps_rows_apart
from tandem_trainer.lora.trainer import CompletionTrainer, Guard, Hooks

#: Steps are logged one by one up to this many, then every second, third, ... of them.
_MAX_LOGGED_STEPS: Final = 1000
#: Estimated activations beyond this are recomputed in the backward pass instead of kept: on a CPU, and as a part of a
#: GPU's memory.
_MAX_ACTIVATION_BYTES: Final = 2 * 2**30
_MAX_ACTIVATION_PART: Final = 0.25


@dataclass(frozen=True)
class Plan:
    """What a training run is to do, beside the model and the rows."""

    settings: WeightOptimizer
    seed: int
    hardware: Hardware
    precision: Precision
    workspace: Path
    """An empty folder for the trainer's own files."""
    processes: int = 1
    """So many train together; each has its share of every batch."""


@dataclass(frozen=True)
class Trained:
    """How a training went."""

    log: tuple[dict[str, float | int], ...]
    """Lines of train_log.jsonl, by step: loss and lr, or eval_loss."""
    steps: int
    seconds: float
    """Training time, all attempts together."""
    resumed_from: int
    """The step that this attempt began after; 0 if it began at the beginning."""
    packing: str | None
    """"on", or why not; None if it was not asked for."""

    @property
    def loss(self) -> float | None:
        """The mean training loss of the last epoch."""
        last = max((line["epoch"] for line in self.log if "loss" in line), default=0)
        losses = [line["loss"] for line in self.log if "loss" in line and line["epoch"] > last - 1]
        return sum(losses) / len(losses) if losses else None

    @property
    def eval_loss(self) -> float | None:
        """The last validation loss."""
        return next((line["eval_loss"] for line in reversed(self.log) if "eval_loss" in line), None)


def one_after_another(trainings: Sequence[Trained]) -> Trained:
    """Several trainings as one: the steps are counted on."""
    log: list[dict[str, float | int]] = []
    steps = 0
    for each in trainings:
        log += [{**line, "step": line["step"] + steps} for line in each.log]
        steps += each.steps
    return Trained(
        log=tuple(log),
        steps=steps,
        seconds=sum(each.seconds for each in trainings),
        resumed_from=sum(each.resumed_from for each in trainings),
        packing=trainings[0].packing,
    )


def train(model: Any, tokenizer: Any, data: TrainingSet, plan: Plan, checkpoints: Keeper, hooks: Hooks) -> Trained:
    """Train the LoRA layers of `model` on `data`, or go on from the latest checkpoint of this very training.

    Raises PreemptedError when asked to stop (the checkpoint is kept), ConfigurationError when the loss diverges.
    """
    # Equal trainings give equal adapters: on a GPU, attention's backward pass would else add up in any order.
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # set by a module class
    resumed = checkpoints.latest()
    steps_per_epoch = math.ceil(len(data.train) / plan.settings.batch_size)
    guard = Guard(
        hooks, checkpoints, steps_per_epoch=steps_per_epoch, seconds_before=resumed.seconds if resumed else 0.0
    )

    packing = _packing(model, data.train) if plan.settings.packing else None
    trainer = CompletionTrainer(
        model=model,
        args=_config(model, data, plan, steps_per_epoch, packing=packing == "on", is_fresh=resumed is None),
        train_dataset=_dataset(data.train, with_empty_row=plan.processes > 1),
        eval_dataset=_dataset(data.validation) if data.validation else None,
        processing_class=tokenizer,
        callbacks=[guard],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=str(resumed.folder) if resumed else None)
    return Trained(
        log=_log(trainer.state.log_history),
        steps=trainer.state.global_step,
        seconds=guard.seconds,
        resumed_from=resumed.step if resumed else 0,
        packing=packing,
    )


def _config(
    model: Any, data: TrainingSet, plan: Plan, steps_per_epoch: int, *, packing: bool, is_fresh: bool
) -> SFTConfig:
    settings = plan.settings
    assert settings.learning_rate is not None  # `WeightOptimizer.for_model` has chosen one
    share = settings.batch_size // plan.processes
    micro = settings.micro_batch_size or share
    steps = steps_per_epoch * settings.epochs
    # Rounded down: the first step of a warm-up has a learning rate of 0, and short trainings have no step to give.
    warmup = int(steps * float(settings.warmup_fraction))
    schedule = "constant_with_warmup" if settings.schedule == "constant" and warmup else settings.schedule
    return SFTConfig(
        output_dir=str(plan.workspace / "trainer"),
        num_train_epochs=settings.epochs,
        per_device_train_batch_size=micro,
        per_device_eval_batch_size=micro,
        gradient_accumulation_steps=share // micro,
        learning_rate=float(settings.learning_rate),
        lr_scheduler_type=schedule,
        warmup_steps=warmup,
        optim="adamw_torch",
        weight_decay=0.0,
        max_grad_norm=1.0,
        bf16=plan.precision == "bf16",
        use_cpu=plan.hardware.device == "cpu",
        gradient_checkpointing=_activation_bytes(model, data, plan, micro) > _activation_limit(plan.hardware),
        seed=plan.seed,
        data_seed=plan.seed,
        # The rows are tokenized and short enough; packing is TRL's padding-free batch: the rows of one forward pass
        # in one sequence. TRL's own packing would change how many rows make an optimizer step.
        max_length=None,
        padding_free=packing,
        completion_only_loss=True,
        eval_strategy="epoch" if data.validation else "no",
        eval_on_start=bool(data.validation) and is_fresh,
        prediction_loss_only=True,
        save_strategy="epoch",
        save_total_limit=1,
        logging_steps=math.ceil(steps / _MAX_LOGGED_STEPS),
        logging_nan_inf_filter=False,
        report_to="none",
        ddp_find_unused_parameters=False,
        disable_tqdm=True,
        dataloader_pin_memory=plan.hardware.device == "cuda",
    )


def _dataset(rows: Sequence[Row], *, with_empty_row: bool = False) -> Dataset:
    """`with_empty_row`: at the end one of which nothing is learnt, for `EvenOrder`."""
    empty = [{"input_ids": list(rows[0].input_ids[:1]), "labels": [-100]}] if with_empty_row else []
    return Dataset.from_list([*map(_token_row, rows), *empty])


def _token_row(row: Row) -> TokenRow:
    """Completion-only labels: -100 is left out of the loss."""
    learnt = row.input_ids[row.prompt_tokens :]
    return {"input_ids": list(row.input_ids), "labels": [-100] * row.prompt_tokens + list(learnt)}


def _packing(model: Any, rows: Sequence[Row]) -> str:
    """ "on" if the model keeps packed rows apart, or why rows are not packed."""
    if len(rows) < 2:
        return "off: there is one row"
    shortest = sorted(rows, key=lambda row: len(row.input_ids))[:2]
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    if keeps_rows_apart(model, collate, [_token_row(row) for row in shortest]):
        return "on"
    attention = model.get_base_model().config._attn_implementation
    return f"off: with {attention} attention this model's rows would see each other"


def _activation_bytes(model: Any, data: TrainingSet, plan: Plan, rows: int) -> float:
    """What one forward pass keeps for the backward pass: in 16 bits, 34 bytes per token, layer and hidden unit.

    Source: Korthikanti et al. (arXiv 2205.05198), section 4.1, without the attention scores (SDPA keeps none).
    """
    config = model.get_base_model().config.get_text_config()
    per_token = 34 * config.num_hidden_layers * config.hidden_size * (1 if plan.precision == "bf16" else 2)
    return float(per_token * data.longest * rows)


def _activation_limit(hardware: Hardware) -> float:
    if hardware.device == "cpu":
        return _MAX_ACTIVATION_BYTES
    return torch.cuda.get_device_properties(0).total_memory * _MAX_ACTIVATION_PART


def _log(history: Sequence[dict[str, Any]]) -> tuple[dict[str, float | int], ...]:
    """What is worth keeping of the trainer's log, and nothing that depends on the time of day."""
    names = {"step": "step", "epoch": "epoch", "loss": "loss", "learning_rate": "lr", "eval_loss": "eval_loss"}
    lines = [{new: entry[old] for old, new in names.items() if old in entry} for entry in history]
    return tuple(line for line in lines if "loss" in line or "eval_loss" in line)
