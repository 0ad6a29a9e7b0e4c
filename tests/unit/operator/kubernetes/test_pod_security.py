"""Every pod that the operator can make meets the restricted Pod Security Standard and has no API token, whatever a
run's manifest says: a patch that would break it is refused, or overruled."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.pod_security import VERSION, violations
from tests.unit.operator.kubernetes.test_manifests import SPECS, objects
from tests.unit.operator.kubernetes.test_template import ALLOWED_PATCH, PATCH
from tests.unit.operator.kubernetes.world import GPU, manifest, settings

from tandem_api.contract import StageRequest, StorageRef
from tandem_api.v1alpha1.podtemplate import problems
from tandem_api.v1alpha1.run import ManifestError, OptimizationRun, parse_run
from tandem_operator.actions import EnsureServing
from tandem_operator.platforms.kubernetes import jobs, serving

Object = dict[str, Any]

GOOD: Object = {
    "metadata": {},
    "spec": {
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": [{"name": "tmp", "emptyDir": {}}],
        "containers": [
            {
                "name": "c",
                "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
            }
        ],
    },
}
#: Breaches of each control of the standard, as (where, field, value); `pod` and `container` are their contexts.
BREACHES: dict[str, tuple[str, str, Any]] = {
    "host network": ("spec", "hostNetwork", True),
    "host processes": ("spec", "hostPID", True),
    "host communication": ("spec", "hostIPC", True),
    "windows": ("spec", "os", {"name": "windows"}),
    "host process of windows": ("pod", "windowsOptions", {"hostProcess": True}),
    "host path": ("spec", "volumes", [{"name": "v", "hostPath": {"path": "/"}}]),
    "a volume of another kind": ("spec", "volumes", [{"name": "v", "nfs": {"server": "s", "path": "/"}}]),
    "user 0": ("pod", "runAsUser", 0),
    "user 0 of a container": ("container", "runAsUser", 0),
    "root": ("pod", "runAsNonRoot", False),
    "perhaps root": ("pod", "runAsNonRoot", None),
    "root of a container": ("container", "runAsNonRoot", False),
    "no seccomp": ("pod", "seccompProfile", {"type": "Unconfined"}),
    "seccomp unsaid": ("pod", "seccompProfile", None),
    "no seccomp of a container": ("container", "seccompProfile", {"type": "Unconfined"}),
    "selinux type": ("pod", "seLinuxOptions", {"type": "spc_t"}),
    "selinux user": ("container", "seLinuxOptions", {"user": "system_u"}),
    "selinux role": ("pod", "seLinuxOptions", {"role": "system_r"}),
    "no apparmor": ("container", "appArmorProfile", {"type": "Unconfined"}),
    "sysctl": ("pod", "sysctls", [{"name": "kernel.msgmax", "value": "1"}]),
    "privileged": ("container", "privileged", True),
    "privileges escalate": ("container", "allowPrivilegeEscalation", True),
    "privileges may escalate": ("container", "allowPrivilegeEscalation", None),
    "capability": ("container", "capabilities", {"drop": ["ALL"], "add": ["SYS_ADMIN"]}),
    "capabilities kept": ("container", "capabilities", {"drop": ["NET_RAW"]}),
    "proc": ("container", "procMount", "Unmasked"),
    "host port": ("own", "ports", [{"containerPort": 80, "hostPort": 80}]),
    "a probe of another host": ("own", "livenessProbe", {"httpGet": {"port": 80, "host": "10.0.0.1"}}),
    "a hook to another host": ("own", "lifecycle", {"preStop": {"tcpSocket": {"port": 80, "host": "10.0.0.1"}}}),
    "an init container": ("spec", "initContainers", [{"name": "i"}]),
    "an ephemeral container": ("spec", "ephemeralContainers", [{"name": "e"}]),
    "apparmor by annotation": (
        "metadata",
        "annotations",
        {"container.apparmor.security.beta.kubernetes.io/c": "unconfined"},
    ),
}


def broken(breach: str, template: Object = GOOD) -> Object:
    where, field, value = BREACHES[breach]
    found = copy.deepcopy(template)
    pod = found["spec"]
    own = pod["containers"][0]
    parts = {"metadata": found.setdefault("metadata", {}), "spec": pod, "pod": pod["securityContext"], "own": own}
    part = parts["own"]["securityContext"] if where == "container" else parts[where]
    if value is None:
        part.pop(field, None)
    else:
        part[field] = value
    return found


def test_the_standard_is_of_a_release():
    assert VERSION == "v1.34"
    assert violations(GOOD) == []


@pytest.mark.parametrize("breach", BREACHES)
def test_the_check_sees_a_breach_of_each_control(breach):
    assert violations(broken(breach))


# The pods themselves.

ALL_SPECS = {
    **SPECS,
    "several machines": {"strategy": "w", "training": {"nodes": 2, "backend": "jobset", "resources": GPU}},
}


def run_of(**spec: Any) -> OptimizationRun:
    document = manifest(**spec)
    document["metadata"]["uid"] = "1111"
    return parse_run(document)


def templates(run: OptimizationRun) -> dict[str, Object]:
    """The template of each kind of pod: worker, training, servers with their sidecar, cleanup."""

    def worker(stage: Any, index: int, kind: Any) -> Object:
        storage = StorageRef(bucket="bucket")
        where: Any = {"namespace": "team", "name": "reviews", "uid": "1111", "index": index, "kind": kind}
        request = StageRequest(**where, stage=stage, attempt=1, spec=run.spec, storage=storage)
        job = jobs.worker_job(run, settings(), f"reviews-{index}{kind}-{stage}-1", request, {}, (1, 33))
        spec = job["spec"]
        if job["kind"] == "JobSet":
            spec = spec["replicatedJobs"][0]["template"]["spec"]
        return spec["template"]

    trains = next(index for index, step in enumerate(run.spec.steps, start=1) if step.kind == "w")
    servers = serving.deployment(run, settings(), EnsureServing("base", None, "base"), {})
    return {
        "worker": worker("check", 0, "baseline"),
        "training": worker("train", trains, "w"),
        "servers": servers["spec"]["template"],
        "cleanup": jobs.cleanup_job(run, settings())["spec"]["template"],
    }


def tokens(template: Object) -> list[str]:
    """What in the pod would be a token of the API server."""
    spec = template["spec"]
    found = [] if spec["automountServiceAccountToken"] is False else ["automountServiceAccountToken"]
    for volume in spec["volumes"]:
        sources = (volume.get("projected") or {}).get("sources") or []
        found += [f"volume {volume['name']}" for source in sources if "serviceAccountToken" in source]
    return found


@pytest.mark.parametrize("which", ALL_SPECS)
def test_every_pod_of_a_whole_run_is_restricted_and_has_no_token(which):
    if which in SPECS:
        made = [t for t in objects(which) if t["kind"] in ("Job", "Deployment")]
        found = {thing["metadata"]["name"]: thing["spec"]["template"] for thing in made}
        assert len(found) == 10  # eight stages, the servers, the cleanup
    else:
        found = templates(run_of(**ALL_SPECS[which]))
    assert {name: violations(template) + tokens(template) for name, template in found.items()} == {
        name: [] for name in found
    }


def test_the_sidecar_is_among_them():
    found = templates(run_of(**SPECS["reload"]))["servers"]
    assert [one["name"] for one in found["spec"]["containers"]] == ["vllm", "adapters"]
    assert violations(found) == []


def patched(patch: Object) -> OptimizationRun:
    """A run with that patch for every kind of its pods. Raises ManifestError."""
    return run_of(
        serving={"podTemplate": patch, "adapters": "reload", "resources": GPU},
        training={"podTemplate": patch},
        workers={"podTemplate": patch},
    )


def as_patch(breach: str, container: str) -> Object:
    """A user's patch that tries that breach."""
    where, field, value = BREACHES[breach]
    change = {field: value}
    match where:
        case "metadata":
            key, profile = next(iter(value.items()))
            return {"metadata": {"annotations": {f"{key.rpartition('/')[0]}/{container}": profile}}}
        case "spec":
            return {"spec": change}
        case "pod":
            return {"spec": {"securityContext": change}}
        case "container":
            change = {"securityContext": change}
    return {"spec": {"containers": [{"name": container, **change}]}}


TRIES = {
    **{breach: as_patch(breach, "worker") for breach, (*_, value) in BREACHES.items() if value is not None},
    "a token": {"spec": {"automountServiceAccountToken": True}},
    "a token by a volume": {
        "spec": {"volumes": [{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]}
    },
    "another account": {"spec": {"serviceAccountName": "admin"}},
    "another account, old name": {"spec": {"serviceAccount": "admin"}},
    "another node": {"spec": {"nodeName": "control-plane"}},
    "the host's folder as the cache": {"spec": {"volumes": [{"name": "cache", "hostPath": {"path": "/"}}]}},
    "another container": {"spec": {"containers": [{"name": "mine", "image": "mine"}]}},
    "another image": {"spec": {"containers": [{"name": "worker", "image": "mine"}]}},
    "another command": {"spec": {"containers": [{"name": "worker", "command": ["sh"]}]}},
    "the labels of another run": {"metadata": {"labels": {"tandem.dev/run": "other"}}},
    "the labels of the operator": {"metadata": {"labels": {"app.kubernetes.io/component": "operator"}}},
    "a mount over ours": {
        "spec": {"containers": [{"name": "worker", "volumeMounts": [{"name": "cache", "mountPath": "/tandem"}]}]}
    },
    "a mount over ours, by a detour": {
        "spec": {"containers": [{"name": "worker", "volumeMounts": [{"name": "cache", "mountPath": "/x/../tandem"}]}]}
    },
    "a mount that spreads": {
        "spec": {
            "containers": [
                {
                    "name": "worker",
                    "volumeMounts": [{"name": "tmp", "mountPath": "/x", "mountPropagation": "Bidirectional"}],
                }
            ]
        }
    },
    "a device": {
        "spec": {"containers": [{"name": "worker", "volumeDevices": [{"name": "d", "devicePath": "/dev/x"}]}]}
    },
    "control endpoints of development": {
        "spec": {"containers": [{"name": "vllm", "env": [{"name": "VLLM_SERVER_DEV_MODE", "value": "1"}]}]}
    },
    "pickles between vLLM's processes": {
        "spec": {"containers": [{"name": "vllm", "env": [{"name": "VLLM_ALLOW_INSECURE_SERIALIZATION", "value": "1"}]}]}
    },
}


@pytest.mark.parametrize("attempt", TRIES)
def test_a_patch_that_tries_more_is_refused(attempt):
    assert problems(TRIES[attempt])
    with pytest.raises(ManifestError):
        patched(TRIES[attempt])


@pytest.mark.parametrize("attempt", TRIES)
def test_a_patch_that_nobody_refused_is_overruled_where_ours_says_otherwise(attempt):
    """The platform team's patch is not looked at: what Tandem's own template says wins all the same."""
    run = run_of(serving={"adapters": "reload", "resources": GPU})
    plain = templates(run)
    with_patch = settings(defaults={"podTemplate": TRIES[attempt]})
    job = jobs.cleanup_job(run, with_patch)["spec"]["template"]
    assert tokens(job) in ([], ["volume v"])
    for name in ("runAsNonRoot", "seccompProfile"):
        assert job["spec"]["securityContext"][name] == plain["cleanup"]["spec"]["securityContext"][name]
    for one, before in zip(job["spec"]["containers"], plain["cleanup"]["spec"]["containers"], strict=True):
        assert one["securityContext"].items() >= before["securityContext"].items()
        assert (one["image"], one["command"]) == (before["image"], before["command"])
    assert job["metadata"]["labels"] == plain["cleanup"]["metadata"]["labels"]


@given(st.one_of(PATCH, ALLOWED_PATCH))
def test_whatever_a_patch_says_the_pods_stay_restricted_and_without_a_token(patch):
    if any(problems(patch, containers) for containers in (("worker",), ("vllm", "adapters"))):
        return
    for name, template in templates(patched(patch)).items():
        assert violations(template) + tokens(template) == [], name


@pytest.mark.parametrize(
    "spec",
    [
        {"program": {"inline": {"signature": "review -> sentiment"}, "image": "mine:root"}},
        {"serving": {"image": "mine:root"}},
        {"serving": {"extraArgs": ["--uds=/tandem/x", "--trust-remote-code"]}},
        {"storage": {"s3": {"bucket": "bucket", "serviceAccount": "admin"}}},
        {"priorityClass": "system-node-critical"},
        {"serving": {"resources": {"limits": {"example.com/kvm": 1}}}},
    ],
)
def test_the_other_fields_change_nothing_about_a_pods_rights(spec):
    for name, template in templates(run_of(**spec)).items():
        assert violations(template) + tokens(template) == [], name
