"""Faults of the server, the storage and the input, through whole runs: what and where, and nothing is lost."""

from __future__ import annotations

import json
import signal

import pytest

pytestmark = pytest.mark.case("one machine: server, store and input")


@pytest.mark.parametrize(
    "faults",
    [{"every": 7, "status": 500}, {"every": 5, "status": 429}, {"every": 9, "drop": True}],
    ids=["500", "429", "dropped connections"],
)
def test_passing_faults_change_no_score(engine, faults, tmp_path):
    engine.spec = {"strategy": "p"}
    engine.faults = faults
    engine.drive()
    calm = type(engine)(tmp_path / "calm", engine.bucket, engine.environment, spec=engine.spec)
    calm.drive()
    assert engine.outcome() == calm.outcome()


def test_a_server_that_dies_by_itself_is_started_anew(engine, tmp_path):
    engine.spec = {"strategy": "p"}
    engine.faults = {"die_after": 40, "marker": str(tmp_path / "died")}
    engine.drive()
    assert (tmp_path / "died").exists()
    assert engine.condition("Succeeded")["status"] == "True"
    assert "ServingFailed" in (engine.workdir / "events.jsonl").read_text()


def test_a_server_that_refuses_every_call_fails_the_run_with_the_cause(engine):
    engine.spec = {"strategy": "p"}
    engine.faults = {"every": 1, "status": 400, "text": "this model's maximum context length is 12 tokens"}
    engine.drive(expect=1)
    succeeded = engine.condition("Succeeded")
    assert succeeded["reason"] == "TooManyErrors"
    assert "maximum context length" in succeeded["message"] and "maxErrorRate" in succeeded["message"]


def test_a_dead_server_is_an_error_and_never_a_score(engine):
    engine.spec = {"strategy": "p", "attempts": 1, "evaluation": {"concurrency": 4, "unavailableTimeoutSeconds": 3}}
    engine.faults = {"every": 1, "status": 500}
    engine.drive(expect=1)
    assert engine.condition("Succeeded")["reason"] == "ServingUnavailable"
    assert "baseline" not in engine.status() and "score" not in engine.status()["steps"][0]


def change(split: str, line: int, text: str):
    def do(engine):
        path = engine.folder / f"{split}.jsonl"
        lines = path.read_text().splitlines()
        lines[line - 1] = text
        path.write_text("\n".join(lines) + "\n")

    return do


BAD = {
    "a line that is no JSON": ({}, change("train", 3, '{"review": '), "BadData", ["train.jsonl", "line 3"]),
    "a row without an input": ({}, change("train", 2, '{"sentiment": "positive"}'), "BadData", ["review"]),
    "an empty split": ({}, lambda e: (e.folder / "validation.jsonl").write_text(""), "BadData", ["validation"]),
    "an input that the signature lacks": (
        {"program": {"inline": {"signature": "text -> sentiment", "adapter": "plain"}}},
        None,
        "BadConfiguration",
        ["review", "text"],
    ),
    "an entry point that does not import": (
        {"program": {"entrypoint": "nowhere.to:find"}},
        None,
        "BadConfiguration",
        ["nowhere"],
    ),
    "a metric that raises": (
        {"metric": {"entrypoint": "metrics:raises"}},
        lambda e: (e.folder / "metrics.py").write_text("def raises(example, prediction, trace=None):\n    1 / 0\n"),
        "BadConfiguration",
        ["metric", "division by zero"],
    ),
    "a metric that returns NaN": (
        {"metric": {"entrypoint": "metrics:nan"}},
        lambda e: (e.folder / "metrics.py").write_text(
            "def nan(example, prediction, trace=None):\n    return float('nan')\n"
        ),
        "BadConfiguration",
        ["metric", "nan"],
    ),
}


@pytest.mark.parametrize(("spec", "spoil", "reason", "says"), BAD.values(), ids=BAD.keys())
def test_bad_input_is_refused_before_anything_is_served(engine, spec, spoil, reason, says, monkeypatch):
    engine.spec = {"strategy": "p", **spec}
    engine.write()
    if spoil is not None:
        spoil(engine)
        monkeypatch.setattr(engine, "write", lambda: engine.folder / "run.yaml")
    engine.drive(expect=1)
    accepted = engine.condition("Accepted")
    assert (accepted["status"], accepted["reason"]) == ("False", reason), accepted
    for text in says:
        assert text.lower() in accepted["message"].lower()
    assert engine.calls().total() == 0
    assert not (engine.workdir / "logs" / "serving.log").exists()


def test_overlapping_train_and_test_is_a_warning_with_a_count(engine, monkeypatch):
    engine.spec = {"strategy": "p"}
    engine.write()
    rows = (engine.folder / "train.jsonl").read_text().splitlines()[:3]
    path = engine.folder / "test.jsonl"
    path.write_text("\n".join(json.dumps(json.loads(r) | {"id": f"t{n}"}) for n, r in enumerate(rows)) + "\n")
    monkeypatch.setattr(engine, "write", lambda: engine.folder / "run.yaml")
    engine.drive()
    check = engine.status()["steps"][0]["stages"][0]
    assert check["facts"]["warnings"] >= 1
    assert "3" in json.dumps(check) and "test" in json.dumps(check)


def test_data_that_changes_under_a_run_is_refused(engine, monkeypatch):
    engine.spec = {"strategy": "p"}
    process = engine.start("--latency", "0.05")
    engine.wait_for("calls", lambda: engine.calls().total() > 30)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    path = engine.folder / "validation.jsonl"
    path.write_text("\n".join(path.read_text().splitlines()[:-1]) + "\n")
    monkeypatch.setattr(engine, "write", lambda: engine.folder / "run.yaml")
    engine.drive(expect=1)
    assert "changed since the run began" in engine.condition("Succeeded")["message"]


def test_s3_that_refuses_the_key_fails_without_retries(engine):
    engine.spec = {"strategy": "p"}
    engine.environment = engine.environment | {"AWS_SECRET_ACCESS_KEY": "wrong"}
    engine.drive(expect=1)
    succeeded = engine.condition("Succeeded")
    assert succeeded["reason"] == "StorageRefused" and "secret key is wrong" in succeeded["message"]
    assert engine.status()["steps"][0]["attempts"] == 1


def test_s3_that_is_away_is_retried_and_then_named(engine):
    engine.spec = {
        "strategy": "p",
        "attempts": 1,
        "storage": {"s3": {"bucket": "tandem", "endpoint": "http://127.0.0.1:9"}},
    }
    engine.drive(expect=1)
    succeeded = engine.condition("Succeeded")
    assert succeeded["reason"] == "StorageUnavailable" and "127.0.0.1:9" in succeeded["message"]
