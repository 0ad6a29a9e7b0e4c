"""Patches laid under a pod template: ours wins, lists are united, and the pod stays as safe as it was."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.pod_security import violations

from tandem_api.errors import ConfigurationError
from tandem_api.v1alpha1.podtemplate import problems
from tandem_operator.platforms.kubernetes.template import merge

OURS: dict[str, Any] = {
    "metadata": {"labels": {"tandem.dev/run": "r"}, "annotations": {"tandem.dev/desired-adapters": "d"}},
    "spec": {
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 60,
        "nodeSelector": {"arch": "amd64"},
        "tolerations": [{"key": "ours", "operator": "Exists"}],
        "imagePullSecrets": [{"name": "ours"}],
        "securityContext": {
            "runAsNonRoot": True,
            "supplementalGroups": [100],
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumes": [
            {"name": "tmp", "emptyDir": {}},
            {"name": "cache", "emptyDir": {}},
            {"name": "request", "configMap": {"name": "r-1"}},
        ],
        "containers": [
            {
                "name": "vllm",
                "image": "trainer:1",
                "env": [{"name": "HOME", "value": "/tmp"}, {"name": "TANDEM_CACHE", "value": "/tandem/cache"}],
                "envFrom": [{"secretRef": {"name": "ours"}}],
                "volumeMounts": [
                    {"name": "tmp", "mountPath": "/tmp"},
                    {"name": "cache", "mountPath": "/tandem/cache"},
                ],
                "resources": {"limits": {"nvidia.com/gpu": 1}, "requests": {"memory": "8Gi"}},
                "securityContext": {
                    "allowPrivilegeEscalation": False,
                    "capabilities": {"drop": ["ALL"]},
                    "readOnlyRootFilesystem": True,
                },
            },
            {
                "name": "worker",
                "image": "trainer:1",
                "command": ["python", "-m", "tandem_trainer"],
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            },
        ],
    },
}


def spec(*patches: dict[str, Any] | None) -> dict[str, Any]:
    """The merged pod spec for patches of the pod spec."""
    merged: dict[str, Any] = merge(OURS, *(patch and {"spec": patch} for patch in patches))["spec"]
    return merged


def vllm(*patches: dict[str, Any]) -> dict[str, Any]:
    """The merged container for patches of the container."""
    merged: dict[str, Any] = spec(*({"containers": [{"name": "vllm", **patch}]} for patch in patches))["containers"][0]
    return merged


def test_without_patches_nothing_changes_and_nothing_is_shared():
    merged = merge(OURS, None, {}, {"metadata": None, "spec": {"tolerations": None}})
    assert merged == OURS
    merged["spec"]["volumes"][0]["emptyDir"]["medium"] = "Memory"
    assert OURS["spec"]["volumes"][0] == {"name": "tmp", "emptyDir": {}}


def test_labels_annotations_and_node_selector_are_united():
    patch = {"labels": {"tandem.dev/run": "x", "team": "a"}, "annotations": {"note": "b"}}
    assert merge(OURS, {"metadata": patch})["metadata"] == {
        "labels": {"tandem.dev/run": "r", "team": "a"},
        "annotations": {"tandem.dev/desired-adapters": "d", "note": "b"},
    }
    assert spec({"nodeSelector": {"arch": "arm64", "gpu": "h100"}})["nodeSelector"] == {"arch": "amd64", "gpu": "h100"}


def test_a_template_without_labels_takes_the_patches():
    assert merge({"spec": {}}, {"metadata": {"labels": {"a": "b"}}})["metadata"] == {"labels": {"a": "b"}}


def test_tolerations_and_pull_secrets_are_added_once():
    ours, other = OURS["spec"]["tolerations"][0], {"key": "gpu", "operator": "Exists"}
    merged = spec({"tolerations": [other, ours]}, {"tolerations": [other, {"key": "spot"}]})
    assert merged["tolerations"] == [ours, other, {"key": "spot"}]
    merged = spec({"imagePullSecrets": [{"name": "ours"}, {"name": "theirs"}]})
    assert merged["imagePullSecrets"] == [{"name": "ours"}, {"name": "theirs"}]


def test_the_later_patch_is_the_stronger():
    first = {"affinity": {"nodeAffinity": {}}, "schedulerName": "first", "nodeSelector": {"a": "1", "b": "1"}}
    second = {"affinity": {"podAffinity": {}}, "nodeSelector": {"b": "2"}, "schedulerName": None}
    merged = spec(first, second)
    assert merged["affinity"] == {"podAffinity": {}}
    assert merged["schedulerName"] == "first"
    assert merged["nodeSelector"] == {"arch": "amd64", "a": "1", "b": "2"}


def test_the_longest_grace_period_is_taken():
    assert spec({"terminationGracePeriodSeconds": 30})["terminationGracePeriodSeconds"] == 60
    merged = spec({"terminationGracePeriodSeconds": 600}, {"terminationGracePeriodSeconds": 300})
    assert merged["terminationGracePeriodSeconds"] == 600
    patch = {"spec": {"terminationGracePeriodSeconds": 5}}
    assert merge({"spec": {}}, patch)["spec"]["terminationGracePeriodSeconds"] == 5


def test_the_user_and_groups_are_added_but_ours_stay():
    merged = spec({"securityContext": {"runAsNonRoot": False, "runAsUser": 1000, "supplementalGroups": [100, 200]}})
    assert merged["securityContext"] == {
        "runAsNonRoot": True,
        "runAsUser": 1000,
        "supplementalGroups": [100, 200],
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def test_only_the_cache_is_replaced_of_our_volumes():
    claim = {"name": "cache", "persistentVolumeClaim": {"claimName": "models"}}
    host = {"name": "cache", "hostPath": {"path": "/models"}}
    stolen = {"name": "request", "secret": {"secretName": "x"}}
    data = {"name": "data", "emptyDir": {}}
    merged = spec({"volumes": [host, data]}, {"volumes": [stolen, claim]})
    assert merged["volumes"] == [{"name": "tmp", "emptyDir": {}}, claim, OURS["spec"]["volumes"][2], data]


def test_containers_are_met_by_name_and_unknown_ones_left_out():
    patch = {"containers": [{"name": "adapters", "imagePullPolicy": "Always"}, {"name": "worker", "workingDir": "/"}]}
    merged = spec(patch)["containers"]
    assert [container["name"] for container in merged] == ["vllm", "worker"]
    assert merged[0] == OURS["spec"]["containers"][0]
    assert merged[1] == {**OURS["spec"]["containers"][1], "workingDir": "/"}


def test_no_patch_says_what_a_container_runs():
    patch = {"image": "theirs", "command": ["sh"], "args": ["-c"]}
    merged = spec({"containers": [{"name": "vllm", **patch}, {"name": "worker", **patch}]})["containers"]
    assert merged == OURS["spec"]["containers"]


def test_variables_are_united_and_keep_their_order():
    first = [{"name": "HOME", "value": "/x"}, {"name": "A", "value": "1"}, {"name": "B", "value": "$(A)"}]
    second = [{"name": "C", "value": "$(B)"}, {"name": "A", "value": "2"}]
    assert vllm({"env": first}, {"env": second})["env"] == [
        *OURS["spec"]["containers"][0]["env"],
        {"name": "A", "value": "2"},
        {"name": "B", "value": "$(A)"},
        {"name": "C", "value": "$(B)"},
    ]


def test_our_sources_of_variables_come_last_because_the_last_wins():
    first, second, ours = ({"secretRef": {"name": name}} for name in ("first", "second", "ours"))
    assert vllm({"envFrom": [first, ours]}, {"envFrom": [second, first]})["envFrom"] == [first, second, ours]


def test_mounts_are_united_by_path():
    mounts = [{"name": "data", "mountPath": "/tandem/cache"}, {"name": "data", "mountPath": "/data"}]
    ours = OURS["spec"]["containers"][0]["volumeMounts"]
    assert vllm({"volumeMounts": mounts})["volumeMounts"] == [*ours, mounts[1]]


def test_a_resource_is_one_layers_in_requests_and_limits():
    first = {"requests": {"cpu": 8}, "limits": {"hugepages-2Mi": "1Gi"}}
    second = {"requests": {"nvidia.com/gpu": 2, "cpu": 4}, "limits": {"cpu": 6, "memory": "1Gi", "nvidia.com/gpu": 2}}
    assert vllm({"resources": first}, {"resources": second})["resources"] == {
        "requests": {"memory": "8Gi", "cpu": 4},
        "limits": {"nvidia.com/gpu": 1, "cpu": 6, "hugepages-2Mi": "1Gi"},
    }
    merged = spec({"containers": [{"name": "worker", "resources": second}]})["containers"][1]
    assert merged["resources"] == second


def test_our_rights_stay():
    patch = {"securityContext": {"allowPrivilegeEscalation": True, "capabilities": {"add": ["SYS_ADMIN"]}}}
    assert vllm(patch) == OURS["spec"]["containers"][0]


def test_the_platform_team_may_add_what_runs_may_not():
    patch = {"hostUsers": False, "initContainers": [{"name": "warm"}], "priorityClassName": "batch"}
    assert spec(patch) == {**OURS["spec"], **patch}


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        ({"spec": []}, "podTemplate: spec: found []; allowed: an object"),
        ({"metadata": {"labels": ["a"]}}, "podTemplate: labels: found ['a']; allowed: an object"),
        ({"spec": {"tolerations": {}}}, "podTemplate: tolerations: found {}; allowed: a list"),
        ({"spec": {"volumes": ["a"]}}, "podTemplate: found 'a' in a list; allowed: an object with name"),
        ({"spec": {"containers": [{}]}}, "podTemplate: found {} in a list; allowed: an object with name"),
        (
            {"spec": {"containers": [{"name": "vllm", "resources": {"limits": [1]}}]}},
            "podTemplate: limits: found [1]; allowed: an object",
        ),
        (
            {"spec": {"terminationGracePeriodSeconds": "60"}},
            "podTemplate: terminationGracePeriodSeconds: found '60'; allowed: an integer",
        ),
    ],
)
def test_a_patch_of_another_shape_is_told(patch, message):
    with pytest.raises(ConfigurationError) as caught:
        merge(OURS, patch)
    assert str(caught.value) == message


# Properties

NAMES = st.sampled_from(["tmp", "cache", "request", "data", "keys"])
KEYS = st.sampled_from(["arch", "gpu", "tandem.dev/run", "team"])
VALUES = st.sampled_from(["a", "b", "1"])
VARIABLES = st.sampled_from(["HOME", "TANDEM_CACHE", "PYTHONPATH", "AWS_REGION", "A"])
AMOUNTS = st.dictionaries(st.sampled_from(["cpu", "memory", "nvidia.com/gpu"]), st.sampled_from([1, "2", "3Gi"]))
BOOLEANS = st.booleans()


def objects(**strategies: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with any of these fields."""
    return st.fixed_dictionaries({}, optional=strategies)


def named(strategy: st.SearchStrategy[dict[str, Any]], key: str, keys: st.SearchStrategy[str]) -> Any:
    """Lists of objects, each with another `key`."""
    item = st.builds(lambda value, rest: {key: value, **rest}, keys, strategy)
    return st.lists(item, max_size=3, unique_by=lambda made: made[key])


SOURCE = st.one_of(
    *(st.just({source: {}}) for source in ("emptyDir", "csi", "ephemeral", "downwardAPI", "hostPath", "nfs")),
    st.just({"configMap": {"name": "x"}}),
    st.just({"secret": {"secretName": "x"}}),
    st.just({"persistentVolumeClaim": {"claimName": "x"}}),
    st.sampled_from(["secret", "serviceAccountToken"]).map(lambda source: {"projected": {"sources": [{source: {}}]}}),
)
CONTAINER = objects(
    image=VALUES,
    command=st.lists(VALUES),
    args=st.lists(VALUES),
    env=named(st.builds(lambda value: {"value": value}, VALUES), "name", VARIABLES),
    envFrom=st.lists(st.builds(lambda name: {"secretRef": {"name": name}}, VALUES), max_size=2),
    volumeMounts=named(
        st.builds(lambda name: {"name": name}, NAMES),
        "mountPath",
        st.sampled_from(["/tmp", "/tandem/cache", "/data", "/a", "/"]),
    ),
    resources=objects(requests=AMOUNTS, limits=AMOUNTS),
    imagePullPolicy=st.sampled_from(["Always", "Never"]),
    securityContext=objects(
        privileged=BOOLEANS, allowPrivilegeEscalation=BOOLEANS, runAsUser=st.integers(0, 2), capabilities=st.just({})
    ),
)
#: Fields that no run may give, too: the platform team may, and the allow-list has to find them.
PATCH = objects(
    metadata=objects(labels=st.dictionaries(KEYS, VALUES), annotations=st.dictionaries(KEYS, VALUES)),
    spec=objects(
        nodeSelector=st.dictionaries(KEYS, VALUES),
        tolerations=st.lists(objects(key=VALUES, operator=st.just("Exists")), max_size=3),
        affinity=objects(nodeAffinity=st.just({}), podAffinity=st.just({})),
        schedulerName=VALUES,
        imagePullSecrets=named(st.just({}), "name", VALUES),
        terminationGracePeriodSeconds=st.integers(0, 120),
        volumes=named(SOURCE, "name", NAMES),
        hostNetwork=BOOLEANS,
        hostPID=BOOLEANS,
        automountServiceAccountToken=BOOLEANS,
        serviceAccountName=VALUES,
        initContainers=st.just([{"name": "theirs", "image": "theirs"}]),
        securityContext=objects(
            fsGroup=st.integers(0, 2),
            runAsUser=st.integers(0, 2),
            runAsNonRoot=BOOLEANS,
            supplementalGroups=st.lists(st.integers(0, 2), max_size=2),
            seccompProfile=st.just({"type": "Unconfined"}),
            sysctls=st.just([{"name": "kernel.shm", "value": "1"}]),
        ),
        containers=named(CONTAINER, "name", st.sampled_from(["vllm", "worker", "adapters", "theirs"])),
    ),
)
# Half of the fields above are forbidden, so few such patches are accepted: these have the allowed ones only.
ALLOWED_PATCH = objects(
    metadata=objects(labels=st.dictionaries(st.just("team"), VALUES)),
    spec=objects(
        nodeSelector=st.dictionaries(KEYS, VALUES),
        tolerations=st.lists(objects(key=VALUES, operator=st.just("Exists")), max_size=3),
        terminationGracePeriodSeconds=st.integers(0, 120),
        volumes=named(SOURCE, "name", st.sampled_from(["cache", "data"])),
        securityContext=objects(fsGroup=st.integers(0, 2), runAsUser=st.integers(0, 2), runAsNonRoot=BOOLEANS),
        containers=named(
            objects(
                env=named(st.just({"value": "a"}), "name", st.sampled_from(["A", "PYTHONPATH"])),
                volumeMounts=named(st.just({"name": "data"}), "mountPath", st.sampled_from(["/data", "/tmp"])),
                securityContext=st.just({"privileged": True}),
            ),
            "name",
            st.sampled_from(["vllm", "worker"]),
        ),
    ),
)


def lost(ours: Any, merged: Any, path: str = "") -> Iterator[str]:
    """Where `merged` does not say what `ours` says; lists of ours must be in it item by item."""
    if isinstance(ours, dict):
        for name, value in ours.items():
            if name not in merged:
                yield f"{path}.{name}"
            elif name == "terminationGracePeriodSeconds":
                yield from [] if merged[name] >= value else [path]
            else:
                yield from lost(value, merged[name], f"{path}.{name}")
    elif path.endswith(".containers"):
        assert [container["name"] for container in merged] == [container["name"] for container in ours]
        for container, its in zip(ours, merged, strict=True):
            yield from lost(container, its, f"{path}[{container['name']}]")
    elif isinstance(ours, list):
        kept = [item for item in ours if not (path.endswith(".volumes") and item["name"] == "cache")]
        yield from (f"{path}: {item}" for item in kept if item not in merged)
    elif ours != merged:
        yield path


@given(st.lists(PATCH, max_size=3))
def test_ours_always_wins(patches):
    merged = merge(OURS, *patches)
    assert list(lost(OURS, merged)) == []
    assert [container.get("command") for container in merged["spec"]["containers"]] == [
        container.get("command") for container in OURS["spec"]["containers"]
    ]
    for container in merged["spec"]["containers"]:
        for key in ("env", "volumeMounts"):
            keys = [item.get("mountPath", item["name"]) for item in container.get(key, [])]
            assert len(keys) == len(set(keys))
    assert {volume["name"] for volume in merged["spec"]["volumes"]} >= {"tmp", "cache", "request"}


@given(st.lists(PATCH, max_size=3))
def test_the_same_patches_again_change_nothing(patches):
    once = merge(OURS, *patches)
    assert json.dumps(merge(once, *patches)) == json.dumps(once)


@given(st.lists(PATCH, max_size=3))
def test_the_arguments_stay_as_they_are_and_the_result_is_the_same_again(patches):
    ours, before = copy.deepcopy(OURS), copy.deepcopy(patches)
    merged = merge(ours, *patches)
    assert (ours, patches) == (OURS, before)
    assert json.dumps(merge(ours, *patches)) == json.dumps(merged)


@given(PATCH | ALLOWED_PATCH)
def test_a_patch_without_problems_leaves_the_pod_restricted(patch):
    assert violations(OURS) == []
    if not problems(patch):
        assert violations(merge(OURS, patch)) == []


@pytest.mark.parametrize(
    "patch",
    [
        {"hostNetwork": True},
        {"volumes": [{"name": "x", "hostPath": {"path": "/"}}]},
        {"securityContext": {"runAsUser": 0}},
        {"securityContext": {"sysctls": [{"name": "a", "value": "b"}]}},
        {"initContainers": [{"name": "theirs", "image": "theirs"}]},
        {"containers": [{"name": "vllm", "securityContext": {"privileged": True}}]},
        {"containers": [{"name": "vllm", "securityContext": {"runAsUser": 0}}]},
    ],
)
def test_the_check_for_restricted_sees_what_merging_alone_lets_through(patch):
    assert violations(merge(OURS, {"spec": patch})) != []
    assert problems({"spec": patch}) != []
