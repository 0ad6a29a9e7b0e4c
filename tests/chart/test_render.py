"""What the chart makes of its values: the objects that people install."""

from __future__ import annotations

import copy
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.chart.api_schema import complaints
from tests.chart.conftest import CHART, NAMESPACE, ROOT, Object, Render

DIGEST = f"sha256:{'a' * 64}"
EVERYTHING: dict[str, Any] = {
    "replicas": 3,
    "images": {
        "operator": {"repository": "example.org:5000/team/tandem-operator", "tag": "9", "digest": DIGEST},
        "trainer": {"tag": "9", "pullSecrets": ["mirror"]},
    },
    "imagePullSecrets": [{"name": "mirror"}],
    "serviceAccount": {"annotations": {"example.org/role": "tandem"}},
    "podLabels": {"team": "ml", "app.kubernetes.io/component": "other"},
    "podAnnotations": {"note": "1"},
    "nodeSelector": {"kubernetes.io/arch": "amd64"},
    "tolerations": [{"key": "spot", "operator": "Exists"}],
    "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{}]}}},
    "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}],
    "priorityClassName": "high",
    "extraEnv": [{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}],
    "metricsService": {"annotations": {"prometheus.io/scrape": "true"}},
    "podDisruptionBudget": {"enabled": True, "minAvailable": 2},
    "networkPolicy": {
        "metricsFrom": [{"namespaceSelector": {"matchLabels": {"team": "monitoring"}}}],
        "apiServer": {"ports": [7443], "cidrs": ["10.0.0.1/32"]},
        "cloudEvents": {"to": [{"namespaceSelector": {"matchLabels": {"team": "events"}}}]},
    },
    "cloudEventsSecret": {"name": "cloudevents", "key": "key"},
    "settings": {
        "cloudEvents": {"urls": ["http://broker.events.svc/tandem", "https://hooks.example.org:8443/x?y=1"]},
        "defaults": {
            "cacheVolume": {"persistentVolumeClaim": {"claimName": "models"}},
            "podTemplate": {"spec": {"nodeSelector": {"pool": "gpu"}}},
            "serving": {"resources": {"limits": {"nvidia.com/gpu": None, "amd.com/gpu": 2}}},
        },
    },
}


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A values file with every optional thing on."""
    path: Path = tmp_path_factory.mktemp("values") / "everything.yaml"
    path.write_text(yaml.safe_dump(EVERYTHING))
    return str(path)


def operator_pod(objects: dict[str, Object]) -> Object:
    spec: Object = objects["Deployment/tandem-operator"]["spec"]["template"]["spec"]
    return spec


def settings(objects: dict[str, Object]) -> Object:
    document: Object = yaml.safe_load(objects["ConfigMap/tandem-operator"]["data"]["settings.yaml"])
    return document


def rules(objects: dict[str, Object]) -> list[Object]:
    return [rule for name, o in objects.items() if name.startswith(("ClusterRole/", "Role/")) for rule in o["rules"]]


def test_lint_finds_nothing(helm: str) -> None:
    done = subprocess.run([helm, "lint", "--strict", str(CHART)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_default_objects(render: Render) -> None:
    assert set(render()) == {
        "ClusterRole/tandem-editor",
        "ClusterRole/tandem-operator",
        "ClusterRole/tandem-viewer",
        "ClusterRoleBinding/tandem-operator",
        "ConfigMap/tandem-operator",
        "CustomResourceDefinition/optimizationruns.tandem.dev",
        "Deployment/tandem-operator",
        "NetworkPolicy/tandem-operator",
        "Role/tandem-operator-lease",
        "RoleBinding/tandem-operator-lease",
        "Service/tandem-metrics",
        "ServiceAccount/tandem-operator",
    }


def test_every_namespaced_object_says_its_namespace(render: Render) -> None:
    cluster = ("ClusterRole", "CustomResourceDefinition")
    for name, document in render().items():
        assert document["metadata"].get("namespace") == (None if name.startswith(cluster) else NAMESPACE), name


@pytest.mark.parametrize("arguments", [(), ("--set", "settings.namespaces={a,b}")])
def test_objects_are_of_the_apis_types(render: Render, everything: str, arguments: tuple[str, ...]) -> None:
    for values in ((), ("--values", everything)):
        for document in render(*values, *arguments).values():
            assert complaints(document) == []


def test_the_check_of_types_finds_faults() -> None:
    container = {"name": "c", "imagePullPolicyy": "Always", "ports": [{"containerPort": "80"}, {"name": "x"}]}
    found = complaints({"apiVersion": "v1", "kind": "Pod", "spec": {"containers": [container], "nodeName": True}})
    assert len(found) == 4, found


# --- the pod -------------------------------------------------------------------------------------------------------


def test_pod_meets_the_restricted_level(render: Render) -> None:
    pod = operator_pod(render())
    (container,) = pod["containers"]
    assert pod["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 65532,
        "runAsGroup": 65532,
        "seccompProfile": {"type": "RuntimeDefault"},
    }
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert not {"hostNetwork", "hostPID", "hostIPC"} & pod.keys()
    assert {next(iter(volume.keys() - {"name"})) for volume in pod["volumes"]} == {"configMap", "emptyDir"}
    assert {mount["mountPath"] for mount in container["volumeMounts"]} == {"/etc/tandem", "/tmp"}


def test_pod_is_set_up_for_the_operator(render: Render) -> None:
    pod = operator_pod(render())
    (container,) = pod["containers"]
    environment = {variable["name"]: variable for variable in container["env"]}
    assert environment["TANDEM_OPERATOR_CONFIG"]["value"] == "/etc/tandem/settings.yaml"
    assert environment["POD_NAME"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.name"
    assert environment["POD_NAMESPACE"]["valueFrom"]["fieldRef"]["fieldPath"] == "metadata.namespace"
    assert (pod["enableServiceLinks"], pod["terminationGracePeriodSeconds"]) == (False, 30)
    assert pod["automountServiceAccountToken"] is True
    assert set(container["resources"]) == {"requests", "limits"}


def test_ports_are_those_of_the_settings_everywhere(render: Render) -> None:
    objects = render("--set", "settings.metricsPort=9001,settings.healthPort=9002")
    (container,) = operator_pod(objects)["containers"]
    assert {port["name"]: port["containerPort"] for port in container["ports"]} == {"metrics": 9001, "health": 9002}
    assert container["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "health"}
    assert container["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "health"}
    (service,) = objects["Service/tandem-metrics"]["spec"]["ports"]
    assert (service["port"], service["targetPort"]) == (9001, "metrics")
    allowed = objects["NetworkPolicy/tandem-operator"]["spec"]["ingress"]
    assert sorted(port["port"] for rule in allowed for port in rule["ports"]) == [9001, 9002]


def test_changed_settings_start_new_pods(render: Render) -> None:
    def annotations(*arguments: str) -> Object:
        template: Object = render(*arguments)["Deployment/tandem-operator"]["spec"]["template"]
        found: Object = template["metadata"]["annotations"]
        return found

    assert annotations() == annotations("--set", "rbac.aggregate=false")
    assert annotations() != annotations("--set", "settings.pollSeconds=6")
    assert annotations() != annotations("--set", "images.trainer.tag=other")


def test_options_reach_the_pod_and_selectors_stay_ours(render: Render, everything: str) -> None:
    objects = render("--values", everything)
    deployment, pod = objects["Deployment/tandem-operator"]["spec"], operator_pod(objects)
    selector = deployment["selector"]["matchLabels"]
    for name in ("imagePullSecrets", "nodeSelector", "tolerations", "affinity", "priorityClassName"):
        assert pod[name] == EVERYTHING[name]
    metadata = deployment["template"]["metadata"]
    assert metadata["labels"]["team"] == "ml"
    assert metadata["annotations"]["note"] == "1"
    assert selector["app.kubernetes.io/component"] == "operator"
    assert selector.items() <= metadata["labels"].items()
    assert pod["topologySpreadConstraints"][0]["labelSelector"] == {"matchLabels": selector}
    assert {"name": "HTTPS_PROXY", "value": "http://proxy:3128"} in pod["containers"][0]["env"]
    assert objects["Service/tandem-metrics"]["spec"]["selector"] == selector
    assert objects["NetworkPolicy/tandem-operator"]["spec"]["podSelector"]["matchLabels"] == selector
    assert objects["PodDisruptionBudget/tandem-operator"]["spec"] == {
        "minAvailable": 2,
        "selector": {"matchLabels": selector},
    }


def test_network_policy_narrows_as_told(render: Render, everything: str) -> None:
    spec = render("--values", everything)["NetworkPolicy/tandem-operator"]["spec"]
    assert spec["ingress"][1]["from"] == EVERYTHING["networkPolicy"]["metricsFrom"]
    assert spec["egress"][1] == {
        "ports": [{"protocol": "TCP", "port": 7443}],
        "to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}],
    }
    assert [port["port"] for port in spec["egress"][2]["ports"]] == [8000, 8080, 8081]


def test_receivers_of_cloudevents_are_reached_and_the_key_is_a_file(render: Render, everything: str) -> None:
    objects = render("--values", everything)
    assert objects["NetworkPolicy/tandem-operator"]["spec"]["egress"][3] == {
        "ports": [{"protocol": "TCP", "port": 80}, {"protocol": "TCP", "port": 8443}],
        "to": EVERYTHING["networkPolicy"]["cloudEvents"]["to"],
    }
    (volume,) = [one for one in operator_pod(objects)["volumes"] if "secret" in one]
    assert volume["secret"] == {"secretName": "cloudevents", "items": [{"key": "key", "path": "key"}]}
    (mount,) = [one for one in operator_pod(objects)["containers"][0]["volumeMounts"] if one["name"] == volume["name"]]
    assert mount["readOnly"] and "subPath" not in mount, "a file of a subPath never changes"
    assert settings(objects)["cloudEvents"]["signingKeyFile"] == f"{mount['mountPath']}/key"
    ports = "settings.cloudEvents.urls={https://x/},cloudEventsSecret.name=s,networkPolicy.cloudEvents.ports={8080}"
    (rule,) = render("--set", ports)["NetworkPolicy/tandem-operator"]["spec"]["egress"][3:]
    assert rule == {"ports": [{"protocol": "TCP", "port": 8080}]}


def test_without_receivers_no_secret_is_mounted_and_no_port_is_open(render: Render) -> None:
    objects = render("--set", "cloudEventsSecret.name=unused")
    assert not any("secret" in volume for volume in operator_pod(objects)["volumes"])
    assert len(objects["NetworkPolicy/tandem-operator"]["spec"]["egress"]) == 3


def test_digest_wins_over_tag_and_tag_over_the_charts_version(render: Render, everything: str) -> None:
    version = yaml.safe_load((CHART / "Chart.yaml").read_text())["appVersion"]
    plain, set_up = render(), render("--values", everything)
    assert operator_pod(plain)["containers"][0]["image"] == f"tandem-operator:{version}"
    assert settings(plain)["images"]["trainer"] == f"tandem-trainer:{version}"
    assert operator_pod(set_up)["containers"][0]["image"] == f"example.org:5000/team/tandem-operator@{DIGEST}"
    assert settings(set_up)["images"] == {
        "trainer": "tandem-trainer:9",
        "pullPolicy": "IfNotPresent",
        "pullSecrets": ["mirror"],
    }


# --- the settings --------------------------------------------------------------------------------------------------


def test_the_operator_reads_the_settings_file(render: Render, everything: str, tmp_path: Path) -> None:
    module = pytest.importorskip("tandem_operator.settings")
    path = tmp_path / "settings.yaml"
    for arguments in ((), ("--values", everything), ("--set", "settings.namespaces={a,b}")):
        objects = render(*arguments)
        path.write_text(objects["ConfigMap/tandem-operator"]["data"]["settings.yaml"])
        loaded = module.load_settings({"TANDEM_OPERATOR_CONFIG": str(path)})
        # Every setting is written, so that a change of the operator's own default changes nothing unseen.
        assert json.loads(loaded.model_dump_json(by_alias=True)) == settings(objects)


def test_defaults_of_runs(render: Render, everything: str) -> None:
    plain, set_up = settings(render())["defaults"], settings(render("--values", everything))["defaults"]
    assert plain["serving"]["resources"]["limits"] == plain["training"]["resources"]["limits"] == {"nvidia.com/gpu": 1}
    assert plain["workers"]["resources"]["requests"] == {"cpu": "1", "memory": "2Gi"}
    assert plain["cacheVolume"] == {"emptyDir": {}}
    assert set_up["serving"]["resources"]["limits"] == {"amd.com/gpu": 2}
    assert set_up["cacheVolume"] == {"persistentVolumeClaim": {"claimName": "models"}}


# --- rights --------------------------------------------------------------------------------------------------------


def test_nobody_may_touch_secrets_or_everything(render: Render) -> None:
    for arguments in ((), ("--set", "settings.namespaces={a,b}")):
        for rule in rules(render(*arguments)):
            assert not {"secrets", "*"} & {*rule["resources"], *rule["verbs"], *rule["apiGroups"]}, rule
            assert not {"escalate", "bind", "impersonate", "deletecollection"} & {*rule["verbs"]} or (
                rule["apiGroups"] == ["tandem.dev"]
            )


def test_the_operator_has_the_verbs_that_it_uses_and_no_other(render: Render) -> None:
    def verbs(role: str) -> dict[str, str]:
        found: dict[str, str] = {}
        for rule in render()[role]["rules"]:
            for resource in rule["resources"]:
                assert resource not in found or "resourceNames" in rule, resource
                found[resource] = " ".join([*found.get(resource, "").split(), *rule["verbs"]])
        return found

    assert verbs("ClusterRole/tandem-operator") == {
        "optimizationruns": "get list watch patch delete",
        "optimizationruns/status": "update",
        "optimizationruns/finalizers": "update",
        # Server-side apply is `patch`, and `create` where there is nothing yet.
        "jobs": "get list watch create patch delete",
        "jobsets": "get list create patch delete",
        "deployments": "get list watch create patch delete",
        "services": "get create patch delete",
        "configmaps": "get create patch delete",
        "networkpolicies": "get create patch delete",
        "pods": "get list watch patch delete",
        "events": "get list create patch",
    }
    assert verbs("Role/tandem-operator-lease") == {"leases": "create get update"}


def test_listed_namespaces_get_rights_and_the_cluster_none(render: Render) -> None:
    wide, narrow = render(), render("--set", f"settings.namespaces={{a,{NAMESPACE}}}")
    expected = wide["ClusterRole/tandem-operator"]["rules"]
    assert "ClusterRole/tandem-operator" not in narrow
    assert "ClusterRoleBinding/tandem-operator" not in narrow
    for where in ("a/", ""):
        assert narrow[f"Role/{where}tandem-operator"]["rules"] == expected
        binding = narrow[f"RoleBinding/{where}tandem-operator"]
        assert binding["roleRef"]["kind"] == "Role"
        assert binding["subjects"] == [{"kind": "ServiceAccount", "name": "tandem-operator", "namespace": NAMESPACE}]
    assert settings(narrow)["namespaces"] == ["a", NAMESPACE]


def test_the_lease_is_the_one_of_the_settings(render: Render) -> None:
    for arguments, name in (((), "tandem-operator"), (("--set", "settings.lease.name=other"), "other")):
        objects = render(*arguments)
        create, rest = objects["Role/tandem-operator-lease"]["rules"]
        assert (create["verbs"], rest["resourceNames"]) == (["create"], [name])
        assert settings(objects)["lease"]["name"] == name


def test_people_get_rights_with_the_built_in_roles(render: Render) -> None:
    objects = render()
    viewer, editor = objects["ClusterRole/tandem-viewer"], objects["ClusterRole/tandem-editor"]
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    assert {key for key in viewer["metadata"]["labels"] if key.startswith(prefix)} == {
        f"{prefix}view",
        f"{prefix}edit",
        f"{prefix}admin",
    }
    assert f"{prefix}view" not in editor["metadata"]["labels"]
    assert {verb for rule in viewer["rules"] for verb in rule["verbs"]} == {"get", "list", "watch"}
    # The status is the operator's: who may edit runs cannot write their results.
    assert editor["rules"][1] == {
        "apiGroups": ["tandem.dev"],
        "resources": ["optimizationruns/status"],
        "verbs": ["get"],
    }


def test_what_is_switched_off_is_not_made(render: Render) -> None:
    off = ("serviceAccount.create", "rbac.create", "rbac.aggregate", "metricsService.enabled", "networkPolicy.enabled")
    objects = render("--set", ",".join(f"{name}=false" for name in (*off, "crds.install")))
    assert set(objects) == {"ConfigMap/tandem-operator", "Deployment/tandem-operator"}
    assert operator_pod(objects)["serviceAccountName"] == "default"


# --- the resource definition ---------------------------------------------------------------------------------------


def definition(objects: dict[str, Object]) -> Object:
    return copy.deepcopy(objects["CustomResourceDefinition/optimizationruns.tandem.dev"])


def without_rules(part: Any) -> Any:
    if isinstance(part, dict):
        return {key: without_rules(inner) for key, inner in part.items() if key != "x-kubernetes-validations"}
    return [without_rules(inner) for inner in part] if isinstance(part, list) else part


def test_definition_is_the_generated_one_and_kept(render: Render) -> None:
    source = yaml.safe_load((ROOT / "crds" / "tandem.dev_optimizationruns.yaml").read_text())
    rendered = definition(render())
    assert rendered["metadata"].pop("annotations") == {"helm.sh/resource-policy": "keep"}
    rendered["metadata"].pop("labels")
    assert rendered == source
    assert "annotations" not in definition(render("--set", "crds.keep=false"))["metadata"]


def test_definition_is_one_that_old_servers_take(render: Render) -> None:
    for version in ("1.20.2", "v1.24.17-eks-1"):
        old = definition(render("--kube-version", version))
        assert old == without_rules(definition(render())) != definition(render())
    assert definition(render("--kube-version", "v1.25.0-gke.100")) == definition(render())


def test_old_servers_get_their_disruption_budget(render: Render) -> None:
    arguments = ("--set", "replicas=2,podDisruptionBudget.enabled=true", "--kube-version")
    for version, api in (("1.20.2", "policy/v1beta1"), ("1.21.0", "policy/v1"), ("v1.31.4-eks-2d5f260", "policy/v1")):
        assert render(*arguments, version)["PodDisruptionBudget/tandem-operator"]["apiVersion"] == api


# --- names ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("release", "arguments", "name"),
    [
        ("tandem-dev", (), "tandem-dev-operator"),
        ("prod", (), "tandem-prod-operator"),
        ("1.2", (), "tandem-1-2-operator"),
        ("r" * 53, (), f"tandem-{'r' * 38}-operator"),
        ("prod", ("--set", "fullnameOverride=opt"), "opt-operator"),
    ],
)
def test_names_follow_the_release(render: Render, release: str, arguments: tuple[str, ...], name: str) -> None:
    objects = render(*arguments, release=release)
    assert f"Deployment/{name}" in objects
    assert all(len(document["metadata"]["name"]) <= 63 for document in objects.values())
    assert settings({"ConfigMap/tandem-operator": objects[f"ConfigMap/{name}"]})["lease"]["name"] == name
