"""What the operator's ServiceAccount may do on a real API server: what the table in docs/cluster.md says, and nothing
else. Every verb is tried with every resource that the server knows, in every kind of place."""

from __future__ import annotations

import itertools
import subprocess
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
import yaml
from tests.faults.api import Api, ApiError
from tests.faults.control_plane import OPERATOR_NAMESPACE, ROOT, ControlPlane
from tests.faults.world import Ground
from tests.unit.test_rights import GROUPS, Right, table

Object = dict[str, Any]

#: Every verb that some resource of Kubernetes takes, and the one that stands for all.
VERBS = (
    *("get", "list", "watch", "create", "update", "patch", "delete", "deletecollection", "proxy", "use"),
    *("bind", "escalate", "impersonate", "approve", "sign", "*"),
)
#: Not in the server's discovery: what the cluster's owner may add, what no call goes to, and what is everything.
BEYOND = (("jobset.x-k8s.io", "jobsets"), ("tandem.dev", "optimizationruns/finalizers"), ("*", "*"), ("", "users"))
#: What Kubernetes lets everybody do who has said who they are.
EVERYBODY = {
    ("authorization.k8s.io", "selfsubjectaccessreviews", "create"),
    ("authorization.k8s.io", "selfsubjectrulesreviews", "create"),
}
LEASE = "tandem-operator"
NARROW, WATCHED = "narrow-system", "watched"


def resources(api: Api) -> set[tuple[str, str]]:
    """Every resource and subresource that the server knows, and some more, by group."""
    groups = api.call("GET", "/apis")["groups"]
    versions = [("", "/api/v1")]
    versions += [(group["name"], f"/apis/{one['groupVersion']}") for group in groups for one in group["versions"]]
    found = {(group, thing["name"]) for group, path in versions for thing in api.call("GET", path)["resources"]}
    assert {("", "secrets"), ("", "pods/exec"), ("", "nodes/proxy"), ("tandem.dev", "optimizationruns")} <= found
    return found | set(BEYOND)


@dataclass(frozen=True)
class Account:
    """A ServiceAccount, asked about by the administrator; or whoever `token` is, asked by themselves."""

    api: Api
    namespace: str = ""
    name: str = ""

    def may(self, right: Right, namespace: str, of: str = "") -> bool:
        """Whether it may do that, in a namespace or ("") in all of them, with the object `of` that name."""
        group, resource, verb = right
        main, _, sub = resource.partition("/")
        attributes = {"group": group, "resource": main, "subresource": sub, "verb": verb, "namespace": namespace}
        spec: Object = {"resourceAttributes": {**attributes, "name": of}}
        return self._ask(spec)

    def may_get(self, path: str) -> bool:
        """Whether it may read a path that is no resource."""
        return self._ask({"nonResourceAttributes": {"path": path, "verb": "get"}})

    def may_do(self, everything: Iterable[Right], namespace: str) -> set[Right]:
        rights = list(everything)
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda right: self.may(right, namespace), rights))
        return {right for right, answer in zip(rights, answers, strict=True) if answer}

    def _ask(self, spec: Object) -> bool:
        kind = "SelfSubjectAccessReview"
        if self.name:
            kind = "SubjectAccessReview"
            groups = ["system:serviceaccounts", f"system:serviceaccounts:{self.namespace}", "system:authenticated"]
            spec = {**spec, "user": f"system:serviceaccount:{self.namespace}:{self.name}", "groups": groups}
        body = {"apiVersion": "authorization.k8s.io/v1", "kind": kind, "spec": spec}
        answer = self.api.call("POST", f"/apis/authorization.k8s.io/v1/{kind.lower()}s", body)
        return bool(answer["status"]["allowed"])


@pytest.fixture(scope="module")
def plane(ground: Ground) -> ControlPlane:
    return ground.plane


@pytest.fixture(scope="module")
def everything(plane: ControlPlane) -> list[Right]:
    known = sorted(resources(plane.api))
    return [(group, resource, verb) for (group, resource), verb in itertools.product(known, VERBS)]


@pytest.fixture(scope="module")
def operator(plane: ControlPlane) -> Account:
    """The operator of the whole cluster, by its own token."""
    return Account(Api(plane.url, plane.operator_token()))


@pytest.fixture(scope="module")
def narrow(plane: ControlPlane) -> Account:
    """An operator of the namespace `watched` alone."""
    try:
        tools = subprocess.run([str(ROOT / "tools/kubernetes-tools")], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"rendering the chart needs helm: {error}")
    helm = [f"{tools.stdout.strip()}/helm", "template", "narrow", str(ROOT / "charts/tandem"), "--namespace", NARROW]
    values = f"settings.namespaces={{{WATCHED}}},crds.install=false,rbac.aggregate=false"
    done = subprocess.run([*helm, "--set", values], capture_output=True, text=True, check=True)
    plane.create_namespace(NARROW)
    plane.create_namespace(WATCHED)
    for thing in yaml.safe_load_all(done.stdout):
        if thing and thing["kind"] in ("Role", "RoleBinding", "ServiceAccount", "ClusterRole", "ClusterRoleBinding"):
            thing["metadata"].setdefault("namespace", NARROW)
            plane.api.create(thing)
    return Account(plane.api, NARROW, "tandem-narrow-operator")


def lease_rights() -> dict[str, set[str]]:
    """The verbs on Leases, by whose Lease."""
    return {"": {"create"}, LEASE: {"create", "get", "update"}, "another": {"create"}}


@pytest.fixture
def check(everything: list[Right], record_cases: Callable[[str, int, int], None]) -> Callable[..., None]:
    """Ask for everything in a namespace, and compare with what it should be."""

    def compare(account: Account, namespace: str, expected: set[Right]) -> None:
        found = account.may_do(everything, namespace)
        record_cases("operator's rights", len(everything), len(everything) - len(found ^ expected))
        assert found == expected

    return compare


def check_leases(account: Account, namespace: str, name: str) -> None:
    group = GROUPS["leases"]
    for of, verbs in lease_rights().items():
        of = name if of == LEASE else of
        found = {verb for verb in VERBS if account.may((group, "leases", verb), namespace, of)}
        assert found == verbs, f"Lease {of!r} in {namespace}"


@pytest.mark.parametrize("namespace", ["", "kube-system"])
def test_the_operator_of_the_cluster_may_do_what_its_table_says_and_nothing_else(operator, check, namespace):
    check(operator, namespace, table() | EVERYBODY)


def test_in_its_own_namespace_it_has_its_lease_beside_that(operator, check):
    check(operator, OPERATOR_NAMESPACE, table() | EVERYBODY | {(GROUPS["leases"], "leases", "create")})
    check_leases(operator, OPERATOR_NAMESPACE, LEASE)


def test_an_operator_of_some_namespaces_has_rights_there_and_nowhere_else(narrow, check):
    check(narrow, WATCHED, table() | EVERYBODY)
    for namespace in ("", OPERATOR_NAMESPACE):
        check(narrow, namespace, EVERYBODY)
    check(narrow, NARROW, EVERYBODY | {(GROUPS["leases"], "leases", "create")})
    check_leases(narrow, NARROW, "tandem-narrow-operator")


@pytest.mark.parametrize("path", ["/metrics", "/logs", "/logs/kube-apiserver.log", "/debug/pprof", "/configz", "/"])
def test_the_servers_own_pages_are_closed_to_it(operator, path):
    assert not operator.may_get(path)


ATTEMPTS: dict[str, Callable[[Api], Any]] = {
    "read Secrets": lambda api: api.list("Secret", "default"),
    "read a Secret by its name": lambda api: api.get("Secret", "kube-system", "token"),
    "list ConfigMaps": lambda api: api.list("ConfigMap", "default"),
    "read a node": lambda api: api.list("Node"),
    "make a pod": lambda api: api.create({"kind": "Pod", "metadata": {"name": "p", "namespace": "default"}}),
    "run a command": lambda api: api.call("POST", "/api/v1/namespaces/default/pods/p/exec?command=sh"),
    "read a log": lambda api: api.call("GET", "/api/v1/namespaces/default/pods/p/log"),
    "reach a pod through the server": lambda api: api.call("GET", "/api/v1/namespaces/default/pods/p/proxy/"),
    "get a token": lambda api: api.call(
        "POST", "/api/v1/namespaces/default/serviceaccounts/default/token", {"spec": {"audiences": []}}
    ),
    "make a run": lambda api: api.create(
        {"kind": "OptimizationRun", "metadata": {"name": "r", "namespace": "default"}}
    ),
    "give rights": lambda api: api.create({"kind": "ClusterRoleBinding", "metadata": {"name": "me"}}),
    "change the definition": lambda api: api.list("CustomResourceDefinition"),
    "empty a namespace of Jobs": lambda api: api.call("DELETE", "/apis/batch/v1/namespaces/default/jobs"),
}


@pytest.mark.parametrize("what", ATTEMPTS)
def test_what_it_must_not_do_is_refused_when_it_tries(operator, what):
    with pytest.raises(ApiError) as caught:
        ATTEMPTS[what](operator.api)
    assert caught.value.status == 403


@pytest.mark.parametrize(
    ("role", "verbs"),
    [
        ("tandem-viewer", {"get", "list", "watch"}),
        ("tandem-editor", {"get", "list", "watch", "create", "update", "patch", "delete", "deletecollection"}),
    ],
)
def test_people_have_rights_on_runs_in_their_namespace_and_on_nothing_else(plane, check, role, verbs):
    namespace = f"people-of-{role}"
    plane.create_namespace(namespace)
    plane.api.create(
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": {"name": "people", "namespace": namespace},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
            "subjects": [{"kind": "ServiceAccount", "name": "person", "namespace": namespace}],
        }
    )
    person = Account(plane.api, namespace, "person")
    status = {"get", "list", "watch"} if role == "tandem-viewer" else {"get"}
    expected = {("tandem.dev", "optimizationruns", verb) for verb in verbs}
    expected |= {("tandem.dev", "optimizationruns/status", verb) for verb in status}
    check(person, namespace, expected | EVERYBODY)
    assert not any(person.may(right, "default") for right in expected)
