"""What every pod of a run has in common: labels, security, environment, volumes. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

from tandem_api.contract import ENV_CACHE, ENV_CONFIGMAPS, MODELS_MOUNT
from tandem_api.v1alpha1 import OptimizationRun
from tandem_operator.platforms.kubernetes import names
from tandem_operator.platforms.kubernetes.template import merge
from tandem_operator.settings import OperatorSettings

Object = dict[str, Any]

CACHE_MOUNT: Final = "/tandem/cache"
CONFIGMAPS_MOUNT: Final = "/tandem/configmaps"
#: The user and group of our images, as numbers: the kubelet can tell that it is not root.
GROUP_ID: Final = 65532
_CONFIGMAP = re.compile(r"^configmap:/*(?P<name>[^/]+)")
_CLAIM = re.compile(r"^pvc:/*(?P<claim>[^/]+)")


@dataclass(frozen=True)
class Pod:
    """One kind of pod of a run."""

    component: str
    patch: Object | None
    """The user's patch of the pod template."""
    with_model: bool
    """Whether it reads the model's files."""
    task: tuple[str, str] | None = None
    """A worker's task name and stage."""
    grace_seconds: int = 30


def holds_accelerator(resources: Object) -> bool:
    """Whether a container with these resources has an extended resource, such as nvidia.com/gpu."""
    return any("/" in name and str(amount) not in ("0", "") for name, amount in (resources.get("limits") or {}).items())


def accelerators(resources: Object) -> int:
    """How many extended resources, such as nvidia.com/gpu, a container with these resources has."""
    amounts = [str(amount) for name, amount in (resources.get("limits") or {}).items() if "/" in name]
    return sum(int(amount) for amount in amounts if amount.isdecimal())


def pod_template(
    run: OptimizationRun,
    settings: OperatorSettings,
    pod: Pod,
    containers: list[Object],
    volumes: Iterable[Object] = (),
    annotations: dict[str, str] | None = None,
) -> Object:
    """The whole template: ours, under it the platform team's patch and the user's."""
    metadata, spec = run.metadata, run.spec
    more = {"task": pod.task[0], "stage": pod.task[1]} if pod.task is not None else {}
    account = spec.storage.s3.service_account if spec.storage is not None else None
    ours: Object = {
        "metadata": {
            "labels": names.labels(metadata.name, metadata.uid, pod.component, **more),
            **({"annotations": annotations} if annotations else {}),
        },
        "spec": {
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,  # a Service named `vllm` would set VLLM_PORT, and vLLM dies of it
            "terminationGracePeriodSeconds": pod.grace_seconds,
            "securityContext": {
                "runAsNonRoot": True,
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            **({"serviceAccountName": account} if account else {}),
            **({"priorityClassName": spec.priority_class} if spec.priority_class else {}),
            **_pull_secrets(settings),
            "containers": [_common(container, run, pod) for container in containers],
            "volumes": [
                {"name": "tmp", "emptyDir": {}},
                {"name": "cache", **settings.defaults.cache_volume},
                *_configmap_volumes(run, pod),
                *_model_volumes(run, pod),
                *volumes,
            ],
        },
    }
    template = merge(ours, _overridable(containers), settings.defaults.pod_template, pod.patch)
    for container in template["spec"]["containers"]:
        container["resources"] = _as_texts(container.get("resources") or {})
        _show_accelerators(container)
    return template


def _show_accelerators(container: Object) -> None:
    """What follows from whether a container has an accelerator, which a patch may have given it."""
    has_one = holds_accelerator(container["resources"])
    # The hook that makes a GPU visible writes into the container's root file system.
    container["securityContext"]["readOnlyRootFilesystem"] = not has_one
    variable = {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"}
    # Images made for GPUs ask for all of a node's; a container that was given none is to see none.
    if not has_one and variable["name"] not in {known["name"] for known in container["env"]}:
        container["env"].append(variable)


def _as_texts(resources: Object) -> Object:
    """Quantities as texts: server-side apply of older servers takes no numbers."""
    return {
        kind: {name: str(amount) for name, amount in amounts.items()} if isinstance(amounts, dict) else amounts
        for kind, amounts in resources.items()
    }


def _overridable(containers: list[Object]) -> Object:
    """What a patch may set otherwise."""
    environment = [
        {"name": "PYTHONUNBUFFERED", "value": "1"},
        # OpenMP threads that wait by spinning slow down everything else on the node.
        {"name": "OMP_WAIT_POLICY", "value": "PASSIVE"},
    ]
    return {
        "spec": {
            "securityContext": {"fsGroup": GROUP_ID, "fsGroupChangePolicy": "OnRootMismatch"},
            "containers": [{"name": container["name"], "env": environment} for container in containers],
        }
    }


def storage_environment(run: OptimizationRun) -> list[Object]:
    """Where the object store is, and the keys to it by reference."""
    storage = run.spec.storage
    assert storage is not None  # `cluster_problems` refuses a run without one
    s3 = storage.s3
    given = {"AWS_ENDPOINT_URL": s3.endpoint, "AWS_REGION": s3.region}
    variables: list[Object] = [{"name": name, "value": value} for name, value in given.items() if value]
    if s3.credentials_secret is not None:
        variables += [
            from_secret("AWS_ACCESS_KEY_ID", s3.credentials_secret),
            from_secret("AWS_SECRET_ACCESS_KEY", s3.credentials_secret),
            from_secret("AWS_SESSION_TOKEN", s3.credentials_secret, optional=True),
        ]
    return variables


def configmaps(run: OptimizationRun) -> tuple[str, ...]:
    """The ConfigMaps that hold the run's data and code."""
    spec = run.spec
    splits = (spec.data.train, spec.data.validation, spec.data.test)
    uris = [split.uri for split in splits if split is not None]
    uris += [spec.program.code.uri] if spec.program.code is not None else []
    found = [match["name"] for match in map(_CONFIGMAP.match, uris) if match is not None]
    return tuple(dict.fromkeys(found))


def _common(container: Object, run: OptimizationRun, pod: Pod) -> Object:
    """A container with what all of them have."""
    environment = [
        {"name": "HOME", "value": "/tmp"},  # noqa: S108 - a volume of the pod's own
        {"name": ENV_CACHE, "value": CACHE_MOUNT},
        {"name": "HF_HOME", "value": f"{CACHE_MOUNT}/huggingface"},
        {"name": "VLLM_CACHE_ROOT", "value": f"{CACHE_MOUNT}/vllm"},
        # Sets of names, in a program or in a library, are walked in the same order by every attempt.
        {"name": "PYTHONHASHSEED", "value": "0"},
        {"name": "DSPY_CACHEDIR", "value": "/tmp/dspy"},  # noqa: S108
        *storage_environment(run),
    ]
    if run.spec.model.token_secret is not None:
        environment.append(from_secret("HF_TOKEN", run.spec.model.token_secret))
    mounts: list[Object] = [{"name": "tmp", "mountPath": "/tmp"}, {"name": "cache", "mountPath": CACHE_MOUNT}]  # noqa: S108
    if pod.component == names.WORKER and configmaps(run):
        environment.append({"name": ENV_CONFIGMAPS, "value": CONFIGMAPS_MOUNT})
        mounts += [
            {"name": _volume_name(name), "mountPath": f"{CONFIGMAPS_MOUNT}/{name}", "readOnly": True}
            for name in configmaps(run)
        ]
    mounts += [
        {"name": volume["name"], "mountPath": f"{MODELS_MOUNT}/{_claim(run)}", "readOnly": True}
        for volume in _model_volumes(run, pod)
    ]
    return {
        "terminationMessagePolicy": "FallbackToLogsOnError",
        **container,
        "env": [*environment, *container.get("env", [])],
        "volumeMounts": [*mounts, *container.get("volumeMounts", [])],
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        },
    }


def _configmap_volumes(run: OptimizationRun, pod: Pod) -> list[Object]:
    if pod.component != names.WORKER:
        return []
    return [{"name": _volume_name(name), "configMap": {"name": name}} for name in configmaps(run)]


def _volume_name(configmap: str) -> str:
    """A volume's name has no dots and at most 63 characters; a ConfigMap's may have both."""
    return f"configmap-{configmap.replace('.', '-')}"[:63].rstrip("-")


def _claim(run: OptimizationRun) -> str | None:
    match = _CLAIM.match(run.spec.model.uri)
    return match["claim"] if match is not None else None


def _model_volumes(run: OptimizationRun, pod: Pod) -> list[Object]:
    claim = _claim(run)
    if claim is None or not pod.with_model:
        return []
    return [{"name": "model", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}]


def from_secret(variable: str, secret: str, *, key: str | None = None, optional: bool = False) -> Object:
    """An environment variable out of a Secret; its key there is the variable's name unless it is another."""
    reference: Object = {"name": secret, "key": key or variable}
    if optional:
        reference["optional"] = True
    return {"name": variable, "valueFrom": {"secretKeyRef": reference}}


def _pull_secrets(settings: OperatorSettings) -> Object:
    found = [{"name": name} for name in settings.images.pull_secrets]
    return {"imagePullSecrets": found} if found else {}
