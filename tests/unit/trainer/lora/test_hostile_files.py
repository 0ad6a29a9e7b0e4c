"""Files that somebody else may have written are read as data: no pickle of theirs runs."""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import stat
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.trainer.lora.test_training import World

from tandem_api.canonical import canonical_json, sha256_hex
from tandem_api.errors import PreemptedError, TandemError
from tandem_api.store.s3 import MANIFEST
from tandem_trainer.lora import together


class Bomb:
    """Unpickled, it makes a file."""

    def __init__(self, marker: Path) -> None:
        self._marker = marker

    def __reduce__(self) -> Any:
        return Path.touch, (self._marker,)


def test_the_bomb_goes_off_where_a_pickle_is_loaded(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "marker")))
    assert (tmp_path / "marker").exists()


@pytest.mark.parametrize("file", ["optimizer.pt", "scheduler.pt", "rng_state.pth"])
def test_a_checkpoint_that_somebody_has_changed_in_the_bucket_runs_nothing(
    model_dir: Path, tmp_path: Path, file: str
) -> None:
    """Whoever may write to the bucket can change a checkpoint and its list of digests alike."""
    world = World(model_dir, tmp_path, stop_at=3)
    with pytest.raises(PreemptedError):
        world.run()
    (checkpoint,) = world.checkpoints()
    objects = world.store.objects
    (list_key,) = [key for key in objects if key.endswith(f"checkpoints/{checkpoint}/{MANIFEST}")]
    sums = json.loads(objects[list_key])
    assert file in sums
    bomb = pickle.dumps(Bomb(tmp_path / "marker"))
    objects[list_key.replace(MANIFEST, file)] = bomb
    objects[list_key] = canonical_json({**sums, file: sha256_hex(bomb)}).encode()
    world.stop_at = None
    with contextlib.suppress(TandemError, pickle.UnpicklingError):
        world.run()
    assert not (tmp_path / "marker").exists()


def test_the_lesson_for_training_processes_lies_where_no_other_pod_writes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It lay in the cache, which may be a claim that runs share: who writes a pickle decides what is run."""
    seen: list[Path] = []

    @contextlib.contextmanager
    def launched(command: list[str], world: Any) -> Iterator[Any]:
        lesson = Path(command[-1])
        seen.append(lesson)
        assert pickle.loads(lesson.read_bytes())[2] == os.getpid()
        assert stat.S_IMODE(lesson.parent.stat().st_mode) == 0o700
        assert not lesson.is_relative_to(tmp_path)
        yield SimpleNamespace(poll=lambda: 1, returncode=1), ["the end"]

    monkeypatch.setattr(together, "_launched", launched)
    lesson: Any = SimpleNamespace(plan=SimpleNamespace(workspace=tmp_path))
    keeper: Any = SimpleNamespace(latest=lambda: None)
    hooks: Any = SimpleNamespace(should_stop=lambda: False)
    with pytest.raises(together.TrainingProcessError):
        together.learn_together(lesson, SimpleNamespace(arguments=()), keeper, hooks)  # type: ignore[arg-type]
    (file,) = seen
    assert not file.exists(), "nothing is left"
    assert list(tmp_path.rglob("*.pickle")) == []
