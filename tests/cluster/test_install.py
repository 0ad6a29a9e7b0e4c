"""What the chart installs, as the API server sees it."""

from __future__ import annotations

import json

import pytest
from tests.cluster.harness import OPERATOR_NAMESPACE, RESOURCE, ROOT, Cluster, until

ACCOUNT = f"system:serviceaccount:{OPERATOR_NAMESPACE}:tandem-operator"


def metrics(cluster: Cluster) -> str:
    """The operator's metrics, through its Service."""
    service = cluster.get("service", "tandem-metrics", OPERATOR_NAMESPACE)
    assert service is not None
    port = service["spec"]["ports"][0]["port"]
    path = f"/api/v1/namespaces/{OPERATOR_NAMESPACE}/services/tandem-metrics:{port}/proxy/metrics"
    return cluster.run("kubectl", "get", "--raw", path, check=False).stdout


def test_the_operator_runs_restricted_and_leads(operator: Cluster) -> None:
    pods = operator.items("pods", OPERATOR_NAMESPACE, "app.kubernetes.io/component=operator")
    (pod,) = [pod for pod in pods if not pod["metadata"].get("deletionTimestamp")]
    assert pod["spec"]["serviceAccountName"] == "tandem-operator"
    (container,) = pod["spec"]["containers"]
    assert container["securityContext"]["readOnlyRootFilesystem"]
    assert pod["spec"]["securityContext"]["runAsNonRoot"]
    lease = until(20, "a leader", lambda: operator.get("lease", "tandem-operator", OPERATOR_NAMESPACE))
    assert lease["spec"]["holderIdentity"].startswith(pod["metadata"]["name"])
    until(20, "tandem_leader 1", lambda: "tandem_leader 1.0" in metrics(operator))


def test_rendered_manifests_are_valid_to_the_api_server(operator: Cluster) -> None:
    rendered = str(ROOT / "charts/tandem/rendered.yaml")
    said = operator.kubectl("apply", "--dry-run=server", "--validate=strict", "-f", rendered)
    assert "deployment.apps/tandem-operator " in said


def test_the_resource_definition_is_what_the_models_say(operator: Cluster) -> None:
    definition = json.loads(operator.kubectl("get", "crd", RESOURCE, "-o", "json"))
    (version,) = definition["spec"]["versions"]
    candidate = version["schema"]["openAPIV3Schema"]["properties"]["status"]["properties"]["best"]
    assert candidate["properties"]["n"]["type"] == "integer"
    assert definition["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"


@pytest.mark.parametrize(
    ("verb", "what", "allowed"),
    [
        ("list", RESOURCE, True),
        ("patch", RESOURCE, True),
        ("update", RESOURCE, False),
        ("create", RESOURCE, False),
        ("update", f"{RESOURCE}/status", True),
        ("get", f"{RESOURCE}/status", False),
        ("patch", f"{RESOURCE}/status", False),
        ("update", f"{RESOURCE}/finalizers", True),
        ("create", "jobs.batch", True),
        ("create", "deployments.apps", True),
        ("update", "deployments.apps", False),
        ("create", "services", True),
        ("list", "services", False),
        ("watch", "services", False),
        ("update", "services", False),
        ("delete", "networkpolicies.networking.k8s.io", True),
        ("list", "networkpolicies.networking.k8s.io", False),
        ("watch", "networkpolicies.networking.k8s.io", False),
        ("update", "configmaps", False),
        ("patch", "pods", True),
        ("delete", "pods", True),
        ("get", "secrets", False),
        ("list", "secrets", False),
        ("create", "pods", False),
        ("create", "pods/exec", False),
        ("get", "pods/log", False),
        ("list", "configmaps", False),
        ("create", "rolebindings.rbac.authorization.k8s.io", False),
        ("get", "nodes", False),
        ("create", "serviceaccounts/token", False),
        ("impersonate", "users", False),
    ],
)
def test_the_operator_has_the_rights_that_it_needs_and_no_others(
    operator: Cluster, verb: str, what: str, allowed: bool
) -> None:
    resource, _, sub = what.partition("/")
    more = [f"--subresource={sub}"] if sub else []
    done = operator.run(
        "kubectl", "auth", "can-i", verb, resource, *more, f"--as={ACCOUNT}", "-n", "default", check=False
    )
    assert done.stdout.strip() == ("yes" if allowed else "no"), done.stderr


def test_users_get_rights_on_runs_with_the_built_in_roles(operator: Cluster) -> None:
    operator.kubectl("create", "namespace", "users")
    try:
        operator.kubectl("create", "rolebinding", "viewer", "--clusterrole=view", "--user=vera", "-n", "users")
        operator.kubectl("create", "rolebinding", "editor", "--clusterrole=edit", "--user=ed", "-n", "users")

        def may(user: str, verb: str) -> bool:
            done = operator.run("kubectl", "auth", "can-i", verb, RESOURCE, f"--as={user}", "-n", "users", check=False)
            return done.stdout.strip() == "yes"

        until(20, "the roles to be put together", lambda: may("ed", "create"))
        assert may("vera", "get") and not may("vera", "create") and not may("vera", "patch")
        assert may("ed", "patch") and may("ed", "delete")
    finally:
        operator.kubectl("delete", "namespace", "users", "--wait=false")
