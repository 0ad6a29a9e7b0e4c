"""Several training processes on one machine: the same result as one alone, one checkpoint, one error."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from tests.unit.trainer.lora.test_training import World
from tests.unit.trainer.lora.tiny import trace

from tandem_api.contract import StageResult
from tandem_api.errors import ConfigurationError, PreemptedError, TandemError
from tandem_trainer.lora.exchange import Exchange
from tandem_trainer.lora.together import TrainingProcessError, why_they_ended
from tandem_trainer.lora.trainer import EvenOrder
from tandem_trainer.lora.world import ENV_PROCESSES, find_world

#: 18 rows and batches of 4: the last batch of an epoch has two rows, one for each process and half a forward pass.
TWO = {"dropout": "0", "epochs": 8, "microBatchSize": 2}


@pytest.fixture
def make_world(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[..., World]:
    return lambda **fields: World(model_dir, tmp_path_factory.mktemp("world"), **fields)


@pytest.fixture
def two_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENV_PROCESSES, "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr("tandem_trainer.lora.together._LOOK_SECONDS", 0.02)


def losses(world: World) -> list[float]:
    return [line.get("loss", line.get("eval_loss")) for line in world.log()]


def assert_same_adapter(one: World, other: World) -> None:
    expected = one.adapter()
    assert all(torch.allclose(weight, expected[name], atol=2e-4) for name, weight in other.adapter().items())


@pytest.fixture(scope="module")
def alone(model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[World, StageResult]:
    world = World(model_dir, tmp_path_factory.mktemp("alone"), optimizer=TWO)
    return world, world.run()


@pytest.mark.usefixtures("two_processes")
def test_two_processes_train_one_adapter_after_another(
    make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [trace(number, predictor=name) for name in ("answer", "search") for number in range(8)]
    own = {"dropout": "0", "epochs": 1, "adapters": "per-predictor"}
    together = make_world(optimizer=own, rows=rows)
    result = together.run()
    assert result.adapter is not None and result.adapter.adapters == 2 and result.facts["processes"] == 2
    monkeypatch.delenv(ENV_PROCESSES)
    alone = make_world(optimizer=own, rows=rows)
    alone.run()
    assert torch.allclose(torch.tensor(losses(together)), torch.tensor(losses(alone)), atol=2e-4)


@pytest.mark.usefixtures("two_processes")
def test_two_processes_take_the_same_steps_as_one_and_a_stop_costs_none(
    alone: tuple[World, StageResult], make_world: Callable[..., World], monkeypatch: pytest.MonkeyPatch
) -> None:
    world = make_world(optimizer=TWO, stop_at=1)
    with pytest.raises(PreemptedError, match=r"after step \d+ of 40"):
        world.run()
    (kept,) = world.checkpoints()
    stored = dict(world.store.objects)
    world.stop_at = None
    result = world.run()
    step = int(result.facts["resumed_from_step"])
    assert kept == (f"step-{step}" if step % 5 else f"epoch-{step // 5}")
    assert result.facts["processes"] == 2
    assert (result.facts["steps"], result.facts["rows"]) == (40, 18)
    assert losses(world) == pytest.approx(losses(alone[0]), rel=2e-3)
    assert_same_adapter(alone[0], world)
    assert world.reports[-1][:3] == (40, 40, "epoch 8 of 8")
    assert list((world.tmp_path / "cache" / "training").iterdir()) == []

    monkeypatch.setenv(ENV_PROCESSES, "1")
    fewer = make_world(optimizer=TWO)
    fewer.store.objects.update(stored)
    assert fewer.run().facts["resumed_from_step"] == step
    assert_same_adapter(alone[0], fewer)


@pytest.mark.usefixtures("two_processes")
def test_a_process_that_dies_fails_the_stage_with_the_end_of_the_log(make_world: Callable[..., World]) -> None:
    world = make_world(optimizer={**TWO, "epochs": 100})
    report_of = world.reports.append

    class Killing(list):  # type: ignore[type-arg]
        def append(self, report: tuple[int, int, str, float | None]) -> None:
            report_of(report)
            if report[1] == 500 and report[0] > 0:
                os.kill(processes_of_this()[-1], signal.SIGKILL)

    world.reports = Killing()
    with pytest.raises(TrainingProcessError, match=r"(?s)SIGKILL.*end of their log:.*exitcode\s*:\s*-9"):
        world.run()
    assert processes_of_this() == []


def processes_of_this() -> list[int]:
    """The training processes that this one has started."""
    found = [child for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
    commands = [(child.pid, child.cmdline()) for child in found]
    ours = [(pid, command) for pid, command in commands if "tandem_trainer.lora.process" in command]
    return [pid for pid, command in ours if "torch.distributed.run" not in command]


@pytest.mark.parametrize(
    ("error", "kind"),
    [("BadConfiguration", ConfigurationError), ("Preempted", PreemptedError), ("", TrainingProcessError)],
)
def test_the_first_process_that_fails_says_with_which_error_the_stage_ends(
    tmp_path: Path, error: str, kind: type[TandemError]
) -> None:
    exchange = Exchange(tmp_path)
    exchange.fail(1, error, "the first")
    os.utime(tmp_path / "failed-1.json", ns=(1, 1))
    exchange.fail(0, "", "what came of it")
    found = why_they_ended(exchange.first_failure(), 1, "last line")
    assert type(found) is kind
    assert "the first" in str(found)
    assert ("last line" in str(found)) == (error == "")


@pytest.mark.parametrize(
    ("settings", "allowed"), [({"batchSize": 3, "microBatchSize": 1}, 2), ({"batchSize": 4, "microBatchSize": 4}, 8)]
)
@pytest.mark.usefixtures("two_processes")
def test_a_batch_that_the_devices_cannot_share_is_the_users_to_change(
    make_world: Callable[..., World], settings: dict[str, int], allowed: int
) -> None:
    with pytest.raises(ConfigurationError, match=rf"batchSize: found \d, which 2 devices.*a multiple of {allowed};"):
        make_world(optimizer=settings).run()


def test_rows_come_in_the_order_of_one_process_and_the_rest_is_empty() -> None:
    from torch.utils.data import RandomSampler

    order = EvenOrder(18, 4, seed=7)
    alone = RandomSampler(range(18), generator=torch.Generator().manual_seed(7))
    first = list(order)
    assert first[:18] == list(alone)
    assert first[18:] == [18, 18]
    assert len(order) == 20
    order.set_epoch(0)
    assert list(order) == first
    assert list(order)[:18] != first[:18], "each epoch has an order of its own"
    assert list(EvenOrder(8, 4, seed=0)).count(8) == 0


def test_machines_are_told_where_to_meet() -> None:
    given = {
        ENV_PROCESSES: "4",
        "NNODES": "2",
        "NODE_RANK": "1",
        "MASTER_ADDR": "first.of.them",
        "MASTER_PORT": "29500",
    }
    world = find_world(given)
    assert (world.size, world.node) == (8, 1)
    assert {"--nnodes=2", "--node-rank=1", "--master-addr=first.of.them", "--master-port=29500"} <= set(world.arguments)
    assert find_world({ENV_PROCESSES: "2"}).arguments == ("--standalone", "--nproc-per-node=2")
    with pytest.raises(ConfigurationError, match="MASTER_PORT is not set"):
        find_world({name: value for name, value in given.items() if name != "MASTER_PORT"})
