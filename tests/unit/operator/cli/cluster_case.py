"""What the tests of the cluster commands share: runs in every state, and the command line itself."""

from __future__ import annotations

import time
from typing import Any

from typer.testing import CliRunner, Result

from tandem_operator.cli.main import app

NOW = "2026-11-21T12:00:00Z"


def manifest(name: str = "small", **spec: Any) -> dict[str, Any]:
    """A run that a cluster can carry out."""
    return {
        "apiVersion": "tandem.dev/v1alpha1",
        "kind": "OptimizationRun",
        "metadata": {"name": name},
        "spec": {
            "program": {"inline": {"signature": "question -> answer", "adapter": "plain"}},
            "metric": {"builtin": "exact-match", "field": "answer"},
            "data": {"train": {"uri": "configmap://rows/train.jsonl"}, "inputs": ["question"]},
            "model": {"uri": "hf://nobody/nothing"},
            "strategy": "p -> w",
            "storage": {"s3": {"bucket": "bucket", "prefix": "team"}},
            **spec,
        },
    }


def condition(kind: str, status: str, reason: str, message: str = "") -> dict[str, Any]:
    return {"type": kind, "status": status, "reason": reason, "message": message, "lastTransitionTime": NOW}


def at_stage(at: str, state: str = "Running", **more: Any) -> dict[str, Any]:
    """The status of a run that is at this stage of step 1."""
    conditions = more.pop("conditions", [condition("Succeeded", "Unknown", "Running")])
    stages = [{"name": at, "state": state, "attempt": 1, **more.pop("stage", {})}]
    return {
        "phase": "Working",
        "strategy": "p -> w",
        "conditions": conditions,
        "step": {"index": 1, "kind": "p", "stage": at, "attempt": 1, **more.pop("step", {})},
        "steps": [{"index": 1, "kind": "p", "state": "Running", "stages": stages}],
        "started": NOW,
        **more,
    }


def ended(succeeded: str = "True", reason: str = "Completed") -> dict[str, Any]:
    """The status of a run at its end."""
    best = {"id": "vanilla@base", "step": 1, "score": "0.8750", "low": "0.8", "high": "0.9", "n": 20}
    return {
        "phase": "Succeeded" if succeeded == "True" else "Failed",
        "strategy": "p -> w",
        "conditions": [condition("Succeeded", succeeded, reason, "that is why")],
        "best": best if succeeded == "True" else None,
        "result": {"uri": "s3://bucket/team/default/small/uid-small/result/", "sha256": "a" * 64},
        "finished": NOW,
    }


def with_status(resource: dict[str, Any], status: dict[str, Any]) -> dict[str, Any]:
    return {**resource, "status": {key: value for key, value in status.items() if value is not None}}


def tandem(*arguments: object, answer: str = "") -> Result:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=answer)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result


def wait_for(condition: Any) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)
