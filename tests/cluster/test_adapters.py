"""Adapters that are loaded into running servers: no replica is ready without the wanted one, whatever is killed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.cluster.harness import Namespace, reviews

SECONDS = 900
#: A CPU takes a minute for each dozen with an adapter.
EXAMPLES = 12


def is_ready(pod: dict[str, Any]) -> bool:
    conditions = pod["status"].get("conditions") or []
    return any(c["type"] == "Ready" and c["status"] == "True" for c in conditions)


def tuned(namespace: Namespace, name: str, **spec: Any) -> dict[str, Any]:
    """One `w` step whose adapter is loaded by the sidecar."""
    run = reviews(namespace.name, name, strategy="w", **spec)
    run["spec"]["serving"] |= {"adapters": "reload", **spec.get("serving", {})}
    run["spec"]["evaluation"] = {"maxErrorRate": "0.9", "concurrency": 4}
    for split in ("validation", "test"):
        run["spec"]["data"][split]["limit"] = EXAMPLES
    return run


def follow(
    namespace: Namespace, name: str, look: Callable[[dict[str, Any], dict[str, Any]], None]
) -> tuple[dict[str, Any], list[str]]:
    """The finished run's status, and each time that a ready server lacked the adapter that was wanted. Until then
    `look(step, pod)` at every ready server that an adapter is wanted on."""
    end, bare = time.monotonic() + SECONDS, list[str]()
    while True:
        assert time.monotonic() < end, namespace.kubectl("describe", "optrun", name)
        status: dict[str, Any] = (namespace.run(name) or {}).get("status") or {}
        if status.get("finished"):
            break
        deployment = namespace.cluster.get("deployment", f"{name}-serving", namespace.name)
        notes = (deployment or {"metadata": {}})["metadata"].get("annotations") or {}
        wanted = notes.get("tandem.dev/served-name", "base")
        for pod in namespace.pods(name, "serving"):
            if not is_ready(pod) or pod["metadata"].get("deletionTimestamp") or wanted == "base":
                continue
            models = namespace.served_models(pod["metadata"]["name"])
            if models is not None and wanted not in models:
                bare.append(f"{pod['metadata']['name']} serves {models}, not {wanted}")
            look(status.get("step") or {}, pod)
        time.sleep(0.3)
    succeeded = namespace.condition(name, "Succeeded")
    assert succeeded["status"] == "True", succeeded
    candidates = [c for step in status["steps"] for c in step.get("candidates", []) if c.get("adapter")]
    assert candidates and all(candidate["n"] == EXAMPLES for candidate in candidates)
    return status, bare


# For every day there are tests/local/test_adapters.py and tests/faults/test_serving.py.
@pytest.mark.full
@pytest.mark.timeout(SECONDS + 120)
def test_a_server_that_is_killed_in_mid_evaluation_has_its_adapter_back_before_it_is_ready(
    namespace: Namespace,
) -> None:
    killed: list[str] = []

    def kill(step: dict[str, Any], pod: dict[str, Any]) -> None:
        name = pod["metadata"]["name"]
        if step.get("stage") == "evaluate" and not killed and namespace.running_requests(name) > 0:
            killed.append(name)
            namespace.kubectl("delete", "pod", name, "--grace-period=0", "--force", "--wait=false")

    namespace.cluster.apply(tuned(namespace, "hot"))
    _, bare = follow(namespace, "hot", kill)
    assert len(killed) == 1 and bare == []
    # Calls to the server that died were made again; none of them became an example's failure.
    uid = (namespace.run("hot") or {})["metadata"]["uid"]
    ledger = namespace.lines(f"{namespace.name}/hot/{uid}/steps/1-w/evaluate/ledger/")
    assert len(ledger) == EXAMPLES and {line.get("status", "ok") for line in ledger} <= {"ok", "unparsable"}


@pytest.mark.timeout(SECONDS + 120)
def test_an_adapter_is_loaded_into_the_server_that_runs(namespace: Namespace) -> None:
    servers: set[str] = set()
    training = {"resources": {"requests": {"cpu": "100m", "memory": "1Gi"}}}
    run = tuned(
        namespace, "kept", training=training, serving={"handover": "keep", "extraArgs": ["--max-model-len=1024"]}
    )
    namespace.cluster.apply(run)
    status, _ = follow(namespace, "kept", lambda step, pod: servers.add(pod["metadata"]["uid"]))
    assert len(servers) == 1
    assert status["serving"].get("restarts", 0) == 0
    assert "ServingFailed" not in {event["reason"] for event in namespace.events("kept")}
