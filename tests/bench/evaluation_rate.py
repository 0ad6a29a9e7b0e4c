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
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tandem_trainer.context import StageContext
from tandem_trainer.evaluate.evaluator import Job
from tandem_trainer.stages.session import open_session

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.bench.common import scripted_server, stage_context
from tests.memory_store import MemoryStore

LATENCY_SECONDS = 0.3
TARGET = 0.95
DATA = "data.jsonl"


def build_spec(store: MemoryStore, slots: int) -> dict[str, Any]:
    """Training and validation set are both the object DATA."""
    return {
        "program": {"inline": {"signature": "question -> answer", "adapter": "plain"}},
        "metric": {"builtin": "exact-match", "field": "answer"},
        "data": {"train": {"uri": store.uri(DATA)}, "validation": {"uri": store.uri(DATA)}, "inputs": ["question"]},
        "model": {"uri": "file:model"},
        "evaluation": {"concurrency": slots},
    }


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
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            script = folder / "answers.py"
            script.write_text('def answer(request):\n    return " 42"\n', encoding="utf-8")
            with scripted_server(script, latency=LATENCY_SECONDS) as url:
                spec = build_spec(store, slots)
                context = stage_context(spec, url, folder, store, index=0, kind="baseline", stage="evaluate")
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
