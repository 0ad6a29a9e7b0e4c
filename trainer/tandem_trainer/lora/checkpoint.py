"""Checkpoints of a training run in S3: one folder each, whole or not there at all.

A folder holds what the trainer needs to go on exactly where it was: adapter, optimizer, schedule, random states and
the log. Its manifest is written last, so a folder without one does not count. The newest whole one is kept.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol

from tandem_api.canonical import canonical_json, sha256_hex
from tandem_api.errors import DataError
from tandem_api.store import ObjectStore
from tandem_api.store.s3 import MANIFEST
from tandem_api.v1alpha1.status import Artifact
from tandem_trainer.adapters.canary import CANARY_FILE

logger = logging.getLogger(__name__)

#: What is kept of the trainer's own checkpoint folder (transformers 5); the rest can be made again.
FILES: Final = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "optimizer.pt",
    "scheduler.pt",
    "trainer_state.json",
)
#: One file, or one for each of several processes; other numbers of processes go on without.
_RANDOM_STATES: Final = "rng_state*.pth"
_NOTE: Final = "checkpoint.json"


def copy_checkpoint(source: Path, target: Path) -> None:
    """Copy what is kept of the trainer's checkpoint folder into `target`, which is made."""
    target.mkdir(parents=True)
    beside = (path.name for pattern in (_RANDOM_STATES, CANARY_FILE) for path in source.glob(pattern))
    for file in (*FILES, *beside):
        shutil.copyfile(source / file, target / file)


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint on this machine, ready to be resumed."""

    folder: Path
    name: str
    step: int
    seconds: float
    """Training time that led to it, all attempts together."""


class Keeper(Protocol):
    """What a training asks of `Checkpoints`."""

    def latest(self) -> Checkpoint | None: ...

    def save(self, source: Path, *, name: str, step: int, seconds: float) -> None: ...


class Checkpoints:
    """The checkpoints of one training run under `prefix`.

    `fingerprint` names all that the weights depend on, the training rows above all: a checkpoint with another one
    belongs to another training and is never resumed. `workspace`: an empty local folder.
    """

    def __init__(self, store: ObjectStore, prefix: str, fingerprint: str, workspace: Path) -> None:
        self._store = store
        self._prefix = prefix
        self._fingerprint = fingerprint
        self._workspace = workspace

    def latest(self) -> Checkpoint | None:
        """Fetch the whole checkpoint with the most steps; None when there is none of this training."""
        notes = [(note, name) for name in self._names() if (note := self._note(name)) is not None]
        for note, name in sorted(notes, key=lambda found: -int(found[0]["step"])):
            target = self._workspace / "resumed"
            try:
                self._store.fetch_folder(self._artifact(name), target)
            except DataError as error:  # damaged: older ones, or the beginning, are still good
                logger.warning("the checkpoint %s is passed over: %s", name, error)
                shutil.rmtree(target, ignore_errors=True)
                continue
            return Checkpoint(target, name, int(note["step"]), float(note["seconds"]))
        return None

    def save(self, source: Path, *, name: str, step: int, seconds: float) -> None:
        """Upload the trainer's checkpoint folder as `name`, and then forget all others."""
        staging = self._workspace / "upload"
        shutil.rmtree(staging, ignore_errors=True)
        copy_checkpoint(source, staging)
        note = {"fingerprint": self._fingerprint, "seconds": round(seconds, 1), "step": step}
        (staging / _NOTE).write_text(canonical_json(note), encoding="utf-8")
        self._forget(name)
        self._store.put_folder(f"{self._prefix}{name}/", staging)
        shutil.rmtree(staging)
        for other in self._names():
            if other != name:
                self._forget(other)

    def _names(self) -> list[str]:
        """The whole checkpoints."""
        ending = f"/{MANIFEST}"
        keys = self._store.list(self._prefix)
        return [key[len(self._prefix) : -len(ending)] for key in keys if key.endswith(ending)]

    def _note(self, name: str) -> dict[str, Any] | None:
        data = self._store.get(f"{self._prefix}{name}/{_NOTE}")
        try:
            note: dict[str, Any] = json.loads(data or b"{}")
        except ValueError:
            return None
        return note if note.get("fingerprint") == self._fingerprint else None

    def _artifact(self, name: str) -> Artifact:
        manifest = self._store.get(f"{self._prefix}{name}/{MANIFEST}") or b""
        return Artifact(uri=self._store.uri(f"{self._prefix}{name}/"), sha256=sha256_hex(manifest))

    def _forget(self, name: str) -> None:
        # The manifest goes first: what a kill leaves over is no checkpoint.
        self._store.delete(f"{self._prefix}{name}/{MANIFEST}")
        self._store.delete(f"{self._prefix}{name}/")
