"""The patch of a pod template: what is accepted, what is refused and what to do instead."""

from __future__ import annotations

import copy

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from tandem_api.v1alpha1 import podtemplate_fields as fields
from tandem_api.v1alpha1.podtemplate import _PARTS, REFUSED, checked, problems
from tandem_api.v1alpha1.run import GROUP

EVERYTHING = {
    "metadata": {
        "labels": {"team": "nlp", "example.com/cost-centre": "42"},
        "annotations": {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "note": "any text: \n{}"},
    },
    "spec": {
        "nodeSelector": {"nvidia.com/gpu.product": "NVIDIA-H100-80GB-HBM3"},
        "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
        "affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": {}}},
        "topologySpreadConstraints": [{"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}],
        "runtimeClassName": "nvidia",
        "schedulerName": "gang",
        "imagePullSecrets": [{"name": "registry"}],
        "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["store"]}],
        "dnsConfig": {"options": [{"name": "ndots", "value": "2"}]},
        "dnsPolicy": "ClusterFirst",
        "terminationGracePeriodSeconds": 120,
        "securityContext": {
            "fsGroup": 1000,
            "fsGroupChangePolicy": "OnRootMismatch",
            "supplementalGroups": [2000],
            "runAsUser": 1000,
            "runAsGroup": 1000,
        },
        "volumes": [
            {"name": "cache", "persistentVolumeClaim": {"claimName": "models"}},
            {"name": "settings", "configMap": {"name": "settings", "items": [{"key": "a", "path": "b"}]}},
            {"name": "keys", "secret": {"secretName": "keys", "defaultMode": 256}},
            {"name": "scratch", "emptyDir": {"sizeLimit": "1Gi"}},
            {"name": "certificates", "projected": {"sources": [{"secret": {"name": "ca"}}]}},
            {"name": "pod", "downwardAPI": {"items": []}},
            {"name": "vault", "csi": {"driver": "secrets-store.csi.k8s.io"}},
            {"name": "fast", "ephemeral": {"volumeClaimTemplate": {}}},
        ],
        "containers": [
            {
                "name": "worker",
                "env": [
                    {"name": "PYTHONPATH", "value": "/opt/code"},
                    {"name": "JUDGE_KEY", "valueFrom": {"secretKeyRef": {"name": "judge", "key": "key"}}},
                    {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "spec.nodeName"}}},
                ],
                "envFrom": [{"configMapRef": {"name": "proxy", "optional": True}}, {"secretRef": {"name": "more"}}],
                "volumeMounts": [
                    {"name": "settings", "mountPath": "/etc/settings", "readOnly": True},
                    {"name": "scratch", "mountPath": "/tmp/scratch", "subPath": "a"},
                ],
                "resources": {"requests": {"cpu": 2, "memory": "16Gi"}, "limits": {"memory": "16Gi", "cpu": "2500m"}},
                "imagePullPolicy": "Always",
            },
            {"name": "vllm"},
            {"name": "adapters"},
        ],
    },
}


def container(**patch: object) -> dict[str, object]:
    return {"spec": {"containers": [{"name": "vllm", **patch}]}}


def spec(**patch: object) -> dict[str, object]:
    return {"spec": patch}


def volume(**patch: object) -> dict[str, object]:
    return {"spec": {"volumes": [{"name": "mine", **patch}]}}


def at(path: str, value: object) -> dict[str, object]:
    """A patch with `value` at a path of `REFUSED`, and what is needed around it."""
    around = {
        "spec.volumes": [{"name": "mine", "emptyDir": {}}],
        "spec.volumes.configMap": {"name": "mine"},
        "spec.volumes.secret": {"secretName": "mine"},
        "spec.volumes.persistentVolumeClaim": {"claimName": "mine"},
        "spec.volumes.projected.sources": [{"secret": {}}],
        "spec.tolerations": [{}],
        "spec.imagePullSecrets": [{"name": "mine"}],
        "spec.containers": [{"name": "vllm"}],
        "spec.containers.volumeMounts": [{"name": "mine", "mountPath": "/mine"}],
        "spec.containers.env": [{"name": "MINE", "value": ""}],
        "spec.containers.env.valueFrom": {"fieldRef": {}},
        "spec.containers.env.valueFrom.configMapKeyRef": {"name": "mine", "key": "a"},
        "spec.containers.env.valueFrom.secretKeyRef": {"name": "mine", "key": "a"},
        "spec.containers.envFrom": [{"secretRef": {"name": "mine"}}],
        "spec.containers.envFrom.configMapRef": {"name": "mine"},
        "spec.containers.envFrom.secretRef": {"name": "mine"},
    }
    patch: dict[str, object] = {}
    here, walked = patch, ""
    *parents, name = path.split(".")
    for parent in parents:
        walked = f"{walked}.{parent}".lstrip(".")
        inner = here.setdefault(parent, copy.deepcopy(around.get(walked, {})))
        here = inner[0] if isinstance(inner, list) else inner  # type: ignore[assignment]
    here[name] = value
    return patch


def without_indices(path: str) -> str:
    return path.replace("[0]", "")


def test_everything_that_is_allowed_is_accepted_as_it_is():
    assert problems(EVERYTHING) == []
    before = copy.deepcopy(EVERYTHING)
    assert checked(EVERYTHING) is EVERYTHING
    assert before == EVERYTHING
    assert checked(None) is None
    assert problems({}) == problems({"metadata": None, "spec": {"tolerations": None}}) == []


@pytest.mark.parametrize("path", sorted(REFUSED))
@pytest.mark.parametrize("value", [True, "x", {}, None])
def test_each_refused_field_is_told_with_what_to_do_instead(path, value):
    found = {without_indices(where): message for where, message in problems(at(path, value))}
    assert found[path] == f"not allowed: {REFUSED[path]}"


@pytest.mark.parametrize(
    ("path", "fix"),
    [
        ("spec.serviceAccountName", "use spec.storage.s3.serviceAccount"),
        ("spec.priorityClassName", "use spec.priorityClass"),
        ("spec.containers.image", "use spec.serving.image or spec.program.image"),
        ("spec.containers.args", "spec.serving.extraArgs"),
        ("spec.volumes.hostPath", "use a persistentVolumeClaim"),
        ("spec.securityContext.privileged", "remove it"),
        *((f"spec.{name}", "remove it") for name in ("hostNetwork", "hostPID", "hostIPC")),
        ("spec.automountServiceAccountToken", "remove it"),
        ("spec.initContainers", "spec.program.image"),
        ("spec.containers.command", "Tandem starts its own programs"),
        ("spec.containers.securityContext", "spec.securityContext"),
        ("spec.volumes.projected.sources.serviceAccountToken", "remove it"),
        ("spec.volumes.nfs", "use a persistentVolumeClaim"),
    ],
)
def test_what_the_profile_and_the_spec_decide_is_refused(path, fix):
    assert fix in REFUSED[path]


@pytest.mark.parametrize("path", sorted(_PARTS))
def test_an_unknown_field_is_told_with_the_known_ones_at_every_place(path):
    known = sorted(field.alias for field in _PARTS[path].model_fields.values())
    misspelt = known[0][:-1] + "_"
    where = f"{path}.{misspelt}".lstrip(".")
    found = {without_indices(at_path): message for at_path, message in problems(at(where, 1))}
    assert found[where].startswith("unknown field; did you mean ")
    assert found[where].endswith(f"? allowed: {', '.join(known)}")


def test_every_object_of_the_models_has_its_place():
    models = {m for m in vars(fields).values() if isinstance(m, type) and issubclass(m, BaseModel)}
    # The resources of a spec's own part have devices, too.
    elsewhere = {fields.PodResources}
    ours = {m for m in models if m.__module__ == fields.__name__ and not m.__name__.startswith("_")}
    assert ours - elsewhere == {*_PARTS.values()}


@pytest.mark.parametrize(
    ("patch", "path", "message"),
    [
        (None, "(patch)", "found nothing; allowed: an object"),
        ([], "(patch)", "found a list; allowed: an object"),
        ({"metdata": {}}, "metdata", "did you mean metadata?"),
        ({"spec": {"hostnetwork": True}}, "spec.hostnetwork", "unknown field;"),
        ({"spec": []}, "spec", "found a list; allowed: an object"),
        ({"metadata": {"labels": ["a"]}}, "metadata.labels", "found a list; allowed: an object"),
        ({"metadata": {"labels": {"a": True}}}, "metadata.labels.a", 'found true; allowed: a text: write "true"'),
        ({"metadata": {"labels": {"a": "b c"}}}, "metadata.labels.a", "found 'b c';"),
        ({"metadata": {"labels": {"a b": "c"}}}, "metadata.labels.a b", "found 'a b';"),
        ({"metadata": {"annotations": {"a": 1}}}, "metadata.annotations.a", 'write "1" in quotes'),
        (spec(node_selector={}), "spec.node_selector", "did you mean nodeSelector?"),
        (spec(nodeSelector={"gpu": 1}), "spec.nodeSelector.gpu", 'write "1" in quotes'),
        (spec(tolerations={"key": "gpu"}), "spec.tolerations", "found an object; allowed: a list"),
        (spec(tolerations=["gpu"]), "spec.tolerations[0]", "found 'gpu'; allowed: an object"),
        (spec(tolerations=[{"effect": "NoRun"}]), "spec.tolerations[0].effect", "found 'NoRun'; input should be"),
        (spec(affinity=[]), "spec.affinity", "found a list; allowed: an object"),
        (spec(topologySpreadConstraints={}), "spec.topologySpreadConstraints", "found an object; allowed: a list"),
        (spec(runtimeClassName=1), "spec.runtimeClassName", "found 1; allowed: a text"),
        (spec(imagePullSecrets=["registry"]), "spec.imagePullSecrets[0]", "found 'registry'; allowed: an object"),
        (spec(imagePullSecrets=[{"name": "a"}] * 2), "spec.imagePullSecrets", "given more than once: a"),
        (spec(dnsPolicy="ClusterFirstWithHostNet"), "spec.dnsPolicy", "input should be 'ClusterFirst', 'Default'"),
        (spec(terminationGracePeriodSeconds="9"), "spec.terminationGracePeriodSeconds", "allowed: an integer"),
        (spec(terminationGracePeriodSeconds=-1), "spec.terminationGracePeriodSeconds", "greater than or equal to 0"),
        (spec(securityContext={"runAsUser": 0}), "spec.securityContext.runAsUser", "greater than 0"),
        (spec(securityContext={"runAsGroup": 0}), "spec.securityContext.runAsGroup", "greater than 0"),
        (spec(securityContext={"fsGroup": 0}), "spec.securityContext.fsGroup", "greater than 0"),
        (spec(securityContext={"fsGroup": True}), "spec.securityContext.fsGroup", "found True; allowed: an integer"),
        (
            spec(securityContext={"supplementalGroups": [5, 0]}),
            "spec.securityContext.supplementalGroups[1]",
            "greater than 0",
        ),
        (spec(volumes=[{"emptyDir": {}}]), "spec.volumes[0].name", "required, but not given"),
        (spec(volumes=[{"name": "A.b", "emptyDir": {}}]), "spec.volumes[0].name", "found 'A.b';"),
        (spec(volumes=[{"name": "a", "emptyDir": {}}] * 2), "spec.volumes", "given more than once: a; give each once"),
        (volume(), "spec.volumes[0]", "found none; allowed: exactly one of configMap, secret, emptyDir,"),
        (volume(emptyDir={}, csi={}), "spec.volumes[0]", "found emptyDir and csi; allowed: exactly one of"),
        (volume(gitRepo={}), "spec.volumes[0].gitRepo", "unknown field; allowed: configMap, csi,"),
        (volume(secret={}), "spec.volumes[0].secret.secretName", "required, but not given"),
        (volume(persistentVolumeClaim={}), "spec.volumes[0].persistentVolumeClaim.claimName", "required"),
        (spec(containers={}), "spec.containers", "found an object; allowed: a list"),
        (spec(containers=[{}]), "spec.containers[0].name", "required, but not given"),
        (spec(containers=[{"name": "sidecar"}]), "spec.containers[0].name", "allowed: worker, vllm, adapters"),
        (spec(containers=[{"name": "vllm"}] * 2), "spec.containers", "given more than once: vllm"),
        (container(env={"A": "b"}), "spec.containers[0].env", "found an object; allowed: a list"),
        (container(env=[{"value": "b"}]), "spec.containers[0].env[0].name", "required, but not given"),
        (container(env=[{"name": "A", "value": 1}]), "spec.containers[0].env[0].value", 'write "1" in quotes'),
        (
            container(env=[{"name": "A"}]),
            "spec.containers[0].env[0]",
            "found none; allowed: exactly one of value, valu",
        ),
        (
            container(env=[{"name": "A", "value": "", "valueFrom": {"fieldRef": {}}}]),
            "spec.containers[0].env[0]",
            "found value and valueFrom; allowed: exactly one",
        ),
        (container(env=[{"name": "A", "value": ""}] * 2), "spec.containers[0].env", "given more than once: A"),
        (container(envFrom=[{}]), "spec.containers[0].envFrom[0]", "exactly one of configMapRef, secretRef"),
        (
            container(envFrom=[{"prefix": "TANDEM_", "secretRef": {"name": "a"}}]),
            "spec.containers[0].envFrom[0].prefix",
            "use another prefix",
        ),
        (container(imagePullPolicy="always"), "spec.containers[0].imagePullPolicy", "found 'always'; input should be"),
        (container(volumeMounts=[{"name": "a"}]), "spec.containers[0].volumeMounts[0].mountPath", "required"),
        (
            container(volumeMounts=[{"name": "a", "mountPath": "/a"}, {"name": "b", "mountPath": "/a"}]),
            "spec.containers[0].volumeMounts",
            "given more than once: /a",
        ),
    ],
)
def test_each_mistake_is_told_where_it_is(patch, path, message):
    found = dict(problems(patch))
    assert path in found
    assert message in found[path]
    assert len(found) == 1


@pytest.mark.parametrize("key", [f"{GROUP}/run", f"{GROUP}/mine", *fields._OUR_KEYS])
@pytest.mark.parametrize("kind", ["labels", "annotations"])
def test_keys_of_our_own_are_refused(kind, key):
    assert problems({"metadata": {kind: {key: "a"}}}) == [
        (f"metadata.{kind}.{key}", "Tandem sets it itself; remove it"),
    ]


def test_other_keys_of_a_shared_domain_are_allowed():
    keys = ["app.kubernetes.io/part-of", "app.kubernetes.io/version", "mytandem.dev/run", "tandem"]
    assert problems({"metadata": {"labels": dict.fromkeys(keys, "a")}}) == []


def test_the_queue_and_the_security_profile_are_not_set_by_keys():
    assert problems({"metadata": {"labels": {"kueue.x-k8s.io/queue-name": "a"}}})[0][1] == "use spec.queue"
    profile = {"container.apparmor.security.beta.kubernetes.io/vllm": "unconfined"}
    assert "the security profile is Tandem's" in problems({"metadata": {"annotations": profile}})[0][1]


@pytest.mark.parametrize(
    ("name", "fix"),
    [
        *((name, "use spec.storage.s3") for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")),
        *((name, "use spec.storage.s3") for name in ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_SESSION_TOKEN")),
        *((name, "remove it") for name in ("TANDEM_CACHE", "TANDEM_", "TANDEM_ANYTHING", "HOME", "HF_HOME")),
        *((name, "remove it") for name in ("VLLM_SKIP_MODEL_NAME_VALIDATION", "VLLM_ALLOW_RUNTIME_LORA_UPDATING")),
        *((name, "remove it") for name in ("VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_INSECURE_SERIALIZATION")),
    ],
)
def test_variables_of_our_own_are_refused(name, fix):
    ((path, message),) = problems(container(env=[{"name": name, "value": ""}]))
    assert path == "spec.containers[0].env[0].name"
    assert message.startswith(f"found {name}, which")
    assert message.endswith(fix)


@pytest.mark.parametrize("name", ["PYTHONPATH", "HF_TOKEN", "AWS_CA_BUNDLE", "VLLM_LOGGING_LEVEL", "tandem_mine"])
def test_other_variables_are_allowed(name):
    assert problems(container(env=[{"name": name, "value": "a"}])) == []


@pytest.mark.parametrize("name", ["request", "configmap-x", "adapters", "desired", "shm", "tmp", "model"])
def test_volumes_of_our_own_are_refused(name):
    ((path, message),) = problems(volume(name=name, emptyDir={}))
    assert (path, message.startswith(f"found '{name}', a volume of Tandem's own;")) == ("spec.volumes[0].name", True)


def test_the_cache_may_be_replaced():
    assert problems(volume(name="cache", persistentVolumeClaim={"claimName": "models"})) == []


@pytest.mark.parametrize(
    "path", ["/tandem", "/tandem/cache", "/tandem/", "//tandem/x", "/x/../tandem/y", "/", "/tmp", "/dev", "/dev/shm/"]
)
def test_mounts_over_ours_are_refused(path):
    ((where, message),) = problems(container(volumeMounts=[{"name": "mine", "mountPath": path}]))
    assert where == "spec.containers[0].volumeMounts[0].mountPath"
    assert "would hide a mount of Tandem's own; use another path" in message


@pytest.mark.parametrize("path", ["tandem/cache", "", "/a:b"])
def test_mounts_have_absolute_paths(path):
    ((_, message),) = problems(container(volumeMounts=[{"name": "mine", "mountPath": path}]))
    assert message == f"found {path!r}; allowed: an absolute path without ':'"


@pytest.mark.parametrize("path", ["/data", "/tandems", "/tmp/mine", "/dev/hugepages", "/opt/tandem"])
def test_other_mounts_are_allowed(path):
    assert problems(container(volumeMounts=[{"name": "mine", "mountPath": path}])) == []


@pytest.mark.parametrize("amount", [0, 2, "2", "0.5", "500m", "16Gi", "1e3", "1.5Gi", "100M", ".5"])
def test_quantities_are_accepted(amount):
    assert problems(container(resources={"limits": {"memory": amount}})) == []


@pytest.mark.parametrize("amount", [-1, True, "", "16 GiB", "16GB", "-1", [], None, {}, "1\n"])
def test_other_quantities_are_refused(amount):
    ((path, message),) = problems(container(resources={"requests": {"memory": amount}}))
    assert path == "spec.containers[0].resources.requests.memory"
    assert message == f'found {amount!r}; allowed: a quantity such as 2, "500m" or "16Gi"'


def test_decimals_are_quoted_and_accelerators_are_the_specs():
    amounts = {"limits": {"cpu": 0.5, "nvidia.com/gpu": 1}}
    assert problems(container(resources=amounts)) == [
        ("spec.containers[0].resources.limits.cpu", 'found 0.5; allowed: a text: write "0.5" in quotes'),
        (
            "spec.containers[0].resources.limits.nvidia.com/gpu",
            "use spec.serving.resources, spec.training.resources or spec.workers.resources",
        ),
    ]


def test_only_the_containers_of_a_kind_of_pod_may_be_patched():
    patch = spec(containers=[{"name": "worker"}])
    assert problems(patch, ("worker",)) == []
    assert problems(patch, ("vllm", "adapters")) == [
        ("spec.containers[0].name", "found 'worker'; allowed: vllm, adapters")
    ]
    with pytest.raises(ValueError, match="found 'worker'; allowed: vllm, adapters"):
        checked(patch, ("vllm", "adapters"))


def test_all_problems_are_in_one_message():
    with pytest.raises(ValueError, match="not accepted") as caught:
        checked({"spec": {"hostNetwork": True, "tolerations": {}}})
    assert str(caught.value).splitlines() == [
        "not accepted:",
        "  spec.tolerations: found an object; allowed: a list",
        "  spec.hostNetwork: not allowed: pods stay apart from their node; remove it",
    ]


WORDS = sorted(
    {
        *(field.alias for part in _PARTS.values() for field in part.model_fields.values()),
        *(path.rpartition(".")[2] for path in REFUSED),
        *fields.CONTAINERS,
        *("cache", "TANDEM_X", "/tandem", f"{GROUP}/run", "Always", "[key]"),
    }
)
TEXTS = st.sampled_from(WORDS) | st.text(max_size=5)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | TEXTS
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_arbitrary_json_never_raises(value):
    before = copy.deepcopy(value)
    found = problems(value)
    assert all(isinstance(path, str) and path and isinstance(message, str) and message for path, message in found)
    assert repr(before) == repr(value)


@given(st.sampled_from(sorted({*REFUSED, *(f"{path}.x" for path in _PARTS if path), "spec", "metadata"})), JSON)
def test_arbitrary_json_at_any_place_never_raises(path, value):
    problems(at(path, value))
    problems(at(f"{path}.x", value))


@given(st.dictionaries(st.sampled_from([field.alias for field in fields.PodSpec.model_fields.values()]), JSON))
def test_arbitrary_json_in_known_fields_never_raises(value):
    problems({"spec": value})


def test_what_yaml_has_beyond_json_never_raises():
    assert problems({1: 2, "spec": {None: 1, "nodeSelector": {1: "a"}, "volumes": [{1: 1}]}})
