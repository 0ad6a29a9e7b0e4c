"""How close evaluation comes to the call rate that its slots allow.

    python tests/bench/evaluation_rate.py [--slots 32 128 512] [--seconds 12]

A scripted server, a process of its own, answers each call after 0.3 s, so that N slots allow N / 0.3 calls a second. A
stage's own session (client, runner, evaluator, ledger) runs an inline program with the plain adapter against it. One
line for each number of slots: the rate over the whole run, the part of the allowed rate that it is, and this process's
CPU time a call. Ends with 1 when a part is below the target of 0.95.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tandem_api.contract import Endpoint, StageRequest, StorageRef
from tandem_api.v1alpha1 import Spec
from tandem_trainer.context import StageContext
from tandem_trainer.evaluate.evaluator import Job
from tandem_trainer.progress import ProgressReporter
from tandem_trainer.stages.session import open_session

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from tests.memory_store import MemoryStore  # noqa: E402

LATENCY_SECONDS = 0.3
TARGET = 0.95
DATA = "data.jsonl"


@contextmanager
def scripted_server(folder: Path) -> Iterator[str]:
    """The URL of a server that answers everything with 42; its process is gone when the block ends."""
    script = folder / "answers.py"
    script.write_text('def answer(request):\n    return " 42"\n', encoding="utf-8")
    command = [sys.executable, str(ROOT / "tests/scripted_lm/server.py"), "--latency", str(LATENCY_SECONDS)]
    command += ["--script", f"{script}:answer"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def build_request(url: str, store: MemoryStore, slots: int) -> StageRequest:
    """An `evaluate` stage whose training and validation sets are both the object DATA."""
    spec = {
        "program": {"inline": {"signature": "question -> answer", "adapter": "plain"}},
        "metric": {"builtin": "exact-match", "field": "answer"},
        "data": {"train": {"uri": store.uri(DATA)}, "validation": {"uri": store.uri(DATA)}, "inputs": ["question"]},
        "model": {"uri": "file:model"},
        "evaluation": {"concurrency": slots},
    }
    return StageRequest(
        namespace="default",
        name="bench",
        uid="0",
        index=0,
        kind="baseline",
        stage="evaluate",
        attempt=1,
        spec=Spec.model_validate(spec),
        storage=StorageRef(bucket="bucket"),
        endpoint=Endpoint(url=url, model="base"),
    )


async def measure(context: StageContext) -> tuple[int, float, float]:
    """Evaluate the whole validation set: (calls, wall-clock seconds, CPU seconds of this process)."""
    async with open_session(context) as session:
        jobs = [Job(session.program.vanilla, example) for example in session.splits.validation]
        wall, cpu = time.perf_counter(), time.process_time()
        records = await session.evaluator.run(jobs, progress=session.reporter("bench"))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        assert session.usage.calls == len(jobs)
        assert all(record.status == "ok" for record in records)
        return len(jobs), wall, cpu


def main() -> int:
    parser = argparse.ArgumentParser(description="The call rate of evaluation, against what the slots allow.")
    parser.add_argument("--slots", type=int, nargs="+", default=[32, 128, 512])
    parser.add_argument("--seconds", type=float, default=12.0, help="length of each run at the full rate")
    arguments = parser.parse_args()
    worst = 1.0
    for slots in arguments.slots:
        # Whole rounds of all slots, so that an unfilled last round does not blur the rate.
        calls = slots * round(arguments.seconds / LATENCY_SECONDS)
        store = MemoryStore()
        rows = (json.dumps({"question": f"What is {n} plus {n}?", "answer": str(2 * n)}) for n in range(calls))
        store.put(DATA, "\n".join(rows).encode())
        with tempfile.TemporaryDirectory() as folder, scripted_server(Path(folder)) as url:
            context = StageContext(
                request=build_request(url, store, slots),
                store=store,
                progress=ProgressReporter(Path(folder, "progress.json")),
                cache=Path(folder),
            )
            calls, wall, cpu = context.run(measure(context))
        allowed = slots / LATENCY_SECONDS
        part = calls / wall / allowed
        worst = min(worst, part)
        print(
            f"slots {slots:3d}  {calls / wall:7.1f} calls/s of {allowed:7.1f} allowed  ratio {part:.3f}  "
            f"CPU {1000 * cpu / calls:.3f} ms/call  ({calls} calls in {wall:.2f} s)",
            flush=True,
        )
    return 0 if worst >= TARGET else 1


if __name__ == "__main__":
    raise SystemExit(main())
