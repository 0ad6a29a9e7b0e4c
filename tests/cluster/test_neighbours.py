"""What neighbours reach of a run that is at work, and what its pods reach: with the operator's NetworkPolicies enforced
(kubernetes/enforce.py; on a cluster of your own, by its network plugin)."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from tests.cluster.harness import (
    OPERATOR_NAMESPACE,
    TEST,
    Cluster,
    GaveUpError,
    Namespace,
    reviews,
    trainer_image,
    until,
)

START_SECONDS = 900
#: A pod's rules come a moment after its address.
SETTLE_SECONDS = 30
VLLM, SIDECAR, PROGRESS = 8000, 8081, 8080
#: Where API servers and kubelets listen; and the object store's port, to which runs may go wherever it is.
API_SERVER, KUBELET, STORE = 6443, 10250, 8333
METADATA = "169.254.169.254"
#: What vLLM does for whoever reaches it, loading and running code included, if it was started for that.
CONTROL = (
    "POST /v1/load_lora_adapter",
    "POST /v1/unload_lora_adapter",
    "POST /invocations",
    "POST /sleep",
    "POST /collective_rpc",
    "POST /v1/completions",
    "GET /metrics",
)
ASK = """
import http.client, json, sys

def ask(address, port, call):
    connection = http.client.HTTPConnection(address, port, timeout=3)
    try:
        connection.connect()
    except OSError as error:
        return f"no connection: {error}"
    try:
        connection.sock.settimeout(30)
        connection.request(*call.split(), body="{}", headers={"Content-Type": "application/json"})
        return f"HTTP {connection.getresponse().status}"
    except (OSError, http.client.HTTPException) as error:
        return f"connected, then {error!r}"

print(json.dumps([ask(*target) for target in json.loads(sys.argv[1])]))
"""
LISTEN = f"""
import http.server, threading

for port in {(API_SERVER, KUBELET, STORE)}:
    server = http.server.HTTPServer(("", port), http.server.SimpleHTTPRequestHandler)
    threading.Thread(target=server.serve_forever).start()
"""
SLEEP = "import time; time.sleep(3600)"
Target = tuple[str, int, str]
"""An address, a port, and a call."""


@dataclass(frozen=True)
class Pod:
    """A pod, from whose container connections are tried."""

    cluster: Cluster
    namespace: str
    name: str
    container: str
    address: str

    def finds(self, state: str, *targets: Target) -> None:
        """Wait until all these targets are `closed` to it, or `open`. One on which nobody listens is neither."""
        said = list[str]()

        def look() -> bool:
            command = ("exec", "-n", self.namespace, self.name, "-c", self.container, "--", "python3", "-c", ASK)
            said[:] = json.loads(self.cluster.kubectl(*command, json.dumps(targets)))
            return {_state(one) for one in said} == {state}

        try:
            until(SETTLE_SECONDS, f"{self.name} to find its targets {state}", look)
        except GaveUpError as error:
            raise AssertionError(f"{error}: {dict(zip(targets, said, strict=True))}") from error


def _state(said: str) -> str:
    if said.startswith(("HTTP ", "connected, ")):
        return "open"
    # The first is what the test cluster says; most network plugins say nothing.
    return "closed" if "No route to host" in said or "timed out" in said else said


def pod_of(cluster: Cluster, found: dict[str, Any], container: str) -> Pod:
    metadata = found["metadata"]
    return Pod(cluster, metadata["namespace"], metadata["name"], container, found["status"]["podIP"])


def pod(image: str, namespace: str, name: str, labels: dict[str, str], code: str) -> dict[str, Any]:
    """A pod that the operator did not make."""
    container = {
        "name": "python",
        "image": image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", code],
        "workingDir": "/tmp",
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    spec = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "terminationGracePeriodSeconds": 1,
        "securityContext": {"runAsNonRoot": True, "runAsUser": 65532, "seccompProfile": {"type": "RuntimeDefault"}},
        "containers": [container],
    }
    metadata = {"name": name, "namespace": namespace, "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def as_worker_of(run: dict[str, Any] | None) -> dict[str, str]:
    """The labels by which policies know a run's workers."""
    assert run is not None
    own = {"tandem.dev/run": run["metadata"]["name"], "tandem.dev/run-uid": run["metadata"]["uid"]}
    return {"app.kubernetes.io/component": "worker", **own}


@dataclass(frozen=True)
class Scene:
    """A run at work, and who is around it."""

    server: Pod
    worker: Pod
    operator: Pod
    listener: Pod
    """A server of the cluster that is none of the run's business."""
    neighbours: dict[str, Pod]


def at_work(namespace: Namespace, run: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """The run's server and the worker that searches by it, as soon as there is progress."""
    status = (namespace.run(run) or {}).get("status") or {}
    assert not status.get("finished"), status
    step = status.get("step") or {}
    if step.get("stage") != "optimize" or not step.get("progress"):
        return None
    working = [worker for worker in namespace.pods(run, "worker") if worker["status"]["phase"] == "Running"]
    servers = namespace.pods(run, "serving")
    return (servers[0], working[0]) if servers and working else None


def _pods(namespace: Namespace, run: str) -> list[dict[str, Any]]:
    return namespace.pods(run, "serving") + namespace.pods(run, "worker")


@pytest.fixture(scope="module")
def scene(namespace: Namespace) -> Iterator[Scene]:
    cluster, elsewhere = namespace.cluster, f"{namespace.name}-elsewhere"
    # So many candidates that the run is at work for as long as it is looked at.
    search = {"type": "bootstrap-random-search", "candidates": 250, "exhaustive": True, "validationSize": 24}
    run = reviews(namespace.name, strategy="p -> w", promptOptimizer=search)
    run["spec"]["serving"]["adapters"] = "reload"
    # Its own policies let this one's workers out to all pods of the namespace.
    proposer = {"url": f"http://reviews-serving.{namespace.name}.svc:{VLLM}/v1", "model": "base"}
    nosy = reviews(namespace.name, "nosy", promptOptimizer={"type": "mipro", "proposer": proposer})
    nosy["spec"]["workers"] = {"podTemplate": {"spec": {"nodeSelector": {"size": "enormous"}}}}  # it never begins
    other = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": elsewhere, "labels": {TEST: "true"}}}
    remove = ("delete", "namespace", elsewhere, "--ignore-not-found", "--timeout=120s")
    cluster.kubectl(*remove)  # what an interrupted session has left
    try:
        cluster.apply(run, nosy, other)
        until(60, "the other run's policies", lambda: cluster.get("networkpolicy", "nosy-workers", namespace.name))
        until(20, "the default ServiceAccount", lambda: cluster.get("serviceaccount", "default", elsewhere))
        people = {
            "a pod of the namespace": (namespace.name, "neighbour", {}, SLEEP),
            "a worker of another run": (namespace.name, "nosy-one", as_worker_of(namespace.run("nosy")), SLEEP),
            "such a worker in another namespace": (elsewhere, "double", as_worker_of(namespace.run("reviews")), SLEEP),
            "the listener": (elsewhere, "listener", {}, LISTEN),
        }
        cluster.apply(*(pod(trainer_image(cluster), *person) for person in people.values()))
        around = {}
        for who, (place, name, *_) in people.items():
            cluster.kubectl("wait", "-n", place, "--for=condition=Ready", f"pod/{name}", "--timeout=60s")
            around[who] = pod_of(cluster, cluster.get("pod", name, place) or {}, "python")
        operators = cluster.items("pods", OPERATOR_NAMESPACE, "app.kubernetes.io/component=operator")
        (operator,) = [one for one in operators if not one["metadata"].get("deletionTimestamp")]
        server, worker = until(START_SECONDS, "the run to be at work", lambda: at_work(namespace, "reviews"))
        yield Scene(
            pod_of(cluster, server, "vllm"),
            pod_of(cluster, worker, "worker"),
            pod_of(cluster, operator, operator["spec"]["containers"][0]["name"]),
            listener=around.pop("the listener"),
            neighbours=around,
        )
    finally:
        namespace.kubectl("delete", "optrun", "reviews", "nosy", "--ignore-not-found", "--timeout=120s")
        cluster.kubectl(*remove)
        # A namespace goes long after its last pod, if that one was given time to end.
        until(120, "the run's pods to go", lambda: not _pods(namespace, "reviews"))


@pytest.mark.timeout(START_SECONDS + 300)
@pytest.mark.parametrize(
    "who", ["a pod of the namespace", "a worker of another run", "such a worker in another namespace"]
)
def test_no_neighbour_reaches_a_run(scene: Scene, who: str) -> None:
    server, worker = scene.server.address, scene.worker.address
    control = [(server, VLLM, call) for call in CONTROL]
    service = (f"reviews-serving.{scene.server.namespace}.svc.cluster.local", VLLM, CONTROL[0])
    others = [(server, SIDECAR, "GET /status"), (server, SIDECAR, "GET /metrics"), (worker, PROGRESS, "GET /")]
    scene.neighbours[who].finds("closed", *control, service, *others)


@pytest.mark.timeout(START_SECONDS + 300)
def test_the_runs_own_worker_and_the_operator_get_through(scene: Scene) -> None:
    """Which also shows that what is closed to others is there."""
    server, worker = scene.server.address, scene.worker.address
    model, sidecar = (server, VLLM, "GET /v1/models"), (server, SIDECAR, "GET /status")
    scene.worker.finds("open", model)
    scene.worker.finds("closed", sidecar)
    scene.operator.finds("open", model, sidecar, (worker, PROGRESS, "GET /"))


@pytest.mark.timeout(START_SECONDS + 300)
def test_pods_of_a_run_reach_their_store_and_not_the_clusters_servers(scene: Scene) -> None:
    there = scene.listener.address
    forbidden = [(there, API_SERVER, "GET /"), (there, KUBELET, "GET /")]
    allowed = (there, STORE, "GET /")
    metadata = [(METADATA, port, "GET /latest/meta-data/") for port in (80, 443, STORE)]
    metrics = (scene.operator.address, PROGRESS, "GET /metrics")
    for one in (scene.worker, scene.server):
        one.finds("closed", *forbidden, *metadata, metrics)
        one.finds("open", allowed)
    # Without a policy all of it is open.
    scene.neighbours["a pod of the namespace"].finds("open", *forbidden, allowed, metrics)
