"""The training stage on a tiny model: what is learnt, what is kept, and what an interruption changes (nothing)."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load
from tests.memory_store import MemoryStore
from tests.unit.trainer.lora.tiny import trace

from tandem_api.contract import StageRequest, StageResult, StorageRef
from tandem_api.errors import ConfigurationError, DataError, PreemptedError, StorageUnavailableError
from tandem_api.records import TraceRow
from tandem_api.v1alpha1 import Spec
from tandem_api.v1alpha1.status import Artifact
from tandem_trainer.context import StageContext
from tandem_trainer.progress import ProgressReporter
from tandem_trainer.stages import train as stage
from tandem_trainer.traces.io import write_traces

#: 20 traces, 2 of them held out: 18 rows, 5 steps an epoch, 10 in all; dropout so that the random states matter.
OPTIMIZER: dict[str, Any] = {
    "rank": 4,
    "alpha": 8,
    "dropout": "0.1",
    "epochs": 2,
    "batchSize": 4,
    "microBatchSize": 2,
    "learningRate": "1e-2",
    "warmupFraction": "0.2",
    "precision": "fp32",
}


@dataclass
class World:
    """A store, a cache and a request; each `run` is an attempt in a process of its own as far as the stage sees."""

    model_dir: Path
    tmp_path: Path
    optimizer: dict[str, Any] = field(default_factory=dict)
    traces: int = 20
    rows: list[TraceRow] | None = None
    """In the place of so many traces of one predictor."""
    store: MemoryStore = field(default_factory=MemoryStore)
    stop_at: int | None = None
    """The optimizer step during which SIGTERM comes; 0: before the model is loaded."""
    reports: list[tuple[int, int, str, float | None]] = field(default_factory=list)
    request_fields: dict[str, Any] = field(default_factory=dict)
    attempt: int = 0

    def run(self) -> StageResult:
        self.attempt += 1
        context = StageContext(
            request=self._request(), store=self.store, progress=ProgressReporter(None), cache=self.tmp_path / "cache"
        )
        report = context.progress.report

        def reporting(done: int, total: int, **values: Any) -> None:
            self.reports.append((done, total, values["message"], values.get("loss")))
            if self.stop_at == (0 if total == 1 else done + 1):
                context.stopping.set()
            report(done, total, **values)

        context.progress.report = reporting  # type: ignore[method-assign]
        return stage.run(context)

    def _request(self) -> StageRequest:
        spec = Spec.model_validate(
            {
                "program": {"inline": {"signature": "review -> sentiment", "adapter": "plain"}},
                "metric": {"builtin": "exact-match", "field": "sentiment"},
                "data": {"train": {"uri": "file:train.jsonl"}, "inputs": ["review"]},
                "model": {"uri": self.model_dir.as_uri()},
                "weightOptimizer": {**OPTIMIZER, **self.optimizer},
            }
        )
        return StageRequest(
            namespace="default",
            name="reviews",
            uid="u-1",
            index=2,
            kind="w",
            stage="train",
            attempt=self.attempt,
            spec=spec,
            storage=StorageRef(bucket="bucket"),
            weight_optimizer=spec.weight_optimizer,
            traces=write_traces(self.store, "traces.jsonl.zst", self.rows or [trace(n) for n in range(self.traces)]),
            **self.request_fields,
        )

    @property
    def prefix(self) -> str:
        return "default/reviews/u-1/steps/2-w/train/"

    def adapter(self) -> dict[str, torch.Tensor]:
        return load(self.store.objects[f"{self.prefix}adapter/adapter_model.safetensors"])

    def log(self) -> list[dict[str, Any]]:
        text = self.store.objects[f"{self.prefix}train_log.jsonl"].decode()
        return [json.loads(line) for line in text.splitlines()]

    def checkpoints(self) -> set[str]:
        start = f"{self.prefix}checkpoints/"
        return {key.removeprefix(start).split("/")[0] for key in self.store.objects if key.startswith(start)}


@pytest.fixture
def make_world(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., World]:
    return lambda **fields: World(model_dir, tmp_path_factory.mktemp("world"), **fields)


@pytest.fixture(scope="module")
def undisturbed(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[World, StageResult]:
    world = World(model_dir, tmp_path_factory.mktemp("undisturbed"))
    return world, world.run()


def test_the_loss_falls_and_the_facts_tell_how(undisturbed: tuple[World, StageResult]) -> None:
    world, result = undisturbed
    assert result.outcome == "done"
    wanted = {
        "rows": 18,
        "validation_rows": 2,
        "dropped": 0,
        "epochs": 2,
        "steps": 10,
        "precision": "fp32",
        "prompts": "vanilla",
    }
    assert {name: result.facts[name] for name in wanted} == wanted
    lines = world.log()
    evaluations = [line["eval_loss"] for line in lines if "eval_loss" in line]
    assert len(evaluations) == 3, "before the training and after each epoch"
    assert evaluations[-1] < evaluations[0] / 2
    assert result.facts["eval_loss"] == f"{evaluations[-1]:.4f}"
    losses = [line for line in lines if "loss" in line]
    assert [line["step"] for line in losses] == list(range(1, 11))
    assert result.facts["loss"] == f"{sum(line['loss'] for line in losses[5:]) / 5:.4f}"
    assert losses[0].keys() == {"step", "epoch", "loss", "lr"}
    tokens = int(result.facts["tokens"])
    assert 2 * 18 * 20 < tokens < 2 * 18 * 80


def test_progress_counts_optimizer_steps_with_the_loss(undisturbed: tuple[World, StageResult]) -> None:
    reports = undisturbed[0].reports
    assert reports[0] == (0, 1, "loading the model", None)
    assert reports[1] == (0, 10, "epoch 1 of 2", None)
    assert [report[0] for report in reports[2:]] == list(range(1, 11))
    assert reports[-1][:3] == (10, 10, "epoch 2 of 2")
    assert all(report[3] is not None for report in reports[2:])


def test_every_lora_weight_learns_and_the_base_stays_as_it_was(
    undisturbed: tuple[World, StageResult], model_dir: Path
) -> None:
    weights = undisturbed[0].adapter()
    assert len(weights) == 2 * 2 * 7
    assert all(weight.abs().sum() > 0 for name, weight in weights.items() if "lora_B" in name), "B began at zero"
    assert {weight.dtype for weight in weights.values()} == {torch.float32}


def test_the_adapter_is_a_folder_known_by_its_content(undisturbed: tuple[World, StageResult]) -> None:
    world, result = undisturbed
    assert result.adapter is not None
    assert result.adapter.uri == f"s3://bucket/{world.prefix}adapter/"
    config = json.loads(world.store.objects[f"{world.prefix}adapter/adapter_config.json"])
    assert config["base_model_name_or_path"] == world.model_dir.as_uri()
    assert (config["r"], config["lora_alpha"], config["peft_type"]) == (4, 8, "LORA")


def test_equal_trainings_give_equal_adapters(
    undisturbed: tuple[World, StageResult], make_world: Callable[..., World]
) -> None:
    again = make_world().run()
    assert again.adapter == undisturbed[1].adapter


def test_nothing_is_left_on_this_machine_and_one_checkpoint_in_the_store(
    undisturbed: tuple[World, StageResult],
) -> None:
    world = undisturbed[0]
    assert list((world.tmp_path / "cache" / "training").iterdir()) == []
    assert world.checkpoints() == {"epoch-2"}


@pytest.mark.parametrize("step", [1, 3, 5, 8])
def test_a_preempted_training_goes_on_to_the_same_adapter(
    undisturbed: tuple[World, StageResult], make_world: Callable[..., World], step: int
) -> None:
    world = make_world(stop_at=step)
    with pytest.raises(PreemptedError, match=f"after step {step} of 10"):
        world.run()
    assert world.checkpoints() == {"epoch-1" if step == 5 else f"step-{step}"}
    world.stop_at = None
    world.reports.clear()
    result = world.run()
    assert result.facts["resumed_from_step"] == step
    assert [report[0] for report in world.reports[1:]] == list(range(step, 11)), "no step is done twice"
    assert result.adapter == undisturbed[1].adapter
    assert world.log() == undisturbed[0].log()


def test_a_training_killed_between_checkpoint_and_result_ends_without_another_step(
    undisturbed: tuple[World, StageResult], make_world: Callable[..., World]
) -> None:
    world = make_world()

    def kill(key: str) -> None:
        if key.endswith("adapter/adapter_model.safetensors") and "checkpoints" not in key:
            raise KeyboardInterrupt

    world.store.on_put = kill
    with pytest.raises(KeyboardInterrupt):
        world.run()
    world.store.on_put = lambda key: None
    result = world.run()
    assert result.facts["resumed_from_step"] == 10
    assert result.adapter == undisturbed[1].adapter
    assert world.log() == undisturbed[0].log()
    assert result.facts["loss"] == undisturbed[1].facts["loss"]


def test_a_store_that_is_away_for_a_while_costs_a_checkpoint_and_not_the_training(
    undisturbed: tuple[World, StageResult], make_world: Callable[..., World]
) -> None:
    world = make_world()

    def refuse(key: str) -> None:
        if "checkpoints/epoch-1/" in key:
            raise StorageUnavailableError("no answer")

    world.store.on_put = refuse
    assert world.run().adapter == undisturbed[1].adapter
    assert world.checkpoints() == {"epoch-2"}


def test_a_stop_whose_checkpoint_cannot_be_kept_is_no_preemption(make_world: Callable[..., World]) -> None:
    world = make_world(stop_at=3)

    def refuse(key: str) -> None:
        if "checkpoints/" in key:
            raise StorageUnavailableError("no answer")

    world.store.on_put = refuse
    with pytest.raises(StorageUnavailableError):
        world.run()


def two_predictors() -> list[TraceRow]:
    """12 traces of `answer`, 10 of `hop[0].generate`, 3 of `repair`."""
    counts = {"answer": 12, "hop[0].generate": 10, "repair": 3}
    return [trace(number, predictor=name) for name, count in counts.items() for number in range(count)]


def each(world: World) -> dict[str, bytes]:
    """The weights of every predictor's adapter."""
    index = json.loads(world.store.objects[f"{world.prefix}adapter/predictors.json"])
    return {
        name: world.store.objects[f"{world.prefix}adapter/{number}/adapter_model.safetensors"]
        for number, name in enumerate(index["predictors"])
    }


@pytest.fixture(scope="module")
def two_adapters(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[World, StageResult]:
    world = World(model_dir, tmp_path_factory.mktemp("two"), {"adapters": "per-predictor"}, rows=two_predictors())
    return world, world.run()


def test_each_predictor_gets_an_adapter_of_its_own_rows(
    two_adapters: tuple[World, StageResult], make_world: Callable[..., World]
) -> None:
    world, result = two_adapters
    assert result.adapter is not None and result.adapter.adapters == 2
    found = each(world)
    assert list(found) == ["answer", "hop[0].generate"], "`repair` has too few traces"
    # Each is what a training on its rows alone makes, whatever the others are.
    for name, weights in found.items():
        alone = make_world(rows=[row for row in two_predictors() if row.calls[0].predictor == name])
        alone.run()
        assert alone.store.objects[f"{world.prefix}adapter/adapter_model.safetensors"] == weights
    config = json.loads(world.store.objects[f"{world.prefix}adapter/1/adapter_config.json"])
    assert config["r"] == 4
    assert result.facts["rows"] == 11 + 9
    assert str(result.facts["adapter.1"]).startswith("hop[0].generate: 9 rows, loss ")
    steps = [line["step"] for line in world.log()]
    assert steps == sorted(steps), "one curve, in which the steps are counted on"


@pytest.mark.parametrize(
    "killed", ["checkpoints/0/epoch-2/", "checkpoints/1/epoch-1/", "adapter/1/", "predictors.json"]
)
def test_a_training_of_several_adapters_killed_anywhere_ends_with_the_same(
    killed: str, two_adapters: tuple[World, StageResult], make_world: Callable[..., World]
) -> None:
    world = make_world(optimizer={"adapters": "per-predictor"}, rows=two_predictors())

    def kill(key: str) -> None:
        if killed in key:
            raise KeyboardInterrupt

    world.store.on_put = kill
    with pytest.raises(KeyboardInterrupt):
        world.run()
    world.store.on_put = lambda key: None
    world.reports.clear()
    result = world.run()
    assert result.adapter == two_adapters[1].adapter and each(world) == each(two_adapters[0])
    if killed in ("adapter/1/", "predictors.json"):
        assert result.facts["resumed_from_step"] == result.facts["steps"], "no step is done twice"


def test_a_training_on_other_rows_starts_afresh(make_world: Callable[..., World]) -> None:
    world = make_world(stop_at=6)
    with pytest.raises(PreemptedError):
        world.run()
    world.stop_at = None
    world.traces = 19
    assert "resumed_from_step" not in world.run().facts


def test_a_worker_asked_to_stop_before_the_first_step_leaves_at_once(make_world: Callable[..., World]) -> None:
    world = make_world(stop_at=0)
    with pytest.raises(PreemptedError):
        world.run()
    assert [report[2] for report in world.reports] == ["loading the model"]


def test_the_loss_is_trls_own(
    undisturbed: tuple[World, StageResult], make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem_trainer.lora.trainer.MAX_LOGITS", 0)
    world = make_world()
    world.run()
    ours, theirs = undisturbed[0].log(), world.log()
    for key in ("loss", "eval_loss"):
        pairs = [(a[key], b[key]) for a, b in zip(ours, theirs, strict=True) if key in a]
        assert all(a == pytest.approx(b, rel=1e-4) for a, b in pairs)


def test_packed_rows_do_not_see_each_other(
    undisturbed: tuple[World, StageResult], make_world: Callable[..., World]
) -> None:
    packed = {"packing": True, "dropout": "0"}
    world, plain = make_world(optimizer=packed), make_world(optimizer={"dropout": "0"})
    assert world.run().facts["packing"] == "on"
    plain.run()
    losses = [(a["loss"], b["loss"]) for a, b in zip(world.log(), plain.log(), strict=True) if "loss" in a]
    assert all(a == pytest.approx(b, rel=1e-3) for a, b in losses)


def test_rows_are_not_packed_where_the_attention_would_mix_them(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem_trainer.lora.train.keeps_rows_apart", lambda *_: False)
    facts = make_world(optimizer={"packing": True, "epochs": 1}).run().facts
    assert facts["packing"] == "off: with sdpa attention this model's rows would see each other"


def test_the_probe_notices_an_attention_that_mixes_rows(model_dir: Path) -> None:
    from transformers import AutoModelForCausalLM
    from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

    from tandem_trainer.lora.model import keeps_rows_apart

    model = AutoModelForCausalLM.from_pretrained(model_dir)
    rows = [{"input_ids": [5, 6, 7, 8], "labels": [5, 6, 7, 8]}, {"input_ids": [9, 10, 11], "labels": [9, 10, 11]}]
    collate = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)
    assert keeps_rows_apart(model, collate, rows)

    def one_row(examples: list[dict[str, list[int]]]) -> dict[str, Any]:
        batch = collate(examples)
        return {"input_ids": batch["input_ids"], "labels": batch["labels"]}

    assert not keeps_rows_apart(model, one_row, rows)


def test_recomputing_activations_changes_nothing(
    undisturbed: tuple[World, StageResult], make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tandem_trainer.lora.train._MAX_ACTIVATION_BYTES", 0)
    world = make_world()
    world.run()
    expected = undisturbed[0].adapter()
    assert all(torch.allclose(weight, expected[name], atol=1e-5) for name, weight in world.adapter().items())


def test_bf16_trains_fp32_adapters(make_world: Callable[..., World]) -> None:
    world = make_world(optimizer={"precision": "bf16", "epochs": 1})
    result = world.run()
    assert result.facts["precision"] == "bf16"
    assert {weight.dtype for weight in world.adapter().values()} == {torch.float32}
    assert world.log()[-1]["eval_loss"] < world.log()[0]["eval_loss"]


def test_a_diverging_training_is_an_error_with_the_step_and_the_remedy(make_world: Callable[..., World]) -> None:
    with pytest.raises(ConfigurationError, match=r"diverged, the loss of step \d+ is nan; lower learningRate"):
        make_world(optimizer={"learningRate": "1e30"}).run()


def test_rows_longer_than_the_models_context_are_dropped_whatever_max_length_says(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    long = trace(3)
    text = long.vanilla[0][0]["content"] + " long" * 200
    long = long.model_copy(update={"vanilla": (({"role": "user", "content": text},),)})
    world = make_world(optimizer={"maxLength": 100_000, "epochs": 1, "validationFraction": "0"})
    monkeypatch.setattr(stage, "read_traces", lambda *_: iter([trace(0), trace(1), long]))
    facts = world.run().facts
    assert (facts["rows"], facts["dropped"], facts["validation_rows"]) == (2, 1, 0)
    assert "eval_loss" not in facts


def test_an_adapter_is_continued_and_merged_on_request(
    undisturbed: tuple[World, StageResult], make_world: Callable[..., World]
) -> None:
    first, result = undisturbed
    world = make_world(
        store=MemoryStore(),
        optimizer={"epochs": 1, "learningRate": "1e-5"},
        request_fields={"start_adapter": result.adapter, "merge": True},
    )
    adapter = f"{first.prefix}adapter/"
    inherited = {key: data for key, data in first.store.objects.items() if key.startswith(adapter)}
    world.store.objects.update(inherited)
    continued = world.run()
    assert world.log()[0]["eval_loss"] == pytest.approx(float(result.facts["eval_loss"]), rel=0.01)
    assert continued.adapter != result.adapter
    (merged,) = (path for path in (world.tmp_path / "cache" / "merged").iterdir() if path.is_dir())
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {file.name for file in merged.iterdir()}


def test_a_damaged_adapter_to_continue_is_a_data_error(make_world: Callable[..., World]) -> None:
    missing = Artifact(uri="s3://bucket/gone/", sha256="0" * 64)
    with pytest.raises(DataError):
        make_world(request_fields={"start_adapter": missing}).run()


def test_what_a_killed_attempt_left_on_this_machine_is_removed(make_world: Callable[..., World]) -> None:
    world = make_world(attempt=1)
    left_over = world.tmp_path / "cache" / "training" / "u-1-2-0-1"
    left_over.mkdir(parents=True)
    world.optimizer = {"epochs": 1}
    world.run()
    assert not left_over.exists()


def test_another_machine_that_trains_with_this_one_keeps_its_folder_in_a_shared_cache(
    make_world: Callable[..., World],
) -> None:
    world = make_world(attempt=1)
    others = world.tmp_path / "cache" / "training" / "u-1-2-1-1"
    others.mkdir(parents=True)
    world.optimizer = {"epochs": 1}
    world.run()
    assert others.exists()


def test_an_unknown_model_is_the_users_to_correct(make_world: Callable[..., World], tmp_path: Path) -> None:
    world = make_world()
    world.model_dir = tmp_path / "nowhere"
    with pytest.raises(ConfigurationError, match="nowhere"):
        world.run()
