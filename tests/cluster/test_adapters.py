"""Adapters that are loaded into running servers: no replica is ready without the wanted one, whatever is killed."""

from __future__ import annotations

import json
import time
import urllib.error
import urllib.request
from typing import Any

import pytest
from tests.cluster.harness import Namespace, reviews

SECONDS = 900


def served_models(pod: dict[str, Any]) -> set[str] | None:
    """The names that a pod serves; None when it does not answer."""
    try:
        with urllib.request.urlopen(f"http://{pod['status']['podIP']}:8000/v1/models", timeout=3) as answer:
            return {model["id"] for model in json.load(answer)["data"]}
    except (OSError, KeyError, urllib.error.URLError):
        return None


def is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod["status"].get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


@pytest.mark.timeout(SECONDS + 120)
def test_a_server_that_is_killed_in_mid_evaluation_has_its_adapter_back_before_it_is_ready(
    namespace: Namespace,
) -> None:
    run = reviews(namespace.name, "hot", strategy="w")
    run["spec"]["serving"]["adapters"] = "reload"
    run["spec"]["evaluation"] = {"maxErrorRate": "0.9", "concurrency": 4}
    namespace.cluster.apply(run)
    killed, looked, bare = "", 0, []
    end = time.monotonic() + SECONDS
    while True:
        assert time.monotonic() < end, namespace.kubectl("describe", "optrun", "hot")
        status = (namespace.run("hot") or {}).get("status") or {}
        if status.get("finished"):
            break
        deployment = namespace.cluster.get("deployment", "hot-serving", namespace.name)
        wanted = ((deployment or {"metadata": {}})["metadata"].get("annotations") or {}).get("tandem.dev/served-name")
        step = status.get("step") or {}
        for pod in namespace.pods("hot", "serving"):
            if not is_ready(pod) or pod["metadata"].get("deletionTimestamp") or wanted in (None, "base"):
                continue
            models = served_models(pod)
            looked += models is not None
            if models is not None and wanted not in models:
                bare.append(f"{pod['metadata']['name']} serves {models}, not {wanted}")
            if step.get("kind") == "w" and step.get("stage") == "evaluate" and not killed and _works(namespace):
                killed = pod["metadata"]["name"]
                namespace.kubectl("delete", "pod", killed, "--grace-period=0", "--force", "--wait=false")
        time.sleep(0.3)
    assert bare == []
    assert killed and looked > 1
    succeeded = namespace.condition("hot", "Succeeded")
    assert succeeded["status"] == "True", succeeded
    tuned = [c for step in status["steps"] for c in step.get("candidates", []) if c.get("adapter")]
    assert tuned and all(candidate["n"] == 24 for candidate in tuned)


def _works(namespace: Namespace) -> bool:
    """Whether a worker of the evaluation runs."""
    pods = namespace.pods("hot", "worker")
    return any(
        p["metadata"]["labels"]["tandem.dev/stage"] == "evaluate" and p["status"]["phase"] == "Running" for p in pods
    )
