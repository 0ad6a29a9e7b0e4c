"""A worker whose `train` stage is scripted: the adapter's bytes are a digest of the kept traces. Everything else is
the real worker. Real training takes half a minute and a model; tests/local has it."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import sys
import tempfile
import time
import types
from pathlib import Path

from tandem_api.contract import EpochDigest, StageResult
from tandem_api.v1alpha1.status import Artifact
from tandem_trainer import main
from tandem_trainer.adapters.canary import CANARY_FILE, Canary, CanaryRow
from tandem_trainer.adapters.predictors import adapter_set
from tandem_trainer.context import StageContext
from tandem_trainer.lora.shares import divide, gather
from tandem_trainer.traces.io import read_traces

#: What a sidecar demands of an adapter before it has it loaded.
CONFIG = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}


def train(context: StageContext) -> StageResult:
    """As the real stage ends: adapter folders in S3, what they are in the result."""
    request, layout = context.request, context.request.stage_layout
    assert request.traces is not None and request.weight_optimizer is not None
    context.store.fetch(request.traces)
    _take_time(context)
    if request.weight_optimizer.adapters == "per-predictor":
        return _train_each(context)
    earlier = request.weight_optimizer.kept_epochs[:-1]
    epochs = tuple(
        EpochDigest(epoch=epoch, sha256=_put(context, layout.epoch_adapter(epoch), f"epoch {epoch}").sha256)
        for epoch in earlier
    )
    adapter = _put(context, layout.adapter, "")
    return StageResult(adapter=adapter, epochs=epochs, facts={"rows": request.traces.count or 0})


def _take_time(context: StageContext) -> None:
    """For as many seconds as the environment says, with a loss that falls."""
    seconds, steps = float(os.environ.get("ENGINE_TRAIN_SECONDS", "0")), 40
    for step in range(steps if seconds else 0):
        context.progress.report(step, steps, message="training", loss=0.4 + 2.0 / (1 + step / 4))
        time.sleep(seconds / steps)


def _train_each(context: StageContext) -> StageResult:
    """An adapter for each predictor: a digest of its own rows and of what it continues."""
    request, store = context.request, context.store
    assert request.traces is not None and request.weight_optimizer is not None
    with tempfile.TemporaryDirectory() as name:
        folder, start = Path(name), None
        if request.start_adapter is not None:
            start = folder / "start"
            store.fetch_folder(request.start_adapter, start)
        shares = divide(list(read_traces(store, request.traces)), request.weight_optimizer, start)
        trained: list[Path | None] = []
        for number, share in enumerate(shares):
            before = b"" if share.start is None else (share.start / "adapter_model.safetensors").read_bytes()
            trained.append(_write(folder / str(number), f"{share.pairs}{before!r}") if share.pairs else None)
        owners = gather(shares, trained, folder / "all")
        adapter = adapter_set(store.put_folder(request.stage_layout.adapter, folder / "all"), owners)
    return StageResult(adapter=adapter, facts={"rows": request.traces.count or 0})


def _write(folder: Path, content: str) -> Path:
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
    (folder / "adapter_model.safetensors").write_text(hashlib.sha256(content.encode()).hexdigest())
    return folder


def _put(context: StageContext, prefix: str, epoch: str) -> Artifact:
    request = context.request
    assert request.traces is not None
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "adapter_config.json").write_text(json.dumps(CONFIG))
        start = request.start_adapter.sha256 if request.start_adapter else ""
        content = hashlib.sha256(f"{request.traces.sha256}{start}{epoch}".encode()).hexdigest()
        (folder / "adapter_model.safetensors").write_text(content)
        if "canary" in json.loads(os.environ.get("ENGINE_FAULTS", "{}")):
            (folder / CANARY_FILE).write_text(_canary().model_dump_json())
        return context.store.put_folder(prefix, folder)


def _canary() -> Canary:
    """What the scripted model answers for an adapter, and for the base model."""
    from tests.engine.model import BASE_LOGPROB, TUNED_LOGPROB

    row = CanaryRow(tokens=(1, 2, 3), prompt_tokens=2, base=(BASE_LOGPROB,), adapter=(TUNED_LOGPROB,))
    return Canary(rows=(row,))


def install() -> None:
    """Put the scripted stage where the worker looks for the real one."""
    module = types.ModuleType("tandem_trainer.stages.train")
    module.run = train  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    kills = json.loads(os.environ.get("ENGINE_FAULTS", "{}")).get("mlflow_kills")
    if kills is not None:
        _die_around_writes(Path(kills))


def _die_around_writes(folder: Path) -> None:
    """Each stage's first worker dies right before or right after a write to MLflow, another one in each stage."""
    from tandem_trainer.tracking.client import MLflowClient
    from tandem_trainer.tracking.tracker import Tracker

    request = main.read_request()
    folder.mkdir(exist_ok=True)
    turn, when = divmod(len(list(folder.iterdir())), 2)
    mark = folder / f"{request.index}-{request.stage}-{('before', 'after')[when]}"
    if any(folder.glob(f"{request.index}-{request.stage}-*")):
        return
    post, finish, writes = MLflowClient._post, Tracker.finish, 0

    def counted(client: MLflowClient, path: str, **body: object) -> dict[str, object]:
        nonlocal writes
        is_it = path != "runs/search" and writes == turn % 3
        writes += path != "runs/search"
        if is_it and when == 0:
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        answer = post(client, path, **body)
        if is_it:
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return answer

    def late(tracker: Tracker, result: StageResult) -> StageResult:
        # A stage may be over before its worker has come to the write that it is to die of.
        time.sleep(0 if request.kind == "final" else 2)
        return finish(tracker, result)

    MLflowClient._post, Tracker.finish = counted, late  # type: ignore[method-assign, assignment]


if __name__ == "__main__":
    install()
    code = main.main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
