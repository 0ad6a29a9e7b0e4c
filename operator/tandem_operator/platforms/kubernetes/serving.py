"""The model server as a Deployment with its Services and the list of adapters that it is to hold. Pure."""

from __future__ import annotations

import math
from typing import Any, Final

from tandem_api.adapters import (
    DESIRED_KEY,
    ENV_ADAPTERS_DIR,
    ENV_DESIRED_ADAPTERS,
    MAX_ADAPTERS,
    DesiredAdapter,
    DesiredAdapters,
)
from tandem_api.canonical import digest
from tandem_api.contract import BASE_MODEL
from tandem_api.v1alpha1 import OptimizationRun
from tandem_operator.actions import EnsureServing
from tandem_operator.decide.requests import tuned_mode
from tandem_operator.platforms.kubernetes import names
from tandem_operator.platforms.kubernetes.pods import Pod, holds_accelerator, pod_template
from tandem_operator.settings import OperatorSettings

Object = dict[str, Any]

DESIRED_MOUNT, ADAPTERS_MOUNT = "/tandem/desired", "/tandem/adapters"
#: On SIGTERM: the time in which the endpoint is taken away everywhere, then that for calls under way, then some more.
PRE_STOP_SECONDS, DRAIN_SECONDS, GRACE_SECONDS = 5, 20, 30
_STARTUP_PERIOD: Final = 5
#: The patch that scales the servers to zero.
STOPPED: Final[Object] = {"spec": {"replicas": 0}, "metadata": {"annotations": {names.APPLIED: ""}}}


def has_accelerator(run: OptimizationRun, settings: OperatorSettings) -> bool:
    """Whether the run's model is served on an accelerator."""
    return holds_accelerator(serving_resources(run, settings))


def serving_resources(run: OptimizationRun, settings: OperatorSettings) -> Object:
    """The vLLM container's resources."""
    return run.spec.serving.resources or settings.defaults.serving.resources


def hot_loads(run: OptimizationRun, settings: OperatorSettings) -> bool:
    """Whether adapters are loaded into running servers, by a sidecar."""
    tunes = any(step.kind == "w" for step in run.spec.steps)
    return tunes and tuned_mode(run.spec, has_accelerator(run, settings)) == "reload"


def deployment(run: OptimizationRun, settings: OperatorSettings, wanted: EnsureServing, owner: Object) -> Object:
    """The servers. Another adapter is another template, except where adapters are loaded into running servers."""
    metadata, serving = run.metadata, run.spec.serving
    reload = hot_loads(run, settings)
    volumes: list[Object] = [{"name": "shm", "emptyDir": {"medium": "Memory"}}]
    containers = [_vllm(run, settings, wanted, reload=reload)]
    if reload:
        volumes += [
            {"name": "adapters", "emptyDir": {}},
            {"name": "desired", "configMap": {"name": names.adapters_name(metadata.name)}},
        ]
        containers.append(_sidecar(run, settings))
    pod = Pod(
        component=names.SERVING,
        patch=serving.pod_template,
        with_model=True,
        grace_seconds=GRACE_SECONDS,
    )
    restarts = {names.RESTARTS: str(wanted.restart)}
    template = pod_template(run, settings, pod, containers, volumes, annotations=restarts)
    version = digest(template)[:16]
    template["metadata"]["annotations"][names.TEMPLATE] = version
    return {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {
            **names.child(run, names.serving_name(metadata.name), names.SERVING, owner),
            "annotations": {
                names.SERVED_NAME: wanted.name,
                names.SERVED_NAMES: ",".join(wanted.names),
                names.TEMPLATE: version,
                **restarts,
            },
        },
        "spec": {
            "replicas": serving.replicas,
            # Never a new server beside an old one: the old one holds the GPU that the new one waits for.
            "strategy": {"type": "Recreate"},
            "revisionHistoryLimit": 2,
            "progressDeadlineSeconds": serving.startup_timeout_seconds + 60,
            "selector": {"matchLabels": names.selector(metadata.name, metadata.uid, names.SERVING)},
            "template": template,
        },
    }


def services(run: OptimizationRun, owner: Object) -> list[Object]:
    """One address for calls, and one a replica for whoever wants each of them."""
    name, ports = (
        run.metadata.name,
        [{"name": "http", "port": names.VLLM_PORT, "targetPort": names.VLLM_PORT, "protocol": "TCP"}],
    )
    base = {"selector": names.selector(name, run.metadata.uid, names.SERVING), "ports": ports}
    return [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": names.child(run, service, names.SERVING, owner),
            "spec": {**base, **more},
        }
        for service, more in (
            (names.serving_name(name), {"type": "ClusterIP"}),
            (names.replicas_name(name), {"clusterIP": "None"}),
        )
    ]


def service_url(run: OptimizationRun) -> str:
    """The base URL that workers call."""
    return f"http://{names.serving_name(run.metadata.name)}.{run.metadata.namespace}.svc:{names.VLLM_PORT}"


def desired_adapters(wanted: EnsureServing) -> DesiredAdapters:
    """What every replica is to hold."""
    if wanted.adapter is None:
        return DesiredAdapters(adapters=())
    folder = wanted.adapter
    numbers = (None,) if folder.adapters is None else range(folder.adapters)
    return DesiredAdapters(
        adapters=tuple(
            DesiredAdapter(name=name, uri=folder.uri, sha256=folder.sha256, number=number)
            for name, number in zip(wanted.names, numbers, strict=True)
        )
    )


def adapters_configmap(run: OptimizationRun, wanted: EnsureServing, owner: Object) -> Object:
    """The same, as the file that the sidecars read."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": names.child(run, names.adapters_name(run.metadata.name), names.SERVING, owner),
        "data": {DESIRED_KEY: desired_adapters(wanted).text},
    }


def _vllm(run: OptimizationRun, settings: OperatorSettings, wanted: EnsureServing, *, reload: bool) -> Object:
    spec = run.spec
    command = ["python3", "-m", "tandem_trainer.serving", "--model", spec.model.uri, "--host", "0.0.0.0"]  # noqa: S104
    command += ["--port", str(names.VLLM_PORT), "--shutdown-timeout", str(DRAIN_SECONDS)]
    if reload:
        command += ["--served-name", BASE_MODEL, "--mode", "reload", "--rank", str(_highest_rank(run))]
        if spec.has_own_adapters:
            # As many as there may be: the server is not started anew once the predictors' number is known.
            command += ["--adapters", str(MAX_ADAPTERS)]
    else:
        command += ["--served-name", wanted.name, "--mode", wanted.mode]
        if wanted.adapter is not None:
            command += ["--adapter-uri", wanted.adapter.uri, "--adapter-sha256", wanted.adapter.sha256]
    health = {"path": "/health", "port": names.VLLM_PORT}
    return {
        "name": names.VLLM_CONTAINER,
        "image": spec.serving.image or settings.images.trainer,
        "imagePullPolicy": settings.images.pull_policy,
        "command": [*command, "--", *spec.serving.extra_args],
        # vLLM's own limit for its engine, which would end a long start before ours does.
        "env": [{"name": "VLLM_ENGINE_READY_TIMEOUT_S", "value": str(spec.serving.startup_timeout_seconds)}],
        "ports": [{"name": "http", "containerPort": names.VLLM_PORT, "protocol": "TCP"}],
        "resources": serving_resources(run, settings),
        "volumeMounts": [
            {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
            *([{"name": "adapters", "mountPath": ADAPTERS_MOUNT, "readOnly": True}] if reload else []),
        ],
        "startupProbe": {
            "httpGet": health,
            "periodSeconds": _STARTUP_PERIOD,
            "timeoutSeconds": 5,
            "failureThreshold": math.ceil(spec.serving.startup_timeout_seconds / _STARTUP_PERIOD),
        },
        # A long prefill, or busy processors, make an answer slow: only a server that says nothing for long is dead.
        "livenessProbe": {"httpGet": health, "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 6},
        "readinessProbe": {"httpGet": health, "periodSeconds": 2, "timeoutSeconds": 5, "failureThreshold": 3},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(PRE_STOP_SECONDS)]}}},
    }


def _sidecar(run: OptimizationRun, settings: OperatorSettings) -> Object:
    return {
        "name": names.ADAPTERS_CONTAINER,
        "image": settings.images.trainer,
        "imagePullPolicy": settings.images.pull_policy,
        "command": ["python3", "-m", "tandem_trainer.adapters", "--max-rank", str(_highest_rank(run))],
        "env": [
            {"name": ENV_DESIRED_ADAPTERS, "value": f"{DESIRED_MOUNT}/{DESIRED_KEY}"},
            {"name": ENV_ADAPTERS_DIR, "value": ADAPTERS_MOUNT},
        ],
        "ports": [{"name": "adapters", "containerPort": names.ADAPTERS_PORT, "protocol": "TCP"}],
        "resources": {"requests": {"cpu": "50m", "memory": "128Mi"}, "limits": {"memory": "512Mi"}},
        "volumeMounts": [
            {"name": "adapters", "mountPath": ADAPTERS_MOUNT},
            {"name": "desired", "mountPath": DESIRED_MOUNT, "readOnly": True},
        ],
        "readinessProbe": {
            "httpGet": {"path": "/readyz", "port": names.ADAPTERS_PORT},
            "periodSeconds": 2,
            "timeoutSeconds": 5,
            "failureThreshold": 3,
        },
        "livenessProbe": {
            "httpGet": {"path": "/healthz", "port": names.ADAPTERS_PORT},
            "periodSeconds": 10,
            "timeoutSeconds": 5,
            "failureThreshold": 6,
        },
    }


def _highest_rank(run: OptimizationRun) -> int:
    spec = run.spec
    return max(
        spec.weights_of(index).highest_rank for index, step in enumerate(spec.steps, start=1) if step.kind == "w"
    )
