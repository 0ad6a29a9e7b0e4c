"""The real operator as a process of its own, which can be killed, paused and started anew."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import psutil
import urllib3
import yaml
from tests.faults.zygote import Forked, Start, Zygote

from tandem_operator.platforms.local.machine import LOOPBACK, free_port

#: Short waits, but for what a slow machine might need.
SETTINGS: Final[dict[str, Any]] = {
    "images": {"trainer": "tandem-trainer:test"},
    "defaults": {
        "serving": {"resources": {"limits": {"nvidia.com/gpu": 1}}},
        "training": {"resources": {"limits": {"nvidia.com/gpu": 1}}},
    },
    "startFailureSeconds": 15,
    "unschedulableSeconds": 10,
    "pollSeconds": 2,
    "lease": {"durationSeconds": 4, "renewSeconds": 1},
    "logFormat": "text",
}


@dataclass
class OperatorProcess:
    """One replica. Started again it is the same pod with a new container: it need not wait for its own Lease."""

    zygote: Zygote
    folder: Path
    kubeconfig: Path
    namespace: str
    """Of the operator's Lease."""
    pod: str = "operator-0"
    settings: dict[str, Any] = field(default_factory=dict)
    """What replaces `SETTINGS`, key by key."""
    starts: int = 0
    process: Forked | None = None
    health_port: int = field(default_factory=free_port)
    metrics_port: int = field(default_factory=free_port)

    @property
    def log(self) -> Path:
        """What it has said, all starts together."""
        return self.folder / f"{self.pod}.log"

    @property
    def is_running(self) -> bool:
        return self.process is not None and self.process.wait(0) is None

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def start(self) -> None:
        """Start it; it leads when it has the Lease."""
        assert not self.is_running, "it runs already"
        self.folder.mkdir(parents=True, exist_ok=True)
        config = self.folder / f"{self.pod}.yaml"
        ports = {"healthPort": self.health_port, "metricsPort": self.metrics_port}
        config.write_text(yaml.safe_dump({**SETTINGS, **ports, **self.settings}))
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        environment |= {
            "KUBECONFIG": str(self.kubeconfig),
            "TANDEM_OPERATOR_CONFIG": str(config),
            "POD_NAME": self.pod,
            "POD_NAMESPACE": self.namespace,
        }
        target = "tests.faults.children:operator"
        self.process = self.zygote.fork(Start(target, (), environment, self.folder, self.log))
        self.starts += 1

    def kill(self) -> None:
        """kill -9, if it runs; returns when it is gone."""
        if self.process is not None:
            self.process.kill()

    def stop(self, seconds: float = 30.0) -> int | None:
        """SIGTERM, as before an upgrade; its exit code, or None when it did not end in time and was killed."""
        assert self.process is not None
        self.process.send(signal.SIGTERM)
        code = self.process.wait(seconds)
        self.process.kill()
        return code

    def pause(self) -> None:
        """SIGSTOP."""
        assert self.process is not None
        self.process.send(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        assert self.process is not None
        self.process.send(signal.SIGCONT)

    def restart(self) -> None:
        """kill -9 and a new one."""
        self.kill()
        self.start()

    def wait_until_ready(self, seconds: float = 60.0) -> None:
        """Until its /readyz says so. Raises AssertionError with its log."""
        end = time.monotonic() + seconds
        while not self._is_ready():
            assert self.is_running and time.monotonic() < end, f"the operator is not ready:\n{self.tail()}"
            time.sleep(0.05)

    def metrics(self) -> str:
        """Its /metrics."""
        url = f"http://{LOOPBACK}:{self.metrics_port}/metrics"
        return urllib3.request("GET", url, timeout=10, retries=False).data.decode()

    def footprint(self) -> dict[str, int]:
        """What it holds: `rss` and `uss` in bytes, `threads`, `fds`, `sockets`."""
        process = psutil.Process(self.pid)
        memory = process.memory_full_info()
        return {
            "rss": memory.rss,
            "uss": memory.uss,
            "threads": process.num_threads(),
            "fds": process.num_fds(),
            "sockets": len(process.net_connections()),
        }

    def tail(self, lines: int = 40) -> str:
        """The end of its log."""
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-lines:]) if self.log.exists() else ""

    def _is_ready(self) -> bool:
        try:
            url = f"http://{LOOPBACK}:{self.health_port}/readyz"
            return urllib3.request("GET", url, timeout=5, retries=False).status == 200
        except urllib3.exceptions.HTTPError:
            return False
