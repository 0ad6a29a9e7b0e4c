"""The `train` stage: LoRA fine-tuning on the kept traces.

Source: BetterTogether (arXiv 2407.10930), section 3 (BFT). The adapter goes to S3 in PEFT's form, known by its
content's digest; the adapters of several predictors are one folder. What is expensive is kept as it comes: an attempt
that starts again goes on from the last checkpoint.
"""

from __future__ import annotations

import gc
import os
import shutil
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from tandem_api.canonical import canonical_json, digest, seed_from
from tandem_api.contract import StageResult
from tandem_api.errors import DataError
from tandem_api.records import TraceRow
from tandem_api.store import S3Store
from tandem_api.v1alpha1.status import Usage
from tandem_api.v1alpha1.weight_optimizers import WeightOptimizer
from tandem_trainer.adapters.predictors import adapter_set
from tandem_trainer.context import StageContext
from tandem_trainer.lora.base import context_length, local_model, parameter_count, stop_ids
from tandem_trainer.lora.curve import LossCurve
from tandem_trainer.lora.dataset import Encoder, Mode, TrainingSet, build_training_set
from tandem_trainer.lora.shares import Share, divide, gather
from tandem_trainer.lora.world import World, check_shares, find_world
from tandem_trainer.traces.io import read_traces

if TYPE_CHECKING:
    from tandem_trainer.lora.learner import Lesson
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
    traces = list(read_traces(context.store, request.traces))
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
        return _train(context, settings.for_model(parameter_count(model_dir)), traces, model_dir, workspace, world)


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
    context: StageContext,
    settings: WeightOptimizer,
    traces: list[TraceRow],
    model_dir: Path,
    workspace: Path,
    world: World,
) -> StageResult:
    # Imported here: minutes may pass before, and other stages never pay for them.
    from transformers import AutoTokenizer

    from tandem_trainer.lora.checkpoint import Checkpoints
    from tandem_trainer.lora.epochs import EpochAdapters
    from tandem_trainer.lora.learner import Lesson, learn
    from tandem_trainer.lora.merge import merged_model
    from tandem_trainer.lora.model import choose_precision, detect_hardware
    from tandem_trainer.lora.together import learn_together
    from tandem_trainer.lora.train import Plan, one_after_another
    from tandem_trainer.lora.trainer import Hooks

    request, store, layout = context.request, context.store, context.request.stage_layout
    seed = seed_from(request.spec.seed, request.index, "train")

    # 1. The rows, and on what they are learnt.
    start = None
    if request.start_adapter is not None:
        start = workspace / "start"
        store.fetch_folder(request.start_adapter, start)
    shares = divide(traces, settings, start)
    tokenizer = AutoTokenizer.from_pretrained(model_dir)
    mode: Mode = "completions" if request.spec.program.adapter_name == "plain" else "chat"
    encoder = Encoder(tokenizer, mode, stop_ids(model_dir))
    hardware = detect_hardware()
    precision = choose_precision(settings.precision, hardware)
    lessons: list[Lesson | None] = []
    for number, share in enumerate(shares):
        if not share.pairs and share.predictor is not None:
            lessons.append(None)
            continue
        data = build_training_set(
            share.pairs,
            encoder,
            max_length=min(settings.max_length, context_length(model_dir) or settings.max_length),
            validation_fraction=settings.validation_fraction,
            seed=seed,
        )
        where = workspace if share.predictor is None else workspace / str(number)
        where.mkdir(exist_ok=True)
        plan = Plan(settings, seed, hardware, precision, where, world.size)
        lessons.append(Lesson(model_dir, request.spec.model.uri, share.start, data, plan))
    context.raise_if_stopping()

    # 2. The training, one adapter after another. Each goes on from its own checkpoint: what is done is not done again.
    start_sha256 = request.start_adapter.sha256 if request.start_adapter else None
    results: list[Trained] = []
    with LossCurve(store, f"{layout.root}{LOG_NAME}") as curve:
        for number, (share, lesson) in enumerate(zip(shares, lessons, strict=True)):
            if lesson is None:
                continue
            cause = [lesson.data.sha256, settings.to_json(), seed, precision, request.spec.model.uri]
            fingerprint = digest([*cause, start_sha256, _versions()])
            prefix = layout.checkpoints if share.predictor is None else f"{layout.checkpoints}{number}/"
            kept = Checkpoints(store, prefix, fingerprint, lesson.plan.workspace / "checkpoints")
            checkpoints = EpochAdapters(kept, store, request, settings.kept_epochs[:-1])
            steps = sum(result.steps for result in results)
            report = _reporter(context, share.predictor, steps, curve if world.node == 0 else None)
            hooks = Hooks(should_stop=context.should_stop, report=report)
            gc.collect()  # the trainer before holds its model in cycles; the next one needs that memory
            if world.size == 1:
                results.append(learn(lesson, checkpoints, hooks))
            else:
                results.append(learn_together(lesson, world, checkpoints, hooks))
    if world.node > 0:
        return StageResult()  # the first machine keeps what came of it
    trained = one_after_another(results)
    gpus = world.size if hardware.device == "cuda" else 0
    usage = Usage(gpu_seconds=round(trained.seconds) * gpus)
    context.meter.usage = usage

    # 3. What it came to; the adapter last, since it is the result.
    store.put(f"{layout.root}{LOG_NAME}", "".join(f"{canonical_json(line)}\n" for line in trained.log).encode())
    learnt = [lesson for lesson in lessons if lesson is not None]
    facts = _facts(settings, [lesson.data for lesson in learnt], trained, precision, world)
    if settings.adapters == "per-predictor":
        folder = workspace / "adapters"
        predictors = gather(shares, [None if lesson is None else lesson.adapter for lesson in lessons], folder)
        several = adapter_set(store.put_folder(layout.adapter, folder), predictors)
        return StageResult(adapter=several, usage=usage, facts=facts | _facts_of_each(shares, lessons, results))
    adapter = store.put_folder(layout.adapter, learnt[0].adapter)
    if request.merge:
        context.progress.report(1, 1, message="merging the adapter into the model")
        merged_model(model_dir, learnt[0].adapter, context.cache, adapter.sha256)
    return StageResult(adapter=adapter, epochs=checkpoints.kept(), usage=usage, facts=facts)


def _reporter(
    context: StageContext, predictor: str | None, before: int, curve: LossCurve | None
) -> Callable[[int, int, str, float | None], None]:
    """`before`: the optimizer steps of the adapters before this one."""
    whose = "" if predictor is None else f"{predictor}: "

    def report(done: int, total: int, message: str, loss: float | None) -> None:
        context.progress.report(done, total, message=f"{whose}{message}", loss=loss)
        if curve is not None:
            curve.add(before + done, loss)

    return report


def _versions() -> dict[str, str]:
    """The libraries whose checkpoints and numerics may differ from version to version."""
    return {name: metadata.version(name) for name in ("peft", "torch", "transformers", "trl")}


def _facts(
    settings: WeightOptimizer, data: Sequence[TrainingSet], trained: Trained, precision: str, world: World
) -> dict[str, int | str]:
    chosen = settings.to_json()
    facts: dict[str, int | str] = {
        "rows": sum(len(part.train) for part in data),
        "validation_rows": sum(len(part.validation) for part in data),
        "dropped": sum(part.dropped for part in data),
        "epochs": settings.epochs,
        "steps": trained.steps,
        "tokens": sum(part.tokens for part in data) * settings.epochs,
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
    if trained.eval_loss is not None and len(data) == 1:
        facts["eval_loss"] = f"{trained.eval_loss:.4f}"
    if trained.resumed_from:
        facts["resumed_from_step"] = trained.resumed_from
    if trained.packing is not None:
        facts["packing"] = trained.packing
    return facts


def _facts_of_each(
    shares: Sequence[Share], lessons: Sequence[Lesson | None], results: Sequence[Trained]
) -> dict[str, int | str]:
    """What became of each predictor's adapter."""
    facts: dict[str, int | str] = {}
    left = iter(results)
    for number, (share, lesson) in enumerate(zip(shares, lessons, strict=True)):
        if lesson is None:
            facts[f"adapter.{number}"] = f"{share.predictor}: as before, for there are too few traces"
            continue
        trained = next(left)
        losses = {"loss": trained.loss, "eval_loss": trained.eval_loss}
        told = [f"{name} {loss:.4f}" for name, loss in losses.items() if loss is not None]
        facts[f"adapter.{number}"] = ", ".join([f"{share.predictor}: {len(lesson.data.train)} rows", *told])
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
