"""The adapters of a training's earlier epochs, kept where the step chooses among them (`checkpoint: best`)."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Final

from tandem_api.canonical import sha256_hex
from tandem_api.contract import EpochDigest, StageRequest
from tandem_api.store import ObjectStore
from tandem_api.store.s3 import MANIFEST
from tandem_trainer.adapters.canary import CANARY_FILE
from tandem_trainer.lora.adapter import in_standard_form
from tandem_trainer.lora.checkpoint import Checkpoint, Checkpoints
from tandem_trainer.lora.servable import CONFIG_FILE, WEIGHTS_FILE

_AFTER_EPOCH: Final = re.compile(r"epoch-(\d+)")


class EpochAdapters:
    """`Checkpoints` that take the adapter out of each wanted epoch's checkpoint as it passes.

    The adapter is in S3 before the checkpoint is, so that a training that goes on from the checkpoint has it.
    """

    def __init__(self, checkpoints: Checkpoints, store: ObjectStore, request: StageRequest, epochs: tuple[int, ...]):
        """`epochs`: the wanted ones, without the last, whose adapter is the stage's own."""
        self._checkpoints = checkpoints
        self._store = store
        self._request = request
        self._epochs = epochs

    def latest(self) -> Checkpoint | None:
        """As `Checkpoints.latest`."""
        return self._checkpoints.latest()

    def save(self, source: Path, *, name: str, step: int, seconds: float) -> None:
        """As `Checkpoints.save`."""
        after = _AFTER_EPOCH.fullmatch(name)
        if after is not None and int(after[1]) in self._epochs:
            self._keep(source, int(after[1]))
        self._checkpoints.save(source, name=name, step=step, seconds=seconds)

    def kept(self) -> tuple[EpochDigest, ...]:
        """Those that are there, in order, whichever attempt wrote them."""
        manifests = ((epoch, self._store.get(f"{self._prefix(epoch)}{MANIFEST}")) for epoch in self._epochs)
        return tuple(
            EpochDigest(epoch=epoch, sha256=sha256_hex(manifest))
            for epoch, manifest in manifests
            if manifest is not None
        )

    def _keep(self, source: Path, epoch: int) -> None:
        folder, prefix = source.with_name(f"adapter-{epoch}"), self._prefix(epoch)
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name in (CONFIG_FILE, WEIGHTS_FILE):
            shutil.copyfile(source / name, folder / name)
        in_standard_form(folder, self._request.spec.model.uri)
        if (source / CANARY_FILE).is_file():
            shutil.copyfile(source / CANARY_FILE, folder / CANARY_FILE)
        # The manifest goes first: what a kill leaves over is no adapter.
        self._store.delete(f"{prefix}{MANIFEST}")
        self._store.put_folder(prefix, folder)
        shutil.rmtree(folder)

    def _prefix(self, epoch: int) -> str:
        return self._request.stage_layout.epoch_adapter(epoch)
