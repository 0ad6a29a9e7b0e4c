"""Several training processes under torchrun, seen from the worker that starts them.

They share a folder: progress, checkpoints, failures and the adapter come out. The worker alone talks to the object
store, so that training never waits for it, and asks the processes to stop by a file.
"""

from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory
from typing import Any, Final

from tandem_api.errors import PreemptedError, StorageUnavailableError, TandemError
from tandem_trainer.lora.checkpoint import Keeper
from tandem_trainer.lora.exchange import Exchange
from tandem_trainer.lora.learner import Lesson
from tandem_trainer.lora.train import Trained
from tandem_trainer.lora.trainer import Hooks
from tandem_trainer.lora.world import World

logger = logging.getLogger(__name__)

_LOOK_SECONDS: Final = 0.2
#: torchrun gives its processes 30 s to end.
_END_SECONDS: Final = 40
_TAIL_LINES: Final = 20


class TrainingProcessError(TandemError):
    """A training process died, or failed in a way that a later attempt may not meet again."""

    code = "TrainingProcessDied"


def learn_together(lesson: Lesson, world: World, checkpoints: Keeper, hooks: Hooks) -> Trained:
    """`learner.learn` in all processes of this machine, each with its share of every batch.

    Raises what they raise: PreemptedError with a checkpoint kept, ConfigurationError, DataError; and
    TrainingProcessError, with the end of their log, when one dies.
    """
    exchange = Exchange(lesson.plan.workspace / "exchange")
    exchange.folder.mkdir()
    # The workspace may lie on a volume that other pods write to, and whoever writes a pickle decides what is run: the
    # lesson lies in a folder of this container's own.
    with TemporaryDirectory(prefix="tandem-lesson-") as private:
        file = Path(private, "lesson.pickle")
        file.write_bytes(pickle.dumps((lesson, checkpoints.latest(), os.getpid())))
        module = ("-m", "tandem_trainer.lora.process", str(exchange.folder), str(file))
        command = [sys.executable, "-m", "torch.distributed.run", *world.arguments, *module]
        with _launched(command, world) as (processes, tail):
            while processes.poll() is None:
                time.sleep(_LOOK_SECONDS)
                if hooks.should_stop():
                    exchange.stop.touch()
                    if not exchange.progress.exists():
                        raise PreemptedError("the worker was asked to stop (SIGTERM) before the first step")
                _pass_on(exchange, checkpoints, hooks)
            code = processes.returncode
    _pass_on(exchange, checkpoints, hooks)
    failure = exchange.first_failure()
    if code == 0 and failure is None:
        return exchange.trained()
    raise why_they_ended(failure, code, "\n".join(tail))


def _pass_on(exchange: Exchange, checkpoints: Keeper, hooks: Hooks) -> None:
    """Report the progress that is new, and upload the checkpoints that wait."""
    progress = exchange.new_progress()
    if progress is not None:
        hooks.report(*progress)
    for folder, note in exchange.checkpoints():
        try:
            checkpoints.save(folder, **note)
        except StorageUnavailableError as error:
            if hooks.should_stop():
                raise
            # The next one may get through; to give up here would lose what the checkpoint is there to keep.
            logger.warning("the checkpoint of step %d is left out: %s", note["step"], error)
        rmtree(folder)


def why_they_ended(failure: dict[str, Any] | None, code: int, tail: str) -> TandemError:
    """The error for the first process's failure, torchrun's exit code and the end of the log."""
    known = {kind.code: kind for kind in TandemError.__subclasses__()}
    if failure is not None and failure["error"] in known:
        return known[failure["error"]](failure["message"])
    first = f"rank {failure['rank']}: {failure['message']}" if failure is not None else "none of them said why"
    return TrainingProcessError(
        f"the training processes died ({first}; torchrun ended with {code}); a process that was killed (SIGKILL) most "
        f"often needed more memory than the container has. The end of their log:\n{tail}"
    )


@contextmanager
def _launched(command: list[str], world: World) -> Iterator[tuple[subprocess.Popen[str], deque[str]]]:
    """torchrun and the last lines of its log; they have all ended when the block has."""
    threads = max(1, (os.cpu_count() or 1) // world.processes)
    environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    ) as process:
        reader = threading.Thread(target=_follow, args=(process, tail), daemon=True)
        reader.start()
        try:
            yield process, tail
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(_END_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
            reader.join(_END_SECONDS)


def _follow(process: subprocess.Popen[str], tail: deque[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        sys.stderr.write(line)
        tail.append(line.rstrip())
