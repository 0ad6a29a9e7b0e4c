"""Which processes train together: how many on this machine, on which of how many machines. No torch but to count."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from tandem_api.errors import ConfigurationError
from tandem_api.v1alpha1.weight_optimizers import WeightOptimizer

#: So many training processes on this machine, whatever GPUs there are.
ENV_PROCESSES: Final = "TANDEM_TRAIN_PROCESSES"
#: torchrun's own names, set by whoever starts one worker a machine.
ENV_NODES, ENV_NODE, ENV_MASTER, ENV_PORT = "NNODES", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT"
#: How long the machines wait for each other: one may have the model already, another downloads it.
_MEETING_SECONDS = 1800


@dataclass(frozen=True)
class World:
    """All training processes; each has one device."""

    processes: int = 1
    """On this machine."""
    nodes: int = 1
    node: int = 0
    """This machine's number; the first one alone keeps what comes of the training."""
    master: str = ""
    """Host and port at which the machines meet."""

    @property
    def size(self) -> int:
        return self.processes * self.nodes

    @property
    def arguments(self) -> tuple[str, ...]:
        """What torchrun is told."""
        processes = f"--nproc-per-node={self.processes}"
        if self.nodes == 1:
            return "--standalone", processes
        host, _, port = self.master.rpartition(":")
        where = (f"--nnodes={self.nodes}", f"--node-rank={self.node}", f"--master-addr={host}", f"--master-port={port}")
        return *where, processes, f"--rdzv-conf=timeout={_MEETING_SECONDS}"


def find_world(environment: Mapping[str, str]) -> World:
    """One process a GPU, or a single one without GPUs, on each of the machines that the environment tells of."""
    processes = _number(environment, ENV_PROCESSES, 0) or _gpus() or 1
    nodes = _number(environment, ENV_NODES, 1)
    if nodes == 1:
        return World(processes)
    missing = [name for name in (ENV_NODE, ENV_MASTER, ENV_PORT) if not environment.get(name)]
    if missing:
        raise ConfigurationError(f"{ENV_NODES} is {nodes}, but {', '.join(missing)} is not set")
    master = f"{environment[ENV_MASTER]}:{environment[ENV_PORT]}"
    return World(processes, nodes, _number(environment, ENV_NODE, 0), master)


def check_shares(settings: WeightOptimizer, world: World) -> None:
    """Raises ConfigurationError when the devices cannot share a batch evenly."""
    part = world.size * (settings.micro_batch_size or 1)
    if settings.batch_size % part:
        passes = f" in forward passes of {settings.micro_batch_size} rows" if settings.micro_batch_size else ""
        raise ConfigurationError(
            f"weightOptimizer.batchSize: found {settings.batch_size}, which {world.size} devices cannot share "
            f"evenly{passes}; allowed here: a multiple of {part}; or give the training another number of devices "
            "(spec.training), on one machine with CUDA_VISIBLE_DEVICES"
        )


def _number(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name) or str(default)
    if not text.isdecimal():
        raise ConfigurationError(f"{name}: found {text!r}; allowed: an integer")
    return int(text)


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()
