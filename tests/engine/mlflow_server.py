"""A real MLflow server with its SQLite database, and a look into that database."""

from __future__ import annotations

import os
import signal
import socket
import sqlite3
import subprocess
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.request import urlopen

from tests.engine.world import ROOT

START_SECONDS = 240


def python() -> str:
    """The Python of the server's own environment, made once. Raises CalledProcessError."""
    told = subprocess.run(
        [str(ROOT / "tools" / "side-environment"), "mlflow"], check=True, stdout=subprocess.PIPE, text=True
    )
    return told.stdout.strip()


@dataclass
class Logged:
    """One run of MLflow as the database has it."""

    id: str
    name: str
    status: str
    lifecycle: str
    start: int
    end: int | None
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, dict[int, float]] = field(default_factory=dict)
    """By metric: its value at each step."""
    repeated: list[tuple[str, int]] = field(default_factory=list)
    """Metrics with more than one value at a step."""


class MLflowServer:
    """One server on one port, which may be killed and started again."""

    def __init__(self, folder: Path, interpreter: str) -> None:
        self.folder = folder
        self._python = interpreter
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = int(free.getsockname()[1])
        self.uri = f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Start, and wait until it answers."""
        argv = [self._python, "-m", "mlflow", "server", "--backend-store-uri", f"sqlite:///{self.folder}/mlflow.db"]
        argv += ["--artifacts-destination", str(self.folder / "artifacts"), "--workers", "1"]
        argv += ["--host", "127.0.0.1", "--port", str(self.port)]
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("MLFLOW_", "PYTHON"))}
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                argv, cwd=self.folder, stdout=log, stderr=log, start_new_session=True,
                env=environment | {"MLFLOW_DISABLE_TELEMETRY": "true", "DO_NOT_TRACK": "true"},
            )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS
        while not self.answers():
            is_late = time.monotonic() > deadline or self._process.poll() is not None
            assert not is_late, (self.folder / "server.log").read_text()[-3000:]
            time.sleep(0.2)

    def answers(self) -> bool:
        try:
            with urlopen(f"{self.uri}/health", timeout=5) as response:
                return bool(response.status == 200)
        except (URLError, OSError):
            return False

    def kill(self) -> None:
        """kill -9 of the server and its workers."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def runs(self, experiment: str) -> list[Logged]:
        """All runs of the experiment, the deleted ones, too."""
        with self._database() as database:
            rows = database.execute(
                "SELECT run_uuid, r.name, status, r.lifecycle_stage, start_time, end_time FROM runs r "
                "JOIN experiments e USING (experiment_id) WHERE e.name = ?",
                (experiment,),
            ).fetchall()
            return [self._logged(database, row) for row in rows]

    def versions(self, model: str) -> list[dict[str, Any]]:
        """All versions of the registered model."""
        names = ("version", "source", "run_id", "description")
        with self._database() as database:
            rows = database.execute(
                f"SELECT {', '.join(names)} FROM model_versions WHERE name = ?", (model,)
            ).fetchall()  # fmt: skip
        return [dict(zip(names, row, strict=True)) for row in rows]

    def files(self) -> dict[str, Path]:
        """The artifacts that were put into the server, by their names."""
        return {path.name: path for path in (self.folder / "artifacts").rglob("*") if path.is_file()}

    def _database(self) -> sqlite3.Connection:
        return sqlite3.connect(f"file:{self.folder}/mlflow.db?mode=ro", uri=True, timeout=60)

    def _logged(self, database: sqlite3.Connection, row: tuple[Any, ...]) -> Logged:
        logged = Logged(*row)

        def pairs(table: str) -> dict[str, str]:
            return dict(database.execute(f"SELECT key, value FROM {table} WHERE run_uuid = ?", (logged.id,)))

        logged.tags, logged.params = pairs("tags"), pairs("params")
        points = database.execute("SELECT key, step, value FROM metrics WHERE run_uuid = ?", (logged.id,)).fetchall()
        for key, step, value in points:
            logged.metrics.setdefault(key, {})[step] = value
        counted = Counter((key, step) for key, step, _ in points)
        logged.repeated = [point for point, count in counted.items() if count > 1]
        return logged
