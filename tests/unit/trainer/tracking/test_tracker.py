"""A stage neither waits for MLflow nor fails with it; only the attempt that ends the run waits, and not for long."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.memory_store import MemoryStore
from tests.unit.trainer.report.sample import BEGAN, spec
from tests.unit.trainer.tracking.fake_mlflow import FakeMLflow, serving

from tandem_api.contract import CandidateScore, StageRequest, StageResult, StorageRef
from tandem_api.errors import EXIT_CONFIGURATION, EXIT_PREEMPTED, EXIT_RETRYABLE
from tandem_api.v1alpha1.status import (
    Artifact,
    Candidate,
    StageName,
    StageStatus,
    Status,
    StepKindName,
    StepStatus,
    Usage,
)
from tandem_trainer.context import StageContext
from tandem_trainer.progress import ProgressReporter
from tandem_trainer.tracking import tracker as module
from tandem_trainer.tracking.content import step_page
from tandem_trainer.tracking.ending import failure_ends_run
from tandem_trainer.tracking.tracker import Tracker

BEST = Candidate(id="vanilla@base", step=0, score="0.5000", low="0.4000", high="0.6000", n=20)


def request(
    uri: str, stage: StageName = "train", kind: StepKindName = "w", index: int = 2, failures: int = 0, **settings: Any
) -> StageRequest:
    """The request of a stage that works on the last of the run's steps."""
    done = StageStatus(name="evaluate", state="Succeeded", started=BEGAN, finished=BEGAN + timedelta(seconds=5))
    steps = [
        StepStatus(index=0, kind="baseline", state="Succeeded", started=BEGAN, finished=done.finished, stages=(done,)),
        StepStatus(
            index=index,
            kind=kind,
            state="Running",
            started=BEGAN + timedelta(seconds=5),
            stages=(StageStatus(name=stage, state="Running", attempt=1, failures=failures, started=BEGAN),),
        ),
    ]
    return StageRequest(
        namespace="default",
        name="reviews",
        uid="u1",
        index=index,
        kind=kind,
        stage=stage,
        attempt=1,
        storage=StorageRef(bucket="bucket"),
        spec=spec(attempts=2, tracking={"mlflow": {"uri": uri, "experiment": "e", **settings}}),
        status=Status(steps=tuple(steps), started=BEGAN, best=BEST, baseline=BEST),
    )


def context(wanted: StageRequest, tmp_path: Path) -> StageContext:
    return StageContext(request=wanted, store=MemoryStore(), progress=ProgressReporter(), cache=tmp_path)


@pytest.fixture
def fake() -> Iterator[FakeMLflow]:
    with serving(FakeMLflow()) as served:
        yield served


def eventually(happened: Any) -> None:
    deadline = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def points(fake: FakeMLflow, name: str) -> dict[int, float]:
    return {
        one["step"]: one["value"] for run in fake.runs for one in run["data"]["metrics"] if one["key"] == name
    }  # fmt: skip


def test_losses_and_settled_trials_are_logged_while_the_stage_works(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LIVE_SECONDS", 0.05)
    at = context(request(fake.uri), tmp_path)
    tracker = Tracker(at, {})
    tracker.start()
    for step in range(1, 6):
        at.progress.report(step, 10, loss=1.0 / step)
    eventually(lambda: len(points(fake, "loss")) == 5)
    tracker.close()

    at = context(request(fake.uri, "optimize", "p", 1), tmp_path)
    rows = [
        {"index": 0, "score": 0.3, "dropped": False, "full": None},
        {"index": 1, "score": 0.2, "dropped": True, "full": None},
        {"index": 2, "score": 0.9, "dropped": False, "full": {"score": 0.8}},
    ]
    at.store.put(at.request.stage_layout.trials, "\n".join(map(json.dumps, rows)).encode())
    tracker = Tracker(at, {})
    tracker.start()
    eventually(lambda: points(fake, "candidate_score") == {2: 0.8})
    assert points(fake, "candidate_score_partial") == {1: 0.2}
    tracker.close()


def test_a_stage_in_between_never_waits_and_says_what_went_wrong(tmp_path):
    at = context(request("http://127.0.0.1:1", credentialsSecret="s"), tmp_path)
    tracker = Tracker(at, {"MLFLOW_TRACKING_TOKEN": "hunter2"})
    tracker.start()
    eventually(lambda: tracker._problem is not None)
    started = time.monotonic()
    result = tracker.finish(StageResult(facts={"rows": 3}))
    assert time.monotonic() - started < module.LAST_SECONDS / 2
    assert result.facts["rows"] == 3
    assert "cannot be reached" in str(result.facts["mlflow"]) and "a later stage makes up" in str(
        result.facts["mlflow"]
    )


def final(uri: str, **settings: Any) -> tuple[StageRequest, StageResult]:
    bundle = Artifact(uri="s3://bucket/default/reviews/u1/result/", sha256="0" * 64)
    score = CandidateScore(score=0.7, low=0.6, high=0.8, n=20)
    result = StageResult(bundle=bundle, scores=(score,), usage=Usage(prompt_tokens=5))
    return request(uri, "evaluate", "final", 2, **settings), result


def test_the_last_attempt_waits_only_so_long(fake, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "LAST_SECONDS", 0.5)
    fake.script = lambda method, path, body: (503, b"")
    wanted, result = final(fake.uri)
    tracker = Tracker(context(wanted, tmp_path), {})
    tracker.start()
    assert "docs/mlflow.md says how" in str(tracker.finish(result).facts["mlflow"])


def test_the_last_attempt_waits_until_a_server_that_stumbles_has_it_all(fake, tmp_path):
    answers = iter([(503, b"")] * 2)
    fake.script = lambda method, path, body: next(answers, None)
    wanted, result = final(fake.uri)
    tracker = Tracker(context(wanted, tmp_path), {})
    tracker.start()
    assert "mlflow" not in tracker.finish(result).facts
    assert {run["info"]["status"] for run in fake.runs} == {"FINISHED"}
    assert points(fake, "test_score") == {0: 0.7}


def test_an_end_that_is_logged_twice_is_one_end(fake, tmp_path):
    wanted, result = final(fake.uri, registeredModel="reviews")
    at = context(wanted, tmp_path)
    seen = []
    for _ in range(2):
        # As if the first worker had been killed before it could say how the runs stand.
        for run in fake.runs:
            run["info"]["status"] = "RUNNING"
        tracker = Tracker(at, {})
        tracker.start()
        tracker.finish(result)
        seen.append([(run["info"], len(run["data"]["metrics"])) for run in json.loads(json.dumps(fake.runs))])
    assert seen[0] == seen[1]
    assert [version["source"] for version in fake.versions] == [result.bundle.uri]


@pytest.mark.parametrize(
    ("code", "failures", "is_last"),
    [
        (EXIT_CONFIGURATION, 0, True),
        (EXIT_RETRYABLE, 0, False),
        (EXIT_RETRYABLE, 1, True),
        (EXIT_PREEMPTED, 1, False),
    ],
)
def test_the_failure_that_ends_the_run_is_told(fake, tmp_path, code, failures, is_last):
    wanted = request(fake.uri, failures=failures)
    assert failure_ends_run(wanted, code) is is_last
    tracker = Tracker(context(wanted, tmp_path), {})
    tracker.start()
    eventually(lambda: len(fake.runs) == 3)
    tracker.fail(code, "BadConfiguration", "rank is too large")
    states = [run["info"]["status"] for run in fake.runs]
    assert states == (["FAILED", "FINISHED", "FAILED"] if is_last else states)
    assert ("FAILED" in states) is is_last


def test_the_best_of_the_candidates_scores_is_the_steps_whatever_a_dropped_one_scored_on_a_few_examples():
    stage = StageStatus(name="optimize", state="Succeeded", started=BEGAN, finished=BEGAN + timedelta(seconds=100))
    step = StepStatus(
        index=1, kind="p", state="Succeeded", started=BEGAN, finished=stage.finished, score="0.7000", stages=(stage,)
    )
    trials = [
        {"index": 0, "n": 20, "score": 0.65, "dropped": False, "full": {"score": 0.65, "n": 20}},
        {"index": 1, "n": 7, "score": 0.857, "dropped": True, "full": None},
        {"index": 2, "n": 20, "score": 0.7, "dropped": False, "full": {"score": 0.7, "n": 20}},
    ]
    wanted = request("http://mlflow", "optimize", "p", 1)
    lines = "\n".join(map(json.dumps, trials)).encode()
    page = step_page(wanted, step, {wanted.stage_layout.trials: lines}.get)
    assert max(point.value for point in page.points if point.key == "candidate_score") == 0.7
    found = {(point.key, point.step): point.value for point in page.points if point.key.startswith("candidate_score")}
    assert found == {
        ("candidate_score", 0): 0.65,
        ("candidate_score_partial", 1): 0.857,
        ("candidate_score", 2): 0.7,
    }


def test_the_curve_of_a_training_is_spread_over_its_time():
    stage = StageStatus(name="train", state="Succeeded", started=BEGAN, finished=BEGAN + timedelta(seconds=100))
    step = StepStatus(index=2, kind="w", state="Running", started=BEGAN, stages=(stage,))
    lines = [{"step": n, "epoch": 1, "loss": 1 / n, "lr": 0.1} for n in (1, 2, 4)] + [{"step": 4, "eval_loss": 0.5}]
    log = "\n".join(map(json.dumps, lines)).encode()
    wanted = request("http://mlflow")
    layout = wanted.layout.stage(2, "w", "train")
    page = step_page(wanted, step, {f"{layout.root}train_log.jsonl": log}.get)
    began = int(BEGAN.timestamp() * 1000)
    losses = {(point.step, point.value): point.timestamp - began for point in page.points if point.key == "loss"}
    assert losses == {(1, 1.0): 25_000, (2, 0.5): 50_000, (4, 0.25): 100_000}
    assert [p.value for p in page.points if p.key == "eval_loss"] == [0.5]
