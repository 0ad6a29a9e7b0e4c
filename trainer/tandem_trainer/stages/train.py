"""The `train` stage: LoRA fine-tuning on the kept traces.

Source: BetterTogether (arXiv 2407.10930), section 3 (BFT). The adapter goes to S3 in PEFT's form, known by its
content's digest. What is expensive is kept as it comes: an attempt that starts again goes on from the last checkpoint.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from tandem_api.canonical import canonical_json, digest, seed_from
from tandem_api.contract import StageResult
from tandem_api.errors import DataError
from tandem_api.store import S3Store
from tandem_api.v1alpha1.status import Usage
from tandem_api.v1alpha1.weight_optimizers import WeightOptimizer
from tandem_trainer.context import StageContext
from tandem_trainer.lora.base import context_length, local_model, parameter_count, stop_ids
from tandem_trainer.lora.dataset import Encoder, Mode, Pair, TrainingSet, build_training_set, select_pairs
from tandem_trainer.lora.world import World, check_shares, find_world
from tandem_trainer.traces.io import read_traces

if TYPE_CHECKING:
    from tandem_trainer.lora.train import Trained

#: Beside the adapter, for the report: one JSON object a line, with step, epoch, and loss and lr or eval_loss.
LOG_NAME = "train_log.jsonl"


def run(context: StageContext) -> StageResult:
    """Train the adapter that the request asks for.

    Raises PreemptedError with a checkpoint kept, ConfigurationError for settings that cannot work with this model,
    DataError for damaged traces or a damaged adapter to continue.
    """
    request = context.request
    settings = request.weight_optimizer or request.spec.weights_of(request.index)
    if request.traces is None:
        raise DataError("the request of this train stage names no traces; the traces stage before it has kept none")
    pairs = select_pairs(read_traces(context.store, request.traces), settings.prompts)
    context.progress.report(0, 1, message="loading the model")
    storage = request.storage
    model_dir = local_model(
        request.spec.model.uri, context.cache, lambda bucket: S3Store(bucket, storage.endpoint, storage.region)
    )
    context.raise_if_stopping()
    prepare_environment(os.environ)
    world = find_world(os.environ)
    check_shares(settings, world)
    if world.size == 1:
        use_one_gpu(os.environ)
    with _workspace(context, world.node) as workspace:
        return _train(context, settings.for_model(parameter_count(model_dir)), pairs, model_dir, workspace, world)


def prepare_environment(environment: MutableMapping[str, str]) -> None:
    """Before the training libraries are imported: no calls home, the same sums in the same order."""
    environment["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"
    environment["HF_HUB_OFFLINE"] = "1"  # the model is on this machine by now
    environment["HF_HUB_DISABLE_TELEMETRY"] = "1"
    environment["TOKENIZERS_PARALLELISM"] = "false"


def use_one_gpu(environment: MutableMapping[str, str]) -> None:
    """Several GPUs in one process would be used through DataParallel, which TRL refuses."""
    environment["CUDA_VISIBLE_DEVICES"] = environment.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]


def _train(
    context: StageContext, settings: WeightOptimizer, pairs: list[Pair], model_dir: Path, workspace: Path, world: World
) -> StageResult:
    # Imported here: minutes may pass before, and other stages never pay for them.
    from transformers import AutoTokenizer

    from tandem_trainer.lora.checkpoint import Checkpoints
    from tandem_trainer.lora.epochs import EpochAdapters
    from tandem_trainer.lora.learner import Lesson, learn
    from tandem_trainer.lora.merge import merged_model
    from tandem_trainer.lora.model import choose_precision, detect_hardware
    from tandem_trainer.lora.together import learn_together
    from tandem_trainer.lora.train import Plan
    from tandem_trainer.lora.trainer import Hooks

    request, store, layout = context.request, context.store, context.request.stage_layout
    seed = seed_from(request.spec.seed, request.index, "train")

    # 1. The rows, and on what they are learnt.
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    mode: Mode = "completions" if request.spec.program.adapter_name == "plain" else "chat"
    data = build_training_set(
        pairs,
        Encoder(tokenizer, mode, stop_ids(model_dir)),
        max_length=min(settings.max_length, context_length(model_dir) or settings.max_length),
        validation_fraction=settings.validation_fraction,
        seed=seed,
    )
    hardware = detect_hardware()
    precision = choose_precision(settings.precision, hardware)
    context.raise_if_stopping()

    # 2. The training.
    start = None
    if request.start_adapter is not None:
        start = workspace / "start"
        store.fetch_folder(request.start_adapter, start)
    plan = Plan(settings, seed, hardware, precision, workspace, world.size)
    lesson = Lesson(model_dir, request.spec.model.uri, start, data, plan)
    start_sha256 = request.start_adapter.sha256 if request.start_adapter else None
    cause = [data.sha256, settings.to_json(), seed, precision, request.spec.model.uri, start_sha256, _versions()]
    kept = Checkpoints(store, layout.checkpoints, digest(cause), workspace / "checkpoints")
    checkpoints = EpochAdapters(kept, store, request, settings.kept_epochs[:-1])
    hooks = Hooks(
        should_stop=context.should_stop,
        report=lambda done, total, message, loss: context.progress.report(done, total, message=message, loss=loss),
    )
    if world.size == 1:
        trained = learn(lesson, checkpoints, hooks)
    else:
        trained = learn_together(lesson, world, checkpoints, hooks)
    if world.node > 0:
        return StageResult()  # the first machine keeps what came of it
    gpus = world.size if hardware.device == "cuda" else 0
    usage = Usage(gpu_seconds=round(trained.seconds) * gpus)
    context.meter.usage = usage

    # 3. What it came to; the adapter last, since it is the result.
    store.put(f"{layout.root}{LOG_NAME}", "".join(f"{canonical_json(line)}\n" for line in trained.log).encode())
    adapter = store.put_folder(layout.adapter, lesson.adapter)
    facts = _facts(settings, data, trained, precision, world)
    if request.merge:
        context.progress.report(1, 1, message="merging the adapter into the model")
        merged_model(model_dir, lesson.adapter, context.cache, adapter.sha256)
    return StageResult(adapter=adapter, epochs=checkpoints.kept(), usage=usage, facts=facts)


def _versions() -> dict[str, str]:
    """The libraries whose checkpoints and numerics may differ from version to version."""
    return {name: metadata.version(name) for name in ("peft", "torch", "transformers", "trl")}


def _facts(
    settings: WeightOptimizer, data: TrainingSet, trained: Trained, precision: str, world: World
) -> dict[str, int | str]:
    chosen = settings.to_json()
    facts: dict[str, int | str] = {
        "rows": len(data.train),
        "validation_rows": len(data.validation),
        "dropped": data.dropped,
        "epochs": settings.epochs,
        "steps": trained.steps,
        "tokens": data.tokens * settings.epochs,
        "seconds": round(trained.seconds),
        "precision": precision,
        "prompts": settings.prompts,
        "rank": chosen["rank"],
        "alpha": chosen["alpha"],
        "learning_rate": chosen["learningRate"],
    }
    if world.size > 1:
        facts["processes"] = world.size
    if trained.loss is not None:
        facts["loss"] = f"{trained.loss:.4f}"
    if trained.eval_loss is not None:
        facts["eval_loss"] = f"{trained.eval_loss:.4f}"
    if trained.resumed_from:
        facts["resumed_from_step"] = trained.resumed_from
    if trained.packing is not None:
        facts["packing"] = trained.packing
    return facts


@contextmanager
def _workspace(context: StageContext, node: int) -> Iterator[Path]:
    """An empty folder for this attempt on this machine; what attempts before it left behind when they were killed is
    removed. Machines that train together may share the cache."""
    root = context.cache / "training"
    name = f"{context.request.uid}-{context.request.index}-{node}"
    for left_over in root.glob(f"{name}-*"):
        shutil.rmtree(left_over, ignore_errors=True)
    workspace = root / f"{name}-{context.request.attempt}"
    workspace.mkdir(parents=True)
    try:
        yield workspace
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
