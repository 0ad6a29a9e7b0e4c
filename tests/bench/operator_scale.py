"""How the operator grows with the number of runs: memory, pass durations, API writes, start-up.

    python -m tests.bench.operator_scale [100 300 1000] [--active 200] [--stage-seconds 60] [--out docs/scale.json]

The API server, its controllers and the operator are real; pods are objects only, and workers end as a script says:
after half a minute to one and a half, which is soon, since real ones have a model to ask. Runs come two a second.
Everything runs on this machine, so times are those of a machine that does all of it at once.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any, Final

import psutil
from pydantic.alias_generators import to_camel
from tests.faults.children import OPERATOR_MODULES
from tests.faults.control_plane import ControlPlane
from tests.faults.kubelet import Ending, Kubelet
from tests.faults.manifests import manifest
from tests.faults.proxy import Answer, Call, Forward
from tests.faults.world import Ground, World
from tests.faults.zygote import Zygote
from tests.unit.operator.kubernetes.controllers import ordinary

from tandem_api.contract import StageRequest
from tandem_api.v1alpha1.run import KIND
from tandem_operator.settings import OperatorSettings

#: A Lease that a busy machine does not lose, and waits as they are by default: those of the tests are short.
SETTINGS: Final[dict[str, Any]] = {
    "lease": {"durationSeconds": 60, "renewSeconds": 5},
    **{
        to_camel(name): OperatorSettings.model_fields[name].default
        for name in ("poll_seconds", "start_failure_seconds", "unschedulable_seconds")
    },
}
#: Between two looks at how many have ended.
LOOK_SECONDS: Final = 10.0
#: Runs that are created in a second, at most.
A_SECOND: Final = 2
_RUN: Final = re.compile(r"run-\d{4}")
_BUCKET: Final = re.compile(r'^tandem_reconcile_duration_seconds_bucket\{le="([^"]+)"\} (\S+)$', re.MULTILINE)
_RUNS: Final = re.compile(r"^tandem_runs\{[^}]*\} (\S+)$", re.MULTILINE)


@dataclass
class Measured:
    """What one size came to."""

    runs: int
    active: int
    seconds: float = 0.0
    """From the first run's creation to the last one's end."""
    peak_rss_mb: float = 0.0
    """The operator's, of both its lives."""
    start_seconds: float = 0.0
    """From the start of a new operator, with all runs there, until it has looked at each of them."""
    ready_seconds: float = 0.0
    """Until it is ready."""
    passes: int = 0
    p50_seconds: float = 0.0
    p99_seconds: float = 0.0
    """Of the passes' durations, out of the operator's histogram."""
    cpu_seconds_per_pass: float = 0.0
    """Of the whole operator, watches and start-up included: unlike durations, hardly a matter of what else runs."""
    writes_per_run: float = 0.0
    most_writes: int = 0
    """Of one run."""
    requests_per_run: float = 0.0
    writes: dict[str, float] = field(default_factory=dict)
    """Writes of a run on average, by what they write."""
    load: float = 0.0
    """Of the machine, over the last minute of it."""


class Writes:
    """Counts the operator's requests at the proxy, by run."""

    def __init__(self, world: World) -> None:
        self.by_run: Counter[str] = Counter()
        self.by_target: Counter[str] = Counter()
        self.requests = 0
        world.proxy.calls = None
        world.proxy.rules.append(self._count)

    async def _count(self, call: Call, forward: Forward) -> Answer:
        run = _RUN.match(call.name)
        self.requests += 1
        if run is not None and call.is_write:
            self.by_run[run.group()] += 1
            self.by_target[f"{call.verb} {call.target}"] += 1
        return await forward()


def measure(world: World, runs: int, active: int, worker_seconds: float = 1.0, **spec: Any) -> Measured:
    """Let so many runs pass through the world, at most `active` at once; its operator is started here."""
    found = Measured(runs, active)

    def script(pod: dict[str, Any], request: str) -> Ending:
        message = ordinary(StageRequest.model_validate_json(request)).to_message() if request else ""
        # Runs that came together do not go on in step.
        return Ending(message=message, seconds=worker_seconds * Random(pod["metadata"]["name"]).uniform(0.5, 1.5))

    writes = Writes(world)
    world.kubelet.scripts[world.namespace] = script
    world.operator.start()
    world.operator.wait_until_ready()
    began = time.monotonic()
    created, ended, next_look, cpu = 0, 0, 0.0, 0.0
    durations: Counter[float] = Counter()
    while ended < runs:
        for _ in range(min(runs - created, active - created + ended, A_SECOND)):
            world.api.create(manifest(f"run-{created:04}", world.namespace, **spec))
            created += 1
        assert world.operator.is_running, world.operator.tail()
        if time.monotonic() >= next_look:
            # Seldom: a list of a thousand runs keeps the API server busy, too.
            ended = sum(map(_has_ended, world.api.list(KIND, world.namespace)))
            next_look = time.monotonic() + LOOK_SECONDS
        if created == runs and not found.start_seconds:
            durations += _durations(world)
            found.peak_rss_mb = _peak_mb(world.operator.pid)
            cpu = _cpu_seconds(world.operator.pid)
            _restart(world, found)
        time.sleep(1.0)
    found.seconds = time.monotonic() - began
    durations += _durations(world)
    found.peak_rss_mb = max(found.peak_rss_mb, _peak_mb(world.operator.pid))
    found.passes = sum(durations.values())
    found.cpu_seconds_per_pass = (cpu + _cpu_seconds(world.operator.pid)) / found.passes
    found.p50_seconds, found.p99_seconds = _quantile(durations, 0.5), _quantile(durations, 0.99)
    found.writes_per_run = sum(writes.by_run.values()) / runs
    found.most_writes = max(writes.by_run.values())
    found.requests_per_run = writes.requests / runs
    found.writes = {target: round(count / runs, 2) for target, count in sorted(writes.by_target.items())}
    found.load = os.getloadavg()[0]
    return found


def _restart(world: World, found: Measured) -> None:
    """End the operator and start another one, as in an upgrade, while all runs are there."""
    world.operator.stop()
    began = time.monotonic()
    world.operator.start()
    world.operator.wait_until_ready(600)
    found.ready_seconds = time.monotonic() - began
    while sum(float(count) for count in _RUNS.findall(world.operator.metrics())) < found.runs:
        assert time.monotonic() - began < 1200, world.operator.tail()
        time.sleep(2.0)  # a scrape of a thousand runs costs the operator something, too
    found.start_seconds = time.monotonic() - began


def _has_ended(run: dict[str, Any]) -> bool:
    return bool((run.get("status") or {}).get("finished"))


def _peak_mb(pid: int) -> float:
    """The most memory that a process has had in RAM at once."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) / 1024


def _cpu_seconds(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


def _durations(world: World) -> Counter[float]:
    """Passes by the upper end of their bucket."""
    found: Counter[float] = Counter()
    below = 0
    for bound, total in _BUCKET.findall(world.operator.metrics()):
        count = int(float(total))
        found[float(bound)] += count - below
        below = count
    return found


def _quantile(durations: Counter[float], part: float) -> float:
    """Within the bucket in a straight line, as Prometheus does it."""
    wanted, seen, lower = part * sum(durations.values()), 0, 0.0
    for bound, count in sorted(durations.items()):
        if count and seen + count >= wanted:
            return lower if bound == float("inf") else lower + (bound - lower) * (wanted - seen) / count
        seen, lower = seen + count, bound
    return lower


class _NoStore:
    """No pod here looks for the object store."""

    class ref:
        endpoint, bucket, region = "http://127.0.0.1:9", "tandem", "us-east-1"

    credentials: Final = {"AWS_ACCESS_KEY_ID": "none", "AWS_SECRET_ACCESS_KEY": "none"}


@contextmanager
def ground(folder: Path) -> Iterator[Ground]:
    """A control plane and a kubelet for instant pods."""
    with ExitStack() as stack:
        operators = stack.enter_context(Zygote("operators", folder, OPERATOR_MODULES))
        plane = stack.enter_context(ControlPlane(folder / "plane"))
        kubelet = stack.enter_context(Kubelet(plane.url, plane.token, None, folder / "kubelet"))
        store: Any = _NoStore()
        yield Ground(plane, kubelet, store, operators, folder / "worlds", store)


def main() -> None:
    """Measure each size and write the numbers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, default=[100, 300, 1000])
    parser.add_argument("--active", type=int, default=200)
    parser.add_argument("--stage-seconds", type=float, default=60.0)
    parser.add_argument("--strategy", default="p")
    parser.add_argument("--out", type=Path, default=Path("docs/scale.json"))
    given = parser.parse_args()
    results = []
    for size in given.sizes:
        active = min(given.active, size)
        with (
            tempfile.TemporaryDirectory() as folder,
            ground(Path(folder)) as stands,
            World(stands, f"scale-{size}", SETTINGS) as world,
        ):
            results.append(asdict(measure(world, size, active, given.stage_seconds, strategy=given.strategy)))
        print(json.dumps(results[-1]), flush=True)
        given.out.write_text(
            json.dumps({"strategy": given.strategy, "stageSeconds": given.stage_seconds, "sizes": results}, indent=2)
            + "\n"
        )


if __name__ == "__main__":
    main()
