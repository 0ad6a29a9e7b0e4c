from __future__ import annotations

from pathlib import Path

import pytest
from tests.memory_store import MemoryStore

from tandem_trainer.lora.checkpoint import FILES, Checkpoints

PREFIX = "run/steps/2-w/train/checkpoints/"


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


def trainer_folder(tmp_path: Path, content: str) -> Path:
    folder = tmp_path / f"checkpoint-{content}"
    folder.mkdir(exist_ok=True)
    for name in (*FILES, "training_args.bin", "tokenizer.json"):
        (folder / name).write_text(content)
    return folder


def checkpoints(store: MemoryStore, tmp_path: Path, fingerprint: str = "same") -> Checkpoints:
    return Checkpoints(store, PREFIX, fingerprint, tmp_path / "workspace")


def test_the_newest_whole_checkpoint_is_resumed_and_the_older_ones_are_gone(store: MemoryStore, tmp_path: Path) -> None:
    kept = checkpoints(store, tmp_path)
    assert kept.latest() is None
    kept.save(trainer_folder(tmp_path, "one"), name="epoch-1", step=9, seconds=4.0)
    kept.save(trainer_folder(tmp_path, "two"), name="step-12", step=12, seconds=6.25)
    found = checkpoints(store, tmp_path).latest()
    assert found is not None
    assert (found.name, found.step, found.seconds) == ("step-12", 12, 6.2)
    assert (found.folder / "optimizer.pt").read_text() == "two"
    assert {key.split("/")[-2] for key in store.objects} == {"step-12"}


def test_only_what_a_resumption_needs_is_uploaded(store: MemoryStore, tmp_path: Path) -> None:
    checkpoints(store, tmp_path).save(trainer_folder(tmp_path, "one"), name="epoch-1", step=9, seconds=4.0)
    names = {key.removeprefix(f"{PREFIX}epoch-1/") for key in store.objects}
    assert names == {*FILES, "checkpoint.json", "sha256sums.json"}


def test_the_random_states_of_all_processes_are_kept(store: MemoryStore, tmp_path: Path) -> None:
    folder = trainer_folder(tmp_path, "one")
    for name in ("rng_state_0.pth", "rng_state_1.pth"):
        (folder / name).write_text(name)
    kept = checkpoints(store, tmp_path)
    kept.save(folder, name="epoch-1", step=9, seconds=4.0)
    found = kept.latest()
    assert found is not None
    assert {path.name for path in found.folder.glob("rng_state*")} == {"rng_state_0.pth", "rng_state_1.pth"}


@pytest.mark.parametrize("write", range(1, len(FILES) + 3))
def test_a_kill_at_any_write_leaves_the_checkpoint_before_it(store: MemoryStore, tmp_path: Path, write: int) -> None:
    checkpoints(store, tmp_path).save(trainer_folder(tmp_path, "one"), name="epoch-1", step=9, seconds=4.0)
    writes = iter(range(1, 99))

    def kill(key: str) -> None:
        if next(writes) == write:
            raise KeyboardInterrupt

    store.on_put = kill
    with pytest.raises(KeyboardInterrupt):
        checkpoints(store, tmp_path).save(trainer_folder(tmp_path, "two"), name="epoch-2", step=18, seconds=8.0)
    store.on_put = lambda key: None
    found = checkpoints(store, tmp_path).latest()
    assert found is not None
    assert (found.name, (found.folder / "optimizer.pt").read_text()) == ("epoch-1", "one")


def test_a_checkpoint_of_another_training_is_never_resumed_and_is_replaced(store: MemoryStore, tmp_path: Path) -> None:
    checkpoints(store, tmp_path, "other rows").save(
        trainer_folder(tmp_path, "old"), name="epoch-1", step=99, seconds=9.0
    )
    kept = checkpoints(store, tmp_path)
    assert kept.latest() is None
    kept.save(trainer_folder(tmp_path, "new"), name="epoch-1", step=9, seconds=4.0)
    found = kept.latest()
    assert found is not None
    assert (found.step, (found.folder / "optimizer.pt").read_text()) == (9, "new")


def test_a_damaged_checkpoint_is_passed_over(store: MemoryStore, tmp_path: Path) -> None:
    checkpoints(store, tmp_path).save(trainer_folder(tmp_path, "one"), name="epoch-1", step=9, seconds=4.0)
    store.objects[f"{PREFIX}epoch-1/optimizer.pt"] = b"cut off"
    assert checkpoints(store, tmp_path).latest() is None
