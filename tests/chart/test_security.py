"""The installed operator: a restricted pod, and NetworkPolicies that fit those of the runs."""

from __future__ import annotations

import pytest
import yaml
from tests.chart.conftest import CHART, NAMESPACE, ROOT, Object, Render
from tests.network_policies import NAMESPACE_LABEL, Pod, may_connect
from tests.pod_security import violations

from tandem_api.v1alpha1.run import parse_run
from tandem_operator.platforms.kubernetes import names
from tandem_operator.platforms.kubernetes.policies import network_policies
from tandem_operator.settings import OperatorSettings

PROMETHEUS = Pod("monitoring", {"app.kubernetes.io/name": "prometheus"})
NEIGHBOUR = Pod("default", {"app": "notebook"})
API_SERVER = Pod(address="10.0.0.1")


def pods_of(objects: dict[str, Object], namespace: str = NAMESPACE) -> list[Pod]:
    """The operator's pods, by the labels of its Deployment."""
    found = [thing for name, thing in objects.items() if name.startswith("Deployment/")]
    return [Pod(namespace, thing["spec"]["template"]["metadata"]["labels"]) for thing in found]


def policies(objects: dict[str, Object]) -> list[Object]:
    return [thing for name, thing in objects.items() if name.startswith("NetworkPolicy/")]


def policies_of_a_run() -> list[Object]:
    document = yaml.safe_load((ROOT / "examples/reviews/cluster.yaml").read_text(encoding="utf-8"))
    document["metadata"] |= {"namespace": "team", "uid": "1111", "name": "reviews"}
    settings = OperatorSettings.model_validate({"images": {"trainer": "tandem-trainer:test"}})
    return network_policies(parse_run(document), settings, NAMESPACE, {})


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--set", "replicas=2,settings.namespaces={a,b}"),
        ("--set", "podLabels.team=ml,podAnnotations.note=x,priorityClassName=high"),
    ],
)
def test_the_operators_pod_is_restricted(render: Render, arguments: tuple[str, ...]) -> None:
    for name, thing in render(*arguments).items():
        if "template" in thing.get("spec", {}):
            assert violations(thing["spec"]["template"]) == [], name


def test_the_manifest_without_helm_is_restricted_and_asks_the_cluster_to_hold_it_to_that() -> None:
    things = list(yaml.safe_load_all((CHART / "rendered.yaml").read_text(encoding="utf-8")))
    assert [violations(thing["spec"]["template"]) for thing in things if thing["kind"] == "Deployment"] == [[]]
    (namespace,) = [thing for thing in things if thing["kind"] == "Namespace"]
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert not any(thing["kind"] == "Secret" for thing in things)


@pytest.mark.parametrize("release", ["tandem", "prod"])
def test_the_operator_reaches_the_pods_of_runs_and_they_let_it_in(render: Render, release: str) -> None:
    objects = render(release=release)
    given = [*policies(objects), *policies_of_a_run()]
    (operator,) = pods_of(objects)
    server, worker = (
        Pod("team", names.labels("reviews", "1111", component)) for component in (names.SERVING, names.WORKER)
    )
    assert may_connect(given, operator, server, names.VLLM_PORT)
    assert may_connect(given, operator, server, names.ADAPTERS_PORT)
    assert may_connect(given, operator, worker, names.PROGRESS_PORT)
    for pod, port in ((worker, names.VLLM_PORT), (server, 22), (NEIGHBOUR, names.VLLM_PORT), (PROMETHEUS, 80)):
        assert not may_connect(given, operator, pod, port), (pod, port)


def test_what_the_operator_may_reach_beside_them(render: Render) -> None:
    given = policies(render())
    (operator,) = pods_of(render())
    assert may_connect(given, operator, API_SERVER, 6443)
    assert may_connect(given, operator, Pod("kube-system", {"k8s-app": "kube-dns"}), 53, "UDP")
    assert not may_connect(given, operator, Pod(address="169.254.169.254"), 80)
    assert not may_connect(given, operator, Pod(address="192.0.2.7"), 80)
    narrow = policies(render("--set", "networkPolicy.apiServer.cidrs={10.0.0.1/32}"))
    assert may_connect(narrow, operator, API_SERVER, 443)
    assert not may_connect(narrow, operator, Pod(address="192.0.2.7"), 443)


def test_who_reaches_the_operator(render: Render) -> None:
    given = policies(render())
    (operator,) = pods_of(render())
    worker = Pod("team", names.labels("reviews", "1111", names.WORKER))
    assert may_connect(given, PROMETHEUS, operator, 8080)
    assert not may_connect(given, PROMETHEUS, operator, 22)
    # By default metrics are for everybody, but a run's own policy does not let its pods out to them.
    assert not may_connect([*given, *policies_of_a_run()], worker, operator, 8080)
    chosen = f"networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.{NAMESPACE_LABEL.replace('.', chr(92) + '.')}"
    narrow = policies(render("--set", f"{chosen}=monitoring"))
    assert may_connect(narrow, PROMETHEUS, operator, 8080)
    assert not may_connect(narrow, NEIGHBOUR, operator, 8080)
