"""`tandem doctor`: each fault of a cluster is found and told with what to do, and nothing is changed."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.operator.cli.cluster_case import manifest, tandem
from tests.unit.operator.cli.fake_cluster import FakeCluster, status_answer

from tandem_api.v1alpha1.crd import render_crd
from tandem_operator.cli.cluster.doctor.needs import CLAIM, CONFIG_MAP, SECRET, Needed, needs_of

Objects = dict[str, dict[str, Any]]
CRD = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/optimizationruns.tandem.dev"
LEASE = "/apis/coordination.k8s.io/v1/namespaces/tandem-system/leases/tandem-operator"
DNS = "/api/v1/namespaces/kube-system/endpoints"
HERE = "/api/v1/namespaces/default"
IMAGE = "registry.example/tandem-trainer:1"
READY = {"conditions": [{"type": "Ready", "status": "True"}]}


def listed(*items: dict[str, Any]) -> dict[str, Any]:
    return {"items": list(items)}


def node(name: str, gpus: int = 0, **more: Any) -> dict[str, Any]:
    allocatable = {"cpu": "8", "memory": "64Gi", **({"nvidia.com/gpu": str(gpus)} if gpus else {})}
    return {"metadata": {"name": name}, "spec": more, "status": {"allocatable": allocatable, **READY}}


def operator_pod(**status: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "tandem-operator-1", "namespace": "tandem-system"},
        "spec": {"containers": [{"image": "registry.example/tandem-operator:1"}]},
        "status": {"phase": "Running", **(status or READY)},
    }


def settings(**more: Any) -> dict[str, Any]:
    document = {"images": {"trainer": IMAGE}, **more}
    metadata = {"name": "tandem-operator", "namespace": "tandem-system"}
    return {"metadata": metadata, "data": {"settings.yaml": yaml.safe_dump(document)}}


def healthy() -> Objects:
    now = f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
    worker = {
        "metadata": {"name": "small-0b-evaluate-1"},
        "status": {"containerStatuses": [{"image": IMAGE, "imageID": "sha256:1"}]},
    }
    groups = ("apps", "jobset.x-k8s.io")
    return {
        "/version": {"major": "1", "minor": "31+", "gitVersion": "v1.31.2"},
        "/apis": {"groups": [{"name": name} for name in groups]},
        "/apis/tandem.dev/v1alpha1": {"resources": []},
        HERE: {"metadata": {"name": "default"}},
        CRD: render_crd(),
        LEASE: {"spec": {"holderIdentity": "tandem-operator-1_x", "renewTime": now, "leaseDurationSeconds": 15}},
        "/api/v1/pods": listed(operator_pod()),
        "/api/v1/configmaps": listed(settings()),
        "/api/v1/nodes": listed(node("a", 4), node("b", 8), node("c"), node("d", 8, unschedulable=True)),
        DNS: listed({"subsets": [{"addresses": [{}, {}]}]}),
        f"{HERE}/pods": listed(worker),
        f"{HERE}/resourcequotas": listed(),
    }


@pytest.fixture
def objects(cluster: FakeCluster) -> Objects:
    """A cluster in good health."""
    cluster.objects |= healthy()
    return cluster.objects


def found(*arguments: object, code: int | None = None) -> list[dict[str, str]]:
    result = tandem("doctor", "-o", "json", *arguments)
    findings: list[dict[str, str]] = json.loads(result.stdout)
    assert result.exit_code == any(one["level"] == "fail" for one in findings)
    assert code is None or result.exit_code == code
    return findings


def of(check: str, findings: list[dict[str, str]]) -> tuple[str, str, str]:
    """The worst finding of that check."""
    worst = ("fail", "warn", "ok")
    chosen = min((one for one in findings if one["check"] == check), key=lambda one: worst.index(one["level"]))
    return chosen["level"], chosen["message"], chosen["fix"]


def test_a_healthy_cluster_is_said_to_be_one(cluster: FakeCluster, objects: Objects) -> None:
    result = tandem("doctor")
    assert result.exit_code == 0
    assert max(len(line.rstrip()) for line in result.stdout.splitlines()) <= 80
    lines = [line.split()[:2] for line in result.stdout.splitlines() if line[:4].strip() in ("ok", "warn", "fail")]
    assert {level for level, _ in lines} == {"ok"}
    checks = {check for _, check in lines}
    assert checks == {"api", "rights", "crd", "operator", "leader", "images", "gpu", "dns", "apis", "quota"}
    said = " ".join(result.stdout.split())
    assert "12 nvidia.com/gpu on 2 of 3 ready nodes, 8 at most" in said
    assert "0 failed -f MANIFEST also checks what a run needs" in said
    # Only questions: nothing was created, changed or deleted.
    assert {path for path, _, _ in cluster.asked("POST")} == {"/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"}
    assert cluster.asked("PATCH") == cluster.asked("DELETE") == []


def without(path: str) -> Callable[[Objects], Any]:
    return lambda objects: objects.pop(path)


def with_(path: str, value: Any) -> Callable[[Objects], Any]:
    return lambda objects: objects.update({path: value})


def lease(seconds: float) -> dict[str, Any]:
    renewed = datetime.now(UTC) - timedelta(seconds=seconds)
    return {"spec": {"holderIdentity": "gone", "renewTime": f"{renewed:%Y-%m-%dT%H:%M:%S.%fZ}"}}


def lacking(*fields: str) -> dict[str, Any]:
    definition = copy.deepcopy(render_crd())
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    for field in fields:
        del schema["spec"]["properties"][field]
    return definition


def more() -> dict[str, Any]:
    definition = lacking()
    schema = definition["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    schema["spec"]["properties"]["novelty"] = {"type": "string"}
    return definition


WAITS = {"image": IMAGE, "state": {"waiting": {"reason": "ImagePullBackOff", "message": "not found"}}}
NOT_READY = {
    "conditions": [{"type": "Ready", "status": "False"}],
    "containerStatuses": [{"state": {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}}}],
}
FULL = {
    "metadata": {"name": "team"},
    "status": {"hard": {"pods": "10", "cpu": "1"}, "used": {"pods": "10", "cpu": "1m"}},
}


@pytest.mark.parametrize(
    ("change", "check", "level", "message", "fix"),
    [
        (with_("/version", {"major": "1", "minor": "18", "gitVersion": "v1.18"}), "api", "fail", "v1.18", "1.20"),
        (without(HERE), "namespace", "fail", "there is no namespace 'default'", "kubectl create namespace default"),
        (without("/apis/tandem.dev/v1alpha1"), "crd", "fail", "are not served", "helm install tandem"),
        (with_(CRD, lacking("budget", "seed")), "crd", "fail", "lacks spec.budget, spec.budget.", "helm upgrade"),
        (with_(CRD, more()), "crd", "warn", "it has spec.novelty", "upgrade tandem here"),
        (with_("/api/v1/pods", listed()), "operator", "fail", "no pod of the operator", "helm install"),
        (with_("/api/v1/pods", listed(operator_pod(**NOT_READY))), "operator", "fail", "CrashLoopBackOff", "logs"),
        (with_("/api/v1/configmaps", listed(settings(namespaces=["team"]))), "operator", "fail", "team", "default"),
        (without(LEASE), "leader", "fail", "no operator leads", "kubectl logs"),
        (with_(LEASE, lease(300)), "leader", "fail", "gone leads, and has said so ", "kubectl get pods"),
        (with_("/api/v1/nodes", listed(node("a"))), "gpu", "warn", "no accelerator on 1 ready nodes", "plugin"),
        (with_("/api/v1/nodes", listed()), "gpu", "fail", "none of 0 nodes is ready", "kubectl get nodes"),
        (with_(DNS, listed({"subsets": []})), "dns", "fail", "no server that is ready", "k8s-app=kube-dns"),
        (with_(DNS, listed()), "dns", "warn", "another DNS may well be there", "nslookup"),
        (with_(f"{HERE}/resourcequotas", listed(FULL)), "quota", "warn", "pods of team (10 of 10)", "raise it"),
        (
            with_(f"{HERE}/pods", listed({"metadata": {"name": "x"}, "status": {"containerStatuses": [WAITS]}})),
            *("images", "fail", f"{IMAGE} cannot be pulled: ImagePullBackOff: not found", "pullSecrets"),
        ),
    ],
)
def test_a_fault_is_found_and_told_with_what_to_do(
    objects: Objects, change: Callable[[Objects], Any], check: str, level: str, message: str, fix: str
) -> None:
    change(objects)
    was, said, how = of(check, found(code=1 if level == "fail" else 0))
    assert was == level
    assert message in said
    assert fix in how


@pytest.mark.parametrize(
    ("path", "check"),
    [
        ("/api/v1/nodes", "gpu"),
        (DNS, "dns"),
        ("/api/v1/pods", "operator"),
        (LEASE, "leader"),
        ("/api/v1/configmaps", "images"),
        (f"{HERE}/resourcequotas", "quota"),
        ("/apis/tandem.dev/v1alpha1", "crd"),
    ],
)
def test_what_a_user_may_not_see_is_no_failure(cluster: FakeCluster, objects: Objects, path: str, check: str) -> None:
    cluster.refuse("GET", path, status_answer(403, "Forbidden", "you cannot"), forever=True)
    level, message, _ = of(check, found(code=0))
    assert level == "warn"
    assert "cannot be seen" in message


def test_missing_rights_are_named_with_the_role_that_has_them(cluster: FakeCluster, objects: Objects) -> None:
    cluster.allowed = lambda attributes: attributes["verb"] in ("get", "list", "watch")
    level, message, fix = of("rights", found(code=0))
    assert level == "warn"
    assert "you may look, but not create optimizationruns.tandem.dev, patch " in message
    assert "--clusterrole=edit" in fix
    cluster.allowed = lambda attributes: attributes.get("subresource") != "log"
    level, message, fix = of("rights", found(code=1))
    assert (level, message) == ("fail", "you may not get pods/log in namespace default")
    assert "--clusterrole=view" in fix


def test_a_cluster_that_does_not_answer_is_one_finding(cluster: FakeCluster) -> None:
    cluster.refuse("GET", "/version", status_answer(503, "ServiceUnavailable", "etcd is down"), forever=True)
    (finding,) = found(code=1)
    assert finding["check"] == "api"
    assert "answers 503: etcd is down" in finding["message"]


def gpu_run() -> dict[str, Any]:
    s3 = {"bucket": "bucket", "credentialsSecret": "keys"}
    return manifest(
        model={"uri": "pvc://models/a", "tokenSecret": "hub"},
        storage={"s3": s3},
        serving={"resources": {"limits": {"nvidia.com/gpu": 8}}},
        training={"resources": {"limits": {"nvidia.com/gpu": 8}}},
    )


NEEDED = {
    f"{HERE}/secrets/keys": {"data": {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}},
    f"{HERE}/secrets/hub": {"data": {"token": ""}},
    f"{HERE}/configmaps/rows": {"data": {"train.jsonl": ""}},
    f"{HERE}/persistentvolumeclaims/models": {"status": {"phase": "Bound"}},
}


def examined(run: dict[str, Any]) -> list[dict[str, str]]:
    Path("run.yaml").write_text(yaml.safe_dump(run))
    return found("-f", "run.yaml")


def test_all_that_a_manifest_needs_is_looked_for(cluster: FakeCluster, objects: Objects) -> None:
    objects |= NEEDED
    findings = examined(gpu_run())
    assert {one["level"] for one in findings} == {"ok"}
    assert of("manifest", findings)[1] == "the API server would accept it"
    told = {one["message"] for one in findings if one["check"] in ("storage", "data")}
    assert told == {
        "Secret keys is there, with AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY",
        "Secret hub is there",
        "ConfigMap rows is there, with train.jsonl",
        "claim models is there",
    }
    assert cluster.runs == {}


@pytest.mark.parametrize(
    ("change", "check", "level", "message"),
    [
        (without(f"{HERE}/secrets/keys"), "storage", "fail", "there is no Secret keys in namespace default"),
        (
            with_(f"{HERE}/secrets/keys", {"data": {"AWS_ACCESS_KEY_ID": ""}}),
            *("storage", "fail", "Secret keys has no AWS_SECRET_ACCESS_KEY; it has AWS_ACCESS_KEY_ID"),
        ),
        (with_(f"{HERE}/configmaps/rows", {}), "data", "fail", "ConfigMap rows has no train.jsonl; it is empty"),
        (without(f"{HERE}/persistentvolumeclaims/models"), "storage", "fail", "there is no claim models"),
        (
            with_(f"{HERE}/persistentvolumeclaims/models", {"status": {"phase": "Pending"}}),
            *("storage", "warn", "claim models is Pending"),
        ),
        (
            with_("/api/v1/nodes", listed(node("a", 4))),
            *("gpu", "fail", "spec.serving.resources asks for 8 nvidia.com/gpu, and no node has more than 4"),
        ),
    ],
)
def test_what_a_manifest_needs_and_is_not_there_is_told(
    objects: Objects, change: Callable[[Objects], Any], check: str, level: str, message: str
) -> None:
    objects |= NEEDED
    change(objects)
    was, said, fix = of(check, examined(gpu_run()))
    assert was == level
    assert message in said
    assert fix


def test_apis_that_a_manifest_needs_must_be_there(objects: Objects) -> None:
    objects |= NEEDED
    queued = gpu_run()
    queued["spec"]["queue"] = "team"
    assert of("apis", examined(queued))[:2] == (
        "fail",
        "the manifest says spec.queue: team, and Kueue is not installed",
    )
    several = gpu_run()
    several["spec"]["training"] = {"backend": "jobset", "nodes": 2}
    assert of("apis", examined(several))[0] == "ok"


def test_a_manifest_that_admission_refuses_is_told_so(cluster: FakeCluster, objects: Objects) -> None:
    objects |= NEEDED
    path = "/apis/tandem.dev/v1alpha1/namespaces/default/optimizationruns"
    cluster.refuse("POST", path, status_answer(403, "Forbidden", "exceeded quota: runs"))
    assert "exceeded quota: runs" in of("manifest", examined(gpu_run()))[1]


def test_a_manifest_that_is_not_valid_is_an_error_of_its_own(cluster: FakeCluster) -> None:
    Path("run.yaml").write_text(yaml.safe_dump(manifest(novelty=1)))
    result = tandem("doctor", "-f", "run.yaml")
    assert result.exit_code == 2
    assert "spec.novelty: unknown field" in result.stderr


def test_the_defaults_of_the_operator_count_where_a_manifest_says_nothing() -> None:
    defaults = {
        "training": {"resources": {"limits": {"nvidia.com/gpu": "2", "cpu": 4}}},
        "cacheVolume": {"persistentVolumeClaim": {"claimName": "tandem-cache"}},
    }
    needs = needs_of(manifest()["spec"], {"defaults": defaults, "images": {"pullSecrets": ["registry"]}})
    (devices,) = needs.devices
    assert (devices.where, devices.amounts) == ("the operator's defaults.training.resources", {"nvidia.com/gpu": 2})
    assert {Needed(CLAIM, "tandem-cache"), Needed(SECRET, "registry")} <= set(needs.objects)


def test_mlflows_account_is_no_key_of_the_bucket_and_no_need() -> None:
    """Pods start without it: no run fails for MLflow."""
    mlflow = {"uri": "http://mlflow:5000", "experiment": "reviews", "credentialsSecret": "mlflow"}
    needs = needs_of({**gpu_run()["spec"], "tracking": {"mlflow": mlflow}}, {})
    assert {one.name for one in needs.objects if one.kind == SECRET} == {"keys", "hub"}


def test_pod_templates_need_what_they_mount() -> None:
    spec = {
        "volumes": [
            {"name": "a", "secret": {"secretName": "certificates"}},
            {"name": "b", "configMap": {"name": "maybe", "optional": True}},
            {"name": "c", "persistentVolumeClaim": {"claimName": "scratch"}},
        ],
        "imagePullSecrets": [{"name": "registry"}],
        "containers": [
            {
                "env": [{"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "tokens", "key": "a"}}}],
                "envFrom": [{"configMapRef": {"name": "variables"}}],
            }
        ],
    }
    wanted = needs_of({"workers": {"podTemplate": {"spec": spec}}}, {}).objects
    assert set(wanted) == {
        Needed(SECRET, "certificates"),
        Needed(CLAIM, "scratch"),
        Needed(SECRET, "registry"),
        Needed(SECRET, "tokens", ("a",)),
        Needed(CONFIG_MAP, "variables"),
    }
