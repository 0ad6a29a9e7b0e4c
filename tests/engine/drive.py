"""One engine process over the local platform, with scripted children: `drive.py RUN.yaml WORKDIR [--die-at N]`.

With `--die-at N` the process kills itself (SIGKILL) right before its N-th write, a save of the status or an action.
Prints the number of writes at the end. Exit code 0: the run succeeded, 1: it failed.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from pathlib import Path

import yaml

from tandem_api.conditions import SUCCEEDED, is_true
from tandem_api.contract import BASE_MODEL, served_names
from tandem_api.v1alpha1 import OptimizationRun, Status
from tandem_api.v1alpha1.run import parse_run
from tandem_operator.actions import Action
from tandem_operator.platforms.local.commands import Commands, ServerLaunch
from tandem_operator.platforms.local.manifest import resolve
from tandem_operator.platforms.local.platform import LocalPlatform, LocalSettings
from tandem_operator.reconcile import reconcile

HERE = Path(__file__).parent


class MortalPlatform(LocalPlatform):
    """Dies right before its `die_at`-th write."""

    writes = 0
    die_at = -1

    def save(self, run: OptimizationRun, status: Status) -> None:
        # A change of progress alone is no step of the run: it is not counted, so that the points are comparable.
        before, after = run.status.model_copy(update={"step": None}), status.model_copy(update={"step": None})
        if before != after:
            self._count()
        super().save(run, status)

    def execute(self, run: OptimizationRun, action: Action) -> None:
        self._count()
        super().execute(run, action)

    def _count(self) -> None:
        if self.writes == self.die_at:
            os.kill(os.getpid(), signal.SIGKILL)
        self.writes += 1


def scripted_server(latency: float, log: Path | None) -> Commands:
    def command(launch: ServerLaunch) -> tuple[str, ...]:
        argv = [sys.executable, str(HERE.parent / "scripted_lm" / "server.py"), "--port", str(launch.port)]
        # As vLLM: adapters that it applies are served beside the base model, a merged one is all there is.
        base = [BASE_MODEL] if launch.mode in ("reload", "rollout") else []
        for name in (*base, *served_names(launch.name, launch.adapter)):
            argv += ["--model", name]
        argv += ["--latency", str(latency), "--script", f"{HERE / 'model.py'}:answer"]
        return (*argv, *(("--log", str(log)) if log else ()))

    return Commands(worker=(sys.executable, str(HERE / "worker.py")), server=command)


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("manifest", type=Path)
    parser.add_argument("workdir", type=Path)
    parser.add_argument("--die-at", type=int, default=-1)
    parser.add_argument("--latency", type=float, default=0.0)
    parser.add_argument("--log", type=Path)
    parser.add_argument("--timeout", type=float, default=180)
    options = parser.parse_args()
    run = resolve(parse_run(yaml.safe_load(options.manifest.read_text())), options.manifest.parent)
    settings = LocalSettings(commands=scripted_server(options.latency, options.log), has_gpu=False)
    deadline = time.monotonic() + options.timeout
    with MortalPlatform(options.workdir, run, settings) as platform:
        platform.die_at = options.die_at
        while not reconcile(platform).finished:
            platform.wait(0.05)
            if time.monotonic() > deadline:
                print("the run did not end in time", file=sys.stderr)
                return 3
        platform.fetch_result()
        print(f"writes={platform.writes}")
        return 0 if is_true(platform.load().status.conditions, SUCCEEDED) else 1


if __name__ == "__main__":
    sys.exit(main())
