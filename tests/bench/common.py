"""What the benchmarks share: the scripted server as a process, one stage run on the spot, cells in processes."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from tests.memory_store import MemoryStore

from tandem_api.contract import Endpoint, StageRequest, StageResult, StorageRef
from tandem_api.v1alpha1 import Spec
from tandem_trainer.context import StageContext
from tandem_trainer.progress import ProgressReporter

ROOT = Path(__file__).parents[2]
#: The served name.
MODEL = "base"

T = TypeVar("T")


@contextmanager
def scripted_server(script: Path, *, latency: float) -> Iterator[str]:
    """The URL of a server that answers by the script's `answer`; its process is gone when the block ends."""
    command = [sys.executable, str(ROOT / "tests/scripted_lm/server.py"), "--latency", str(latency)]
    command += ["--model", MODEL, "--script", f"{script}:answer"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def stats(url: str) -> dict[str, Any]:
    """What the scripted server has counted."""
    with urllib.request.urlopen(f"{url}/stats", timeout=10) as response:
        counted: dict[str, Any] = json.load(response)
    return counted


def stage_context(spec: Mapping[str, Any], url: str, folder: Path, store: MemoryStore, **request: Any) -> StageContext:
    """One attempt of a stage of a run with this spec, on the model at `url`; `request`: more of a StageRequest.

    The store is in memory: what is measured is the stage and the model server, not S3.
    """
    return StageContext(
        request=StageRequest(
            namespace="default",
            name="bench",
            uid="0",
            attempt=1,
            spec=Spec.model_validate(spec),
            storage=StorageRef(bucket="bucket"),
            endpoint=Endpoint(url=url, model=MODEL),
            **request,
        ),
        store=store,
        progress=ProgressReporter(folder / "progress.json"),
        cache=folder,
    )


def optimize(spec: Mapping[str, Any], url: str, folder: Path) -> tuple[StageResult, MemoryStore]:
    """The `p` step of a run with this spec: its result, and the store that its artifacts lie in."""
    from tandem_trainer.stages import optimize

    store = MemoryStore()
    context = stage_context(spec, url, folder, store, index=1, kind="p", stage="optimize")
    return optimize.run(context), store


def in_process(function: Callable[..., T], *arguments: object, log: Path) -> T:
    """Call it in a process of its own, so that neither side pays for what the other has left; its output goes to `log`.

    Raises what it raised.
    """
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        future = pool.submit(_logged, log, function, *arguments)
        try:
            return future.result()
        finally:
            if not future.done():  # we were asked to stop
                for child in multiprocessing.active_children():
                    child.terminate()


def _logged(log: Path, function: Callable[..., T], *arguments: object) -> T:
    with log.open("w") as file, contextlib.redirect_stdout(file), contextlib.redirect_stderr(file):
        return function(*arguments)


def table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A Markdown table; the first column is text, the others are numbers."""
    lines = [head, ("---", *("---:" for _ in head[1:])), *rows]
    return "\n".join(f"| {' | '.join(row)} |" for row in lines)
