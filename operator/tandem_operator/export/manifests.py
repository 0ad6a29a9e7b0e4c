"""The manifests: a Deployment with a Service, or a KServe InferenceService. Pure.

Both run the trainer image's launcher as the run's own servers did: it fetches the adapter, refuses it unless its
content has the digest, and becomes vLLM, which answers calls for the adapter's name and refuses all others.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final, Literal

from tandem_api.contract import ENV_CACHE, MODELS_MOUNT
from tandem_api.errors import ConfigurationError
from tandem_operator.export.servable import Servable
from tandem_operator.platforms.kubernetes.pods import CACHE_MOUNT, GROUP_ID, from_secret

Object = dict[str, Any]
Format = Literal["vllm", "kserve"]

PORT: Final = 8000
#: KServe's name for the container that answers.
KSERVE_CONTAINER: Final = "kserve-container"
_PREFIX: Final = "tandem.dev"
_NAME: Final = re.compile(r"[a-z]([-a-z0-9]{0,61}[a-z0-9])?")
#: On SIGTERM: the time in which the endpoint is taken away everywhere, then that for calls under way.
_PRE_STOP_SECONDS, _DRAIN_SECONDS, _GRACE_SECONDS = 5, 20, 30
#: A model of tens of gigabytes may have to be downloaded first.
_START_SECONDS, _START_PERIOD = 1800, 10


@dataclass(frozen=True)
class Options:
    """How it is to be served."""

    image: str
    """The trainer image."""
    name: str = ""
    """Of the objects; empty: `model-` and the run's name."""
    namespace: str = ""
    """Where they go; empty: the run's."""
    replicas: int = 1
    gpus: int = 1
    """Of each replica; 0: on CPUs, with the adapter merged into the model."""
    accelerator: str = "nvidia.com/gpu"
    cpu: str = "2"
    memory: str = "8Gi"
    arguments: tuple[str, ...] = ()
    """More of them for vLLM, after the run's own: of two that differ in a value it takes the last."""


def manifests(what: Servable, options: Options, kind: Format) -> list[Object]:
    """The objects, in the order in which they are applied. Raises ConfigurationError for what cannot be served."""
    _check(what, options)
    return [_inference_service(what, options)] if kind == "kserve" else _deployment(what, options)


def _check(what: Servable, options: Options) -> None:
    name = _name(what, options)
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"--name: found {name!r}; allowed: a letter, then lower-case letters, digits and -, 63 at most"
        )
    if what.model.startswith("file:"):
        raise ConfigurationError(
            f"the model {what.model} lies on one machine; name it as pods find it with --model "
            "(hf://ORG/NAME, s3://BUCKET/PREFIX, pvc://CLAIM/PATH)"
        )
    if options.gpus == 0 and what.adapter is not None and what.adapter.adapters is not None:
        raise ConfigurationError(
            "--gpus 0: the program's predictors have adapters of their own, which cannot be merged into one model; "
            "serve them with --gpus 1"
        )


def _deployment(what: Servable, options: Options) -> list[Object]:
    selector = _selector(what, options)
    ports = [{"name": "http", "port": PORT, "targetPort": PORT, "protocol": "TCP"}]
    template = {
        "metadata": {"labels": _labels(what, options), "annotations": _annotations(what)},
        "spec": _pod(what, options, _container(what, options, "vllm")),
    }
    spec = {
        "replicas": options.replicas,
        "progressDeadlineSeconds": _START_SECONDS + 60,
        "selector": {"matchLabels": selector},
        "template": template,
    }
    return [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": _metadata(what, options), "spec": spec},
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": _metadata(what, options),
            "spec": {"type": "ClusterIP", "selector": selector, "ports": ports},
        },
    ]


def _inference_service(what: Servable, options: Options) -> Object:
    # A container of our own, not KServe's Hugging Face runtime: that one loads adapters without looking at their
    # digests, and finds models by the name of the service alone.
    metadata = _metadata(what, options)
    # Without Knative, which gives up a server long before a large model has been loaded.
    metadata["annotations"] |= {"serving.kserve.io/deploymentMode": "RawDeployment"}
    pod = _pod(what, options, _container(what, options, KSERVE_CONTAINER))
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": metadata,
        "spec": {"predictor": {"minReplicas": options.replicas, "maxReplicas": options.replicas, **pod}},
    }


def _name(what: Servable, options: Options) -> str:
    # A Service's name begins with a letter, a run's need not.
    return options.name or f"model-{what.run}"


def _selector(what: Servable, options: Options) -> dict[str, str]:
    return {"app.kubernetes.io/name": "tandem-model", "app.kubernetes.io/instance": _name(what, options)}


def _labels(what: Servable, options: Options) -> dict[str, str]:
    return {**_selector(what, options), "app.kubernetes.io/component": "model-server"}


def _metadata(what: Servable, options: Options) -> Object:
    return {
        "name": _name(what, options),
        "namespace": options.namespace or what.namespace,
        "labels": _labels(what, options),
        "annotations": _annotations(what),
    }


def _annotations(what: Servable) -> dict[str, str]:
    """Where it comes from. Annotations: by labels with these names the operator would take the pods for a run's."""
    found = {
        "exported-run": f"{what.namespace}/{what.run}",
        "exported-run-uid": what.uid,
        "model": what.model,
        "served-name": ",".join(what.served_names),
        "score": what.score,
        "adapter-uri": what.adapter.uri if what.adapter is not None else None,
        "adapter-sha256": what.adapter.sha256 if what.adapter is not None else None,
        "result-uri": what.result.uri if what.result is not None else None,
        "result-sha256": what.result.sha256 if what.result is not None else None,
    }
    return {f"{_PREFIX}/{name}": value for name, value in found.items() if value}


def _pod(what: Servable, options: Options, container: Object) -> Object:
    claim = _claim(what)
    model: list[Object] = [{"name": "model", "persistentVolumeClaim": {"claimName": claim, "readOnly": True}}]
    account = what.store.service_account
    return {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,  # a Service named `vllm` would set VLLM_PORT, and vLLM dies of it
        "terminationGracePeriodSeconds": _GRACE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "fsGroup": GROUP_ID,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        **({"serviceAccountName": account} if account else {}),
        "containers": [container],
        "volumes": [
            {"name": "tmp", "emptyDir": {}},
            {"name": "cache", "emptyDir": {}},
            {"name": "shm", "emptyDir": {"medium": "Memory"}},
            *(model if claim else []),
        ],
    }


def _container(what: Servable, options: Options, name: str) -> Object:
    health = {"path": "/health", "port": PORT}
    amounts = {"cpu": options.cpu, "memory": options.memory}
    limits = {options.accelerator: str(options.gpus)} if options.gpus else {}
    mounts: list[Object] = [
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108 - a volume of the pod's own
        {"name": "cache", "mountPath": CACHE_MOUNT},
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
    ]
    claim = _claim(what)
    if claim:
        mounts.append({"name": "model", "mountPath": f"{MODELS_MOUNT}/{claim}", "readOnly": True})
    return {
        "name": name,
        "image": options.image,
        "command": _command(what, options),
        "env": _environment(what, options),
        # KServe sends calls to the first port.
        "ports": [{"containerPort": PORT, "protocol": "TCP"}],
        "resources": {"requests": amounts, **({"limits": limits} if limits else {})},
        "volumeMounts": mounts,
        "startupProbe": {
            "httpGet": health,
            "periodSeconds": _START_PERIOD,
            "timeoutSeconds": 5,
            "failureThreshold": _START_SECONDS // _START_PERIOD,
        },
        # A long prefill, or busy processors, make an answer slow: only a server that says nothing for long is dead.
        "livenessProbe": {"httpGet": health, "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 6},
        "readinessProbe": {"httpGet": health, "periodSeconds": 2, "timeoutSeconds": 5, "failureThreshold": 3},
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(_PRE_STOP_SECONDS)]}}},
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            # The hook that makes a GPU visible writes into the container's root file system.
            "readOnlyRootFilesystem": options.gpus == 0,
        },
    }


def _command(what: Servable, options: Options) -> list[str]:
    command = ["python3", "-m", "tandem_trainer.serving", "--model", what.model, "--host", "0.0.0.0"]  # noqa: S104
    command += ["--port", str(PORT), "--shutdown-timeout", str(_DRAIN_SECONDS), "--served-name", what.served_name]
    if what.adapter is None:
        command += ["--mode", "base"]
    else:
        # LoRA kernels on CPUs are many times slower than a merged model.
        is_merged = (what.is_merged or options.gpus == 0) and what.adapter.adapters is None
        command += ["--mode", "merged" if is_merged else "rollout"]
        command += ["--adapter-uri", what.adapter.uri, "--adapter-sha256", what.adapter.sha256]
    shards = [f"--tensor-parallel-size={options.gpus}"] if options.gpus > 1 else []
    return [*command, "--", *shards, *what.arguments, *options.arguments]


def _environment(what: Servable, options: Options) -> list[Object]:
    given = {
        "HOME": "/tmp",  # noqa: S108
        ENV_CACHE: CACHE_MOUNT,
        "HF_HOME": f"{CACHE_MOUNT}/huggingface",
        "VLLM_CACHE_ROOT": f"{CACHE_MOUNT}/vllm",
        "VLLM_ENGINE_READY_TIMEOUT_S": str(_START_SECONDS),
        "AWS_ENDPOINT_URL": what.store.endpoint,
        "AWS_REGION": what.store.region,
        # Images made for GPUs ask for all of a node's.
        "NVIDIA_VISIBLE_DEVICES": None if options.gpus else "void",
    }
    variables: list[Object] = [{"name": name, "value": value} for name, value in given.items() if value]
    secret = what.store.credentials_secret
    if secret is not None:
        variables += [from_secret(name, secret) for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")]
        variables.append(from_secret("AWS_SESSION_TOKEN", secret, optional=True))
    if what.token_secret is not None:
        variables.append(from_secret("HF_TOKEN", what.token_secret))
    return variables


def _claim(what: Servable) -> str | None:
    scheme, _, rest = what.model.partition("://")
    return rest.strip("/").partition("/")[0] if scheme == "pvc" else None
