"""The folder that training processes share with the worker that started them.

Whatever appears in it appears whole: it is written under another name and renamed.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tandem_trainer.lora.checkpoint import Checkpoint, copy_checkpoint
from tandem_trainer.lora.train import Trained

Progress = tuple[int, int, str, float | None]


class Exchange:
    """Both sides of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._seen = 0

    @property
    def stop(self) -> Path:
        """For the processes: once it is there, they are to keep what they have and end."""
        return self.folder / "stop"

    @property
    def progress(self) -> Path:
        """For the worker: the last report; there is none before the training begins."""
        return self.folder / "progress.json"

    # What the worker reads.

    def new_progress(self) -> Progress | None:
        """The last report, if it has not been read yet."""
        if not self.progress.exists() or (changed := self.progress.stat().st_mtime_ns) == self._seen:
            return None
        self._seen = changed
        done, total, message, loss = json.loads(self.progress.read_text(encoding="utf-8"))
        return done, total, message, loss

    def checkpoints(self) -> Iterator[tuple[Path, dict[str, Any]]]:
        """The waiting checkpoints, the oldest first: folder and the arguments of `Checkpoints.save`."""
        for folder in sorted(self.folder.glob("checkpoint-*")):
            yield folder, json.loads((folder / "note.json").read_text(encoding="utf-8"))

    def first_failure(self) -> dict[str, Any] | None:
        """Why the first process that failed did: rank, error (a TandemError's code, or "") and message."""
        files = sorted(self.folder.glob("failed-*.json"), key=lambda file: file.stat().st_mtime_ns)
        return json.loads(files[0].read_text(encoding="utf-8")) if files else None

    def trained(self) -> Trained:
        found = json.loads((self.folder / "trained.json").read_text(encoding="utf-8"))
        return Trained(**{**found, "log": tuple(found["log"])})

    # What the processes write.

    def report(self, done: int, total: int, message: str, loss: float | None) -> None:
        self._write("progress.json", (done, total, message, loss))

    def fail(self, rank: int, error: str, message: str) -> None:
        self._write(f"failed-{rank}.json", {"rank": rank, "error": error, "message": message})

    def finish(self, trained: Trained) -> None:
        self._write("trained.json", dataclasses.asdict(trained))

    def put_checkpoint(self, source: Path, note: dict[str, Any]) -> None:
        staging = self.folder / f".checkpoint-{note['step']}"
        copy_checkpoint(source, staging)
        (staging / "note.json").write_text(json.dumps(note), encoding="utf-8")
        staging.rename(self.folder / f"checkpoint-{note['step']:09d}")

    def _write(self, name: str, value: Any) -> None:
        staging = self.folder / f".{name}"
        staging.write_text(json.dumps(value), encoding="utf-8")
        staging.replace(self.folder / name)


class Outbox:
    """What a training process has instead of `Checkpoints`: the worker uploads what it puts here."""

    def __init__(self, exchange: Exchange, resumed: Checkpoint | None, *, writes: bool) -> None:
        """`writes`: whether this process is the one of which checkpoints are kept."""
        self._exchange = exchange
        self._resumed = resumed
        self._writes = writes

    def latest(self) -> Checkpoint | None:
        """The checkpoint that the worker has fetched."""
        return self._resumed

    def save(self, source: Path, *, name: str, step: int, seconds: float) -> None:
        if self._writes:
            self._exchange.put_checkpoint(source, {"name": name, "step": step, "seconds": seconds})
