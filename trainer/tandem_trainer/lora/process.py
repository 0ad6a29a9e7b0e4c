"""One of several training processes: `torchrun ... -m tandem_trainer.lora.process FOLDER LESSON`.

The folder is the `Exchange` with the worker that started them all, the lesson a file that only that one can write.
Ends with 0 when the training is done or stopped.
"""

from __future__ import annotations

import os
import pickle
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

import torch
from torch import distributed

from tandem_api.errors import EXIT_DONE, EXIT_RETRYABLE, PreemptedError, TandemError
from tandem_trainer.lora.exchange import Exchange, Outbox
from tandem_trainer.lora.learner import Lesson, learn
from tandem_trainer.lora.trainer import Hooks


def main() -> int:
    """Do this process's part of the lesson. Returns the exit code; never raises."""
    exchange = Exchange(Path(sys.argv[1]))
    rank, local_rank = int(os.environ["RANK"]), int(os.environ["LOCAL_RANK"])
    lesson: Lesson
    lesson, resumed, worker = pickle.loads(Path(sys.argv[2]).read_bytes())  # noqa: S301 - the worker's own
    try:
        device = _join(lesson, local_rank)
        _agree_on(resumed.step if resumed else 0, device)
        outbox = Outbox(exchange, resumed, writes=rank == 0)
        hooks = _hooks(exchange, worker, device, is_speaker=local_rank == 0)
        trained = learn(lesson, outbox, hooks, writes=rank == 0)
        if local_rank == 0:
            exchange.finish(trained)
        distributed.destroy_process_group()
    except PreemptedError as error:
        exchange.fail(rank, error.code, str(error))
    except TandemError as error:
        exchange.fail(rank, error.code, str(error))
        return error.exit_code
    except BaseException as error:
        traceback.print_exc()
        exchange.fail(rank, "", "".join(traceback.format_exception_only(error)).strip())
        return EXIT_RETRYABLE
    return EXIT_DONE


def _join(lesson: Lesson, local_rank: int) -> torch.device:
    """Meet the other processes. Returns this one's device."""
    if lesson.plan.hardware.device == "cpu":
        distributed.init_process_group("gloo")
        return torch.device("cpu")
    device = torch.device("cuda", local_rank)
    torch.cuda.set_device(device)
    distributed.init_process_group("nccl", device_id=device)
    return device


def _agree_on(step: int, device: torch.device) -> None:
    """Raises TandemError unless all machines go on from the same step: each has looked for the checkpoint itself."""
    found = torch.tensor([step, -step], device=device)
    distributed.all_reduce(found, distributed.ReduceOp.MAX)
    highest, lowest = int(found[0]), -int(found[1])
    if highest != lowest:
        raise TandemError(f"the machines found different checkpoints, of the steps {lowest} and {highest}")


def _hooks(exchange: Exchange, worker: int, device: torch.device, *, is_speaker: bool) -> Hooks:
    def is_asked() -> bool:
        # A worker that was killed asks nobody any more.
        return exchange.stop.exists() or not Path(f"/proc/{worker}").exists()

    return Hooks(
        should_stop=_agreed(is_asked, device),
        report=exchange.report if is_speaker else lambda *_: None,
    )


def _agreed(is_asked: Callable[[], bool], device: torch.device) -> Callable[[], bool]:
    """Whether any of the processes is asked to stop, the same answer in all of them: they stop after the same step."""

    def ask() -> bool:
        asked = torch.tensor(float(is_asked()), device=device)
        distributed.all_reduce(asked, distributed.ReduceOp.MAX)
        return bool(asked.item())

    return ask


if __name__ == "__main__":
    sys.exit(main())
