"""The adapters of single epochs, kept where the step chooses among them; on a tiny model."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.unit.trainer.lora.test_training import OPTIMIZER, World

from tandem_api.contract import EpochDigest, StageResult
from tandem_api.errors import PreemptedError, StorageUnavailableError
from tandem_api.v1alpha1.status import Artifact
from tandem_api.v1alpha1.weight_optimizers import WeightOptimizer
from tandem_trainer.lora.world import ENV_PROCESSES

#: 15 steps in three epochs; nothing but the epoch is different from one adapter to the next.
BEST: dict[str, Any] = {"checkpoint": "best", "epochs": 3}


def kept(world: World) -> set[str]:
    """The epochs that have a whole adapter in the store."""
    start, end = f"{world.prefix}adapters/", "/sha256sums.json"
    return {key[len(start) : -len(end)] for key in world.store.objects if key.startswith(start) and key.endswith(end)}


def fetched(world: World, one: EpochDigest, folder: Path) -> dict[str, bytes]:
    """The files of an epoch's adapter, fetched as the model server does it."""
    uri = f"s3://bucket/{world.prefix}adapters/{one.epoch}/"
    world.store.fetch_folder(Artifact(uri=uri, sha256=one.sha256), folder)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
def make_world(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., World]:
    return lambda **fields: World(model_dir, tmp_path_factory.mktemp("world"), **{"optimizer": BEST, **fields})


@pytest.fixture(scope="module")
def undisturbed(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[World, StageResult]:
    world = World(model_dir, tmp_path_factory.mktemp("undisturbed"), optimizer=BEST)
    return world, world.run()


def test_every_earlier_epochs_adapter_is_kept_in_the_same_form_as_the_last(
    undisturbed: tuple[World, StageResult], tmp_path: Path
) -> None:
    world, result = undisturbed
    assert [one.epoch for one in result.epochs] == [1, 2]
    result.to_message()
    last = world.store.objects[f"{world.prefix}adapter/adapter_config.json"]
    files = [fetched(world, one, tmp_path / str(one.epoch)) for one in result.epochs]
    for found in files:
        assert found.keys() == {"adapter_config.json", "adapter_model.safetensors", "canary.json"}
        assert found["adapter_config.json"] == last
        assert json.loads(found["adapter_config.json"])["base_model_name_or_path"] == world.model_dir.as_uri()
    weights = [found["adapter_model.safetensors"] for found in files]
    weights.append(world.store.objects[f"{world.prefix}adapter/adapter_model.safetensors"])
    assert len(set(weights)) == 3


def test_an_epochs_adapter_is_what_the_training_would_have_ended_with_there(
    undisturbed: tuple[World, StageResult], make_world: Callable[..., World]
) -> None:
    constant = {"schedule": "constant", "warmupFraction": "0"}
    three, two = make_world(optimizer={**BEST, **constant}), make_world(optimizer={**constant, "epochs": 2})
    after_two, ended = three.run().epochs[1], two.run().adapter
    assert ended is not None
    assert (after_two.epoch, after_two.sha256) == (2, ended.sha256)


def test_a_training_whose_last_adapter_is_taken_keeps_no_others(make_world: Callable[..., World]) -> None:
    world = make_world(optimizer={"epochs": 2})
    assert world.run().epochs == ()
    assert kept(world) == set()


@pytest.mark.parametrize("step", [3, 5, 8, 12])
def test_a_preempted_training_ends_with_the_same_adapters(
    undisturbed: tuple[World, StageResult], make_world: Callable[..., World], step: int
) -> None:
    world = make_world(stop_at=step)
    with pytest.raises(PreemptedError):
        world.run()
    assert kept(world) == {str(epoch) for epoch in range(1, step // 5 + 1)}
    world.stop_at = None
    result = world.run()
    assert result.facts["resumed_from_step"] == step
    assert (result.epochs, result.adapter) == (undisturbed[1].epochs, undisturbed[1].adapter)


def test_a_kill_while_an_epochs_adapter_is_written_leaves_none_that_looks_whole(
    undisturbed: tuple[World, StageResult], make_world: Callable[..., World]
) -> None:
    world = make_world()

    def kill(key: str) -> None:
        if key.endswith("adapters/2/adapter_model.safetensors"):
            raise KeyboardInterrupt

    world.store.on_put = kill
    with pytest.raises(KeyboardInterrupt):
        world.run()
    assert kept(world) == {"1"}
    world.store.on_put = lambda key: None
    assert world.run().epochs == undisturbed[1].epochs


def test_a_store_that_is_away_for_a_while_costs_one_choice_and_not_the_training(
    undisturbed: tuple[World, StageResult], make_world: Callable[..., World]
) -> None:
    world = make_world()

    def refuse(key: str) -> None:
        if "adapters/1/" in key:
            raise StorageUnavailableError("no answer")

    world.store.on_put = refuse
    result = world.run()
    assert result.adapter == undisturbed[1].adapter
    assert result.epochs == undisturbed[1].epochs[1:]


def test_several_training_processes_keep_them_too(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(ENV_PROCESSES, "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    world = make_world()
    result = world.run()
    assert result.facts["processes"] == 2
    assert [one.epoch for one in result.epochs] == [1, 2]
    assert kept(world) == {"1", "2"}


@pytest.mark.parametrize(
    ("epochs", "wanted"),
    [
        (1, (1,)),
        (3, (1, 2, 3)),
        (8, (1, 2, 3, 4, 5, 6, 7, 8)),
        (9, (1, 2, 3, 4, 5, 6, 7, 9)),
        (20, (2, 5, 7, 10, 12, 15, 17, 20)),
    ],
)
def test_at_most_eight_epochs_are_kept_evenly_spaced_and_the_last_among_them(
    epochs: int, wanted: tuple[int, ...]
) -> None:
    assert WeightOptimizer.model_validate({**OPTIMIZER, "checkpoint": "best", "epochs": epochs}).kept_epochs == wanted
    assert WeightOptimizer.model_validate({**OPTIMIZER, "epochs": epochs}).kept_epochs == (epochs,)


def test_a_result_with_eight_epochs_and_the_longest_name_is_small_enough() -> None:
    longest = Artifact(uri="s3://" + "b" * 1018 + "/", sha256="0" * 64)
    earlier = tuple(EpochDigest(epoch=93 + n, sha256="1" * 64) for n in range(7))
    facts: dict[str, int | str] = {f"fact.{n}": "x" * 40 for n in range(20)}
    message = StageResult(adapter=longest, epochs=earlier, facts=facts).to_message()
    assert len(message.encode()) <= 4096
