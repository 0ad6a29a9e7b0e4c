"""Who may talk to the pods of a run: the NetworkPolicies that the operator makes, evaluated for friends and foes."""

from __future__ import annotations

from typing import Any

import pytest
from tests.network_policies import NAMESPACE_LABEL, Pod, may_connect
from tests.unit.operator.kubernetes.world import NAMESPACE, World, manifest, settings

from tandem_api.v1alpha1.run import parse_run
from tandem_operator.platforms.kubernetes import names
from tandem_operator.platforms.kubernetes.policies import network_policies

UID, OTHER_UID = "1111", "2222"
OPERATOR_NAMESPACE = "tandem-system"
OPERATOR_LABELS = {names.APP_NAME: "tandem", names.COMPONENT: "operator", "app.kubernetes.io/instance": "tandem"}
#: vLLM's port answers calls and changes adapters alike; the sidecar's tells which adapters there are.
VLLM, SIDECAR, PROGRESS = names.VLLM_PORT, names.ADAPTERS_PORT, names.PROGRESS_PORT
METADATA = Pod(address="169.254.169.254")


def policies(uid: str = UID, name: str = "reviews", namespace: str = NAMESPACE, **spec: Any) -> list[dict[str, Any]]:
    document = manifest(name, **spec)
    document["metadata"].update(uid=uid, namespace=namespace)
    return network_policies(parse_run(document), settings(), OPERATOR_NAMESPACE, {})


def pod(component: str, uid: str = UID, name: str = "reviews", namespace: str = NAMESPACE) -> Pod:
    return Pod(namespace, names.labels(name, uid, component))


SERVER, WORKER, CLEANUP = pod(names.SERVING), pod(names.WORKER), pod(names.CLEANUP)
OPERATOR = Pod(OPERATOR_NAMESPACE, OPERATOR_LABELS)
PEOPLE = {
    "its own worker": WORKER,
    "the operator": OPERATOR,
    "its own cleanup": CLEANUP,
    "its own other server": SERVER,
    "another run's worker": pod(names.WORKER, OTHER_UID, "other"),
    "another run's server": pod(names.SERVING, OTHER_UID, "other"),
    "a worker of an earlier run of the name": pod(names.WORKER, OTHER_UID),
    "the same run's worker in another namespace": pod(names.WORKER, namespace="elsewhere"),
    "a pod of the namespace": Pod(NAMESPACE, {"app": "notebook"}),
    "a pod of another namespace": Pod("elsewhere", {"app": "notebook"}),
    "a pod that calls itself the operator": Pod(NAMESPACE, OPERATOR_LABELS),
    "another pod of the operator's namespace": Pod(OPERATOR_NAMESPACE, {"app": "other"}),
    "Prometheus": Pod("monitoring", {names.APP_NAME: "prometheus"}),
    "an address of the network": Pod(address="192.0.2.7"),
}
#: Who is let in, by port. To a worker and a server that is nobody but these.
WELCOME = {
    (names.SERVING, VLLM): {"its own worker", "the operator"},
    (names.SERVING, SIDECAR): {"the operator"},
    (names.SERVING, 22): set(),
    (names.WORKER, PROGRESS): {"the operator"},
    (names.WORKER, VLLM): set(),
    (names.CLEANUP, PROGRESS): {"the operator"},
    (names.CLEANUP, VLLM): set(),
}


@pytest.mark.parametrize(("component", "port"), WELCOME)
@pytest.mark.parametrize("who", PEOPLE)
def test_nobody_but_friends_is_let_in(who, component, port):
    # The other run has policies, too: what it may do by its own must not open this one.
    given = [*policies(), *policies(OTHER_UID, "other"), *policies(namespace="elsewhere")]
    expected = who in WELCOME[component, port]
    assert may_connect(given, PEOPLE[who], pod(component), port) is expected


@pytest.mark.parametrize("who", ["another run's worker", "a pod of another namespace", "a pod of the namespace"])
def test_a_run_that_names_another_runs_server_as_its_model_does_not_get_in(who):
    """`proposer.url` opens the way out to a namespace's pods; the way in is the other run's own to open."""
    url = f"http://reviews-serving.{NAMESPACE}.svc:{VLLM}/v1"
    optimizer = {"type": "mipro", "proposer": {"url": url, "model": "base"}}
    nosy = policies(OTHER_UID, "other", promptOptimizer=optimizer, storage={"s3": {"bucket": "bbb", "endpoint": url}})
    given = [*policies(), *nosy]
    assert not may_connect(given, PEOPLE[who], SERVER, VLLM)
    own = pod(names.SERVING, OTHER_UID, "other")
    assert may_connect(given, pod(names.WORKER, OTHER_UID, "other"), own, VLLM)


@pytest.mark.parametrize("component", [names.SERVING, names.WORKER, names.CLEANUP])
def test_no_pod_of_a_run_reaches_the_clouds_keys_or_the_servers_of_the_cluster(component):
    given, one = policies(), pod(component)
    for port in (80, 443, 9000):
        assert not may_connect(given, one, METADATA, port)
    api_server = Pod(address="10.0.0.1")
    assert not may_connect(given, one, api_server, 6443)
    kubelet = Pod(address="10.0.0.2")
    assert not may_connect(given, one, kubelet, 10250)
    assert may_connect(given, one, Pod("storage", {"app": "s3"}), 9000)
    assert may_connect(given, one, Pod("kube-system", {"k8s-app": "kube-dns"}), 53, "UDP")
    assert may_connect(given, one, Pod(address="192.0.2.7"), 443)


def test_the_cleanup_of_a_run_that_never_began_is_fenced_in_too():
    """Its image is the run's own: without a policy it was the one pod that reached the cloud's metadata address."""
    document = manifest(storage={"s3": {"bucket": "bucket", "credentialsSecret": "s3"}, "deletionPolicy": "Delete"})
    world = World(document)
    world.until(lambda world: world.run["metadata"].get("finalizers"))
    for policy in world.cluster.all("NetworkPolicy"):
        world.cluster.remove(policy)
    made: list[tuple[str, list[dict[str, Any]]]] = []
    world.cluster.admission = lambda verb, thing: made.append((thing["kind"], world.cluster.all("NetworkPolicy")))
    world.cluster.remove(world.run)
    world.turns(6)
    (there,) = [list(found) for kind, found in made if kind == "Job"]
    uid = there[0]["metadata"]["labels"][names.RUN_UID]
    assert not may_connect(there, pod(names.CLEANUP, uid), METADATA, 80)
    assert may_connect(there, pod(names.CLEANUP, uid), Pod(address="192.0.2.7"), 443)


def test_a_cleanup_that_cannot_be_fenced_in_is_given_up_and_told():
    """Somebody's own policy has the name: the run goes all the same, and says what stays in S3."""
    document = manifest(storage={"s3": {"bucket": "bucket", "credentialsSecret": "s3"}, "deletionPolicy": "Delete"})
    world = World(document)
    world.until(lambda world: world.run["metadata"].get("finalizers"))
    for policy in world.cluster.all("NetworkPolicy"):
        world.cluster.remove(policy)
    foreign = {"name": names.workers_name("reviews"), "namespace": NAMESPACE}
    world.cluster.add({"kind": "NetworkPolicy", "metadata": foreign, "spec": {}})
    world.cluster.remove(world.run)
    world.turns(6)
    assert world.cluster.find("OptimizationRun", "reviews") is None
    assert world.created("Job") == [name for name in world.created("Job") if "cleanup" not in name]
    told = [event for event in world.cluster.all("Event") if event["reason"] == "StorageNotRemoved"]
    assert (
        "the run needs a NetworkPolicy 'reviews-workers', but there is one that is not Tandem's" in told[0]["message"]
    )


# The evaluation itself, by the examples of the Kubernetes documentation.


def policy(spec: dict[str, Any], namespace: str = "default") -> dict[str, Any]:
    return {"metadata": {"namespace": namespace}, "spec": spec}


def test_the_evaluation_knows_what_policies_mean():
    one, other = Pod("default", {"role": "db"}), Pod("default", {"role": "frontend"})
    assert may_connect([], one, other, 80)
    closed = policy({"podSelector": {}, "policyTypes": ["Ingress"]})
    assert not may_connect([closed], other, one, 80)
    assert may_connect([closed], one, Pod("elsewhere"), 80), "only the way in is closed"
    peers = [
        {"ipBlock": {"cidr": "172.17.0.0/16", "except": ["172.17.1.0/24"]}},
        {"namespaceSelector": {"matchLabels": {NAMESPACE_LABEL: "project"}}},
        {"podSelector": {"matchLabels": {"role": "frontend"}}},
    ]
    rule = {"from": peers, "ports": [{"protocol": "TCP", "port": 6379}]}
    opened = policy({"podSelector": {"matchLabels": {"role": "db"}}, "policyTypes": ["Ingress"], "ingress": [rule]})
    given = [closed, opened]
    assert may_connect(given, other, one, 6379)
    assert not may_connect(given, other, one, 6380)
    assert not may_connect(given, other, one, 6379, "UDP")
    assert may_connect(given, Pod("project"), one, 6379)
    assert not may_connect(given, Pod("elsewhere", {"role": "frontend"}), one, 6379)
    assert may_connect(given, Pod(address="172.17.2.1"), one, 6379)
    assert not may_connect(given, Pod(address="172.17.1.1"), one, 6379)
    # Both selectors in one peer: both must hold.
    both = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"role": "frontend"}}}
    narrow = policy({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [both]}]})
    assert may_connect([narrow], Pod("elsewhere", {"role": "frontend"}), one, 1)
    assert not may_connect([narrow], Pod("elsewhere", {"role": "db"}), one, 1)
    with pytest.raises(AssertionError, match="does not know"):
        may_connect([policy({"podSelector": {}, "policyTypes": [], "novelty": 1})], one, other, 80)
