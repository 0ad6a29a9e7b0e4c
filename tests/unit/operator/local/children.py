"""Scripted children and a small run for the tests of the local platform and of the command line."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import yaml

from tandem_api.v1alpha1 import OptimizationRun
from tandem_api.v1alpha1.run import parse_run
from tandem_operator.platforms.local.commands import Commands, ServerLaunch
from tandem_operator.platforms.local.processes import ENV_WORKDIR

#: Does any stage at once: a score where one is wanted. It notes each start in `starts.txt` beside the workdir.
WORKER = """
import json, os, pathlib
request = json.loads(pathlib.Path(os.environ["TANDEM_REQUEST_FILE"]).read_text())
with open(os.environ["TANDEM_WORKDIR"] + ".starts", "a") as file:
    file.write(f"{request['kind']} {request['stage']} {request['attempt']}\\n")
result = {}
if request["stage"] in ("evaluate", "optimize"):
    score = 0.5 if request["stage"] == "evaluate" else 0.75
    result["scores"] = [{"score": score, "low": score - 0.1, "high": score + 0.1, "n": 20}]
    result["usage"] = {"calls": 20, "promptTokens": 1000, "completionTokens": 100}
if request["stage"] == "optimize":
    prompts = {"uri": "s3://bucket/prompts.json", "sha256": "a" * 64}
    result["scores"][0]["prompts"] = result["prompt_set"] = prompts
progress = {"done": 20, "total": 20, "score": 0.5, "message": "examples"}
pathlib.Path(os.environ["TANDEM_PROGRESS_FILE"]).write_text(json.dumps(progress))
pathlib.Path(os.environ["TANDEM_TERMINATION_FILE"]).write_text(json.dumps(result))
"""

#: Lists one model and is always well: PORT NAME.
SERVER = """
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = json.dumps({"data": [{"id": sys.argv[2]}]}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *arguments):
        pass
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def python(script: str, *arguments: str) -> tuple[str, ...]:
    """The command that runs a script in a bare, fast interpreter."""
    return (sys.executable, "-S", "-E", "-c", script, *arguments)


def scripted_server(launch: ServerLaunch) -> tuple[str, ...]:
    return python(SERVER, str(launch.port), launch.name)


COMMANDS = Commands(worker=python(WORKER), server=scripted_server)


def manifest(folder: Path, **spec: Any) -> dict[str, Any]:
    """A manifest with one `p` step whose data files are in `folder`; its S3 is one that nobody asks."""
    for name in ("train", "validation"):
        rows = [{"question": f"{name} {row}", "answer": "yes"} for row in range(4)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "apiVersion": "tandem.dev/v1alpha1",
        "kind": "OptimizationRun",
        "metadata": {"name": "small"},
        "spec": {
            "program": {"inline": {"signature": "question -> answer", "adapter": "plain"}},
            "metric": {"builtin": "exact-match", "field": "answer"},
            "data": {
                "train": {"uri": "file:train.jsonl"},
                "validation": {"uri": "file:validation.jsonl"},
                "inputs": ["question"],
            },
            "model": {"uri": "hf://nobody/nothing"},
            "strategy": "p",
            "storage": {"s3": {"bucket": "bucket", "endpoint": "http://127.0.0.1:9"}},
            **spec,
        },
    }


def write_manifest(folder: Path, **spec: Any) -> Path:
    """The same as a file."""
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(manifest(folder, **spec), sort_keys=False))
    return path


def small_run(folder: Path, **spec: Any) -> OptimizationRun:
    """The same, parsed."""
    return parse_run(manifest(folder, **spec))


def until(condition: Callable[[], object], seconds: float = 10.0) -> None:
    """Return as soon as the condition holds; fail when it takes too long."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "the wait is over, and it has not happened"
        time.sleep(0.005)


def living(workdir: Path) -> list[psutil.Process]:
    """Every process that belongs to the run in this folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.environ().get(ENV_WORKDIR) == str(workdir) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.Error, OSError):
            continue
    return found


@contextmanager
def nothing_left(workdir: Path) -> Iterator[Path]:
    """Fail, after ending it, if a process of the run in this folder is alive at the end."""
    yield workdir
    left = living(workdir)
    for process in left:
        process.kill()
    assert left == []
