"""The fields that a user's patch of a pod template may have, as models: an allow-list, object by object.

Shaped like Kubernetes' PodTemplateSpec. What is not here is refused; `podtemplate` says it to people.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, StrictBool, ValidationInfo, model_validator

from tandem_api.v1alpha1.base import Integer, Model, ObjectName

#: The containers of a run's pods.
CONTAINERS = ("worker", "vllm", "adapters")
#: The one volume of ours that a patch may replace, for example by a claim that is kept from run to run.
CACHE_VOLUME = "cache"

_OUR_DOMAIN = "tandem.dev/"
_OUR_KEYS = ("app.kubernetes.io/managed-by", "app.kubernetes.io/name", "app.kubernetes.io/component")
_QUEUE_KEY = "kueue.x-k8s.io/queue-name"
#: Annotations that loosen a container's security profile.
_PROFILE_KEYS = ("container.apparmor.security.", "container.seccomp.security.", "seccomp.security.")
_OUR_VOLUMES = ("request", "adapters", "desired", "shm", "tmp", "model")
_OUR_MOUNTS = tuple(map(PurePosixPath, ("/tandem", "/tmp", "/dev/shm", "/dev/termination-log")))  # noqa: S108
_OUR_ENV = ("HOME", "HF_HOME", "DSPY_CACHEDIR")
_S3_ENV = (
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3"),
    *("AWS_REGION", "AWS_DEFAULT_REGION"),
)
#: Variables with which vLLM would answer for a model that it does not serve, refuse adapters, or refuse every call.
_VLLM_ENV = ("VLLM_SKIP_MODEL_NAME_VALIDATION", "VLLM_ALLOW_RUNTIME_LORA_UPDATING", "VLLM_API_KEY")
#: Variables with which vLLM runs whatever is sent to it: its development endpoints, and pickles.
_VLLM_CONTROL_ENV = ("VLLM_SERVER_DEV_MODE", "VLLM_ALLOW_INSECURE_SERIALIZATION")
#: Those that the restricted Pod Security profile allows.
VOLUME_SOURCES = (
    *("configMap", "secret", "emptyDir", "persistentVolumeClaim", "projected", "downwardAPI", "csi", "ephemeral"),
)
_STANDARD_RESOURCES = ("cpu", "memory", "ephemeral-storage")
_EXTENDED = re.compile(r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
_QUANTITY = re.compile(r"([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][+-]?[0-9]+)?")


def _not_ours(key: str) -> str:
    if key.startswith(_OUR_DOMAIN) or key in _OUR_KEYS:
        raise ValueError("Tandem sets it itself; remove it")
    if key == _QUEUE_KEY:
        raise ValueError("use spec.queue")
    if key.startswith(_PROFILE_KEYS):
        raise ValueError("the security profile is Tandem's; remove it")
    return key


def _quoted(value: Any) -> Any:
    # YAML reads `true` and `1` as no text, although people mostly mean one here.
    if isinstance(value, (bool, int, float)):
        raise ValueError(f'found {json.dumps(value)}; allowed: a text: write "{json.dumps(value)}" in quotes')
    return value


def _quantity(value: Any) -> Any:
    if isinstance(value, float):
        return _quoted(value)
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    if isinstance(value, str) and _QUANTITY.fullmatch(value):
        return value
    raise ValueError(f'found {value!r:.120}; allowed: a quantity such as 2, "500m" or "16Gi"')


def _resource(name: str) -> str:
    # Whether a run has an accelerator is read from the spec's resources alone.
    if "/" in name:
        raise ValueError("use spec.serving.resources, spec.training.resources or spec.workers.resources")
    return name


def _resource_of_pods(name: str) -> str:
    if name not in _STANDARD_RESOURCES and not name.startswith("hugepages-") and not _EXTENDED.fullmatch(name):
        standard = ", ".join(_STANDARD_RESOURCES)
        raise ValueError(f"no resource has this name; allowed: {standard}, or one of a device such as nvidia.com/gpu")
    return name


def _container(name: str, info: ValidationInfo) -> str:
    allowed: tuple[str, ...] = info.context or CONTAINERS
    if name not in allowed:
        raise ValueError(f"found {name!r}; allowed: {', '.join(allowed)}")
    return name


def _variable(name: str) -> str:
    if name.startswith("TANDEM_") or name in _OUR_ENV:
        raise ValueError(f"found {name}, which Tandem sets itself; remove it")
    if name in _S3_ENV:
        raise ValueError(f"found {name}, which Tandem sets itself; use spec.storage.s3")
    if name in _VLLM_ENV:
        raise ValueError(f"found {name}, which changes the answers that are measured; remove it")
    if name in _VLLM_CONTROL_ENV:
        raise ValueError(f"found {name}, which lets vLLM run code that is sent to it; remove it")
    return name


def _prefix(value: str) -> str:
    if value.startswith("TANDEM_"):
        raise ValueError(f"found {value!r}; names that begin with TANDEM_ are Tandem's own; use another prefix")
    return value


def _volume(name: str) -> str:
    if name in _OUR_VOLUMES or name.startswith("configmap-"):
        raise ValueError(f"found {name!r}, a volume of Tandem's own; use another name ({CACHE_VOLUME} may be replaced)")
    return name


def _mount(value: str) -> str:
    if not value.startswith("/") or ":" in value:
        raise ValueError(f"found {value!r}; allowed: an absolute path without ':'")
    path = PurePosixPath(posixpath.normpath("/" + value.lstrip("/")))
    if path.is_relative_to(_OUR_MOUNTS[0]) or any(ours.is_relative_to(path) for ours in _OUR_MOUNTS):
        raise ValueError(f"found {value!r}, which would hide a mount of Tandem's own; use another path")
    return value


def _once(attribute: str) -> AfterValidator:
    """Items of a list that Kubernetes tells apart by one field."""

    def check(items: tuple[Any, ...]) -> tuple[Any, ...]:
        values = [getattr(item, attribute) for item in items]
        twice = sorted({value for value in values if values.count(value) > 1})
        if twice:
            raise ValueError(f"given more than once: {', '.join(twice)}; give each once")
        return items

    return AfterValidator(check)


def _exactly_one(part: Model, *names: str) -> None:
    fields = type(part).model_fields.items()
    given = [field.alias for name, field in fields if field.alias in names and getattr(part, name) is not None]
    if len(given) != 1:
        raise ValueError(f"found {' and '.join(given) or 'none'}; allowed: exactly one of {', '.join(names)}")


_Object = dict[str, Any]
_Objects = tuple[_Object, ...]
_Name = Annotated[str, Field(min_length=1, max_length=253)]
_VolumeName = Annotated[str, Field(max_length=63, pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$")]
_Text = Annotated[str, BeforeValidator(_quoted)]
_KEY_PATTERN = r"^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?$"
_Key = Annotated[str, Field(max_length=317, pattern=_KEY_PATTERN)]
_OwnKey = Annotated[_Key, AfterValidator(_not_ours)]
_LabelValue = Annotated[_Text, Field(max_length=63, pattern=r"^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$")]
_Id = Annotated[Integer, Field(gt=0)]
_Amount = Annotated[Any, BeforeValidator(_quantity)]
_Quantities = dict[Annotated[_Name, AfterValidator(_resource)], _Amount]
_PodQuantities = dict[Annotated[_Name, AfterValidator(_resource_of_pods)], _Amount]


class Metadata(Model):
    """Labels and annotations; nothing else of an object's metadata."""

    labels: dict[_OwnKey, _LabelValue] | None = None
    annotations: dict[_OwnKey, _Text] | None = None


class Reference(Model):
    """A ConfigMap or a Secret, whole."""

    name: ObjectName
    optional: StrictBool | None = None


class KeyReference(Reference):
    """One key of a ConfigMap or a Secret."""

    key: _Name


class SecretName(Model):
    """A Secret with an image registry's credentials."""

    name: ObjectName


class ValueFrom(Model):
    """Where a variable's value comes from."""

    field_ref: _Object | None = None
    resource_field_ref: _Object | None = None
    config_map_key_ref: KeyReference | None = None
    secret_key_ref: KeyReference | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        _exactly_one(self, "fieldRef", "resourceFieldRef", "configMapKeyRef", "secretKeyRef")
        return self


class Variable(Model):
    """An environment variable that is not Tandem's."""

    name: Annotated[str, Field(pattern=r"^[-._a-zA-Z][-._a-zA-Z0-9]*$"), AfterValidator(_variable)]
    value: _Text | None = None
    value_from: ValueFrom | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        _exactly_one(self, "value", "valueFrom")
        return self


class Variables(Model):
    """All keys of a ConfigMap or a Secret as environment variables; Tandem's own win."""

    prefix: Annotated[str, AfterValidator(_prefix)] | None = None
    config_map_ref: Reference | None = None
    secret_ref: Reference | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        _exactly_one(self, "configMapRef", "secretRef")
        return self


class Mount(Model):
    """Where a volume appears in a container."""

    name: _VolumeName
    mount_path: Annotated[str, AfterValidator(_mount)]
    sub_path: str | None = None
    sub_path_expr: str | None = None
    read_only: StrictBool | None = None


class Resources(Model):
    """What a container asks for and may use at most."""

    requests: _Quantities | None = None
    limits: _Quantities | None = None


class PodResources(Model):
    """What a pod of the run asks for and may use at most: devices, too."""

    requests: _PodQuantities | None = None
    limits: _PodQuantities | None = None

    @model_validator(mode="after")
    def _devices_are_whole(self) -> Self:
        requests, limits = self.requests or {}, self.limits or {}
        for name in filter(_EXTENDED.fullmatch, {**limits, **requests}):
            if name not in limits:
                raise ValueError(f"requests has {name} alone; give it in limits")
            if not str(limits[name]).isascii() or not str(limits[name]).isdecimal():
                raise ValueError(f"found {limits[name]!r} {name} in limits; allowed: a whole number")
            if str(requests.get(name, limits[name])) != str(limits[name]):
                raise ValueError(f"requests and limits differ in {name}; give it in limits alone")
        return self


class Container(Model):
    """What may be added to one of Tandem's containers."""

    name: Annotated[str, AfterValidator(_container)]
    env: Annotated[tuple[Variable, ...], _once("name")] | None = None
    env_from: tuple[Variables, ...] | None = None
    volume_mounts: Annotated[tuple[Mount, ...], _once("mount_path")] | None = None
    resources: Resources | None = None
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] | None = None


class _Files(Model):
    items: _Objects | None = None
    default_mode: Integer | None = None
    optional: StrictBool | None = None


class ConfigMapSource(_Files):
    """Files from a ConfigMap."""

    name: ObjectName


class SecretSource(_Files):
    """Files from a Secret."""

    secret_name: ObjectName


class ClaimSource(Model):
    """A PersistentVolumeClaim."""

    claim_name: ObjectName
    read_only: StrictBool | None = None


class Projection(Model):
    """One source of a projected volume."""

    config_map: _Object | None = None
    secret: _Object | None = None
    downward_api: _Object | None = Field(None, alias="downwardAPI")
    cluster_trust_bundle: _Object | None = None


class ProjectedSource(Model):
    """Files from several sources in one folder; never a service account's token."""

    sources: tuple[Projection, ...]
    default_mode: Integer | None = None


class Volume(Model):
    """A volume, from one of `VOLUME_SOURCES`."""

    name: Annotated[_VolumeName, AfterValidator(_volume)]
    config_map: ConfigMapSource | None = None
    secret: SecretSource | None = None
    empty_dir: _Object | None = None
    persistent_volume_claim: ClaimSource | None = None
    projected: ProjectedSource | None = None
    downward_api: _Object | None = Field(None, alias="downwardAPI")
    csi: _Object | None = None
    ephemeral: _Object | None = None

    @model_validator(mode="after")
    def _one(self) -> Self:
        _exactly_one(self, *VOLUME_SOURCES)
        return self


class SecurityContext(Model):
    """User and groups of a pod; never root."""

    fs_group: _Id | None = None
    fs_group_change_policy: Literal["Always", "OnRootMismatch"] | None = None
    supplemental_groups: tuple[_Id, ...] | None = None
    run_as_user: _Id | None = None
    run_as_group: _Id | None = None


class Toleration(Model):
    """A taint that a pod tolerates."""

    key: str | None = None
    operator: str | None = None
    value: _Text | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = None
    toleration_seconds: Integer | None = None


class Affinity(Model):
    """Which nodes and neighbours a pod seeks or avoids."""

    node_affinity: _Object | None = None
    pod_affinity: _Object | None = None
    pod_anti_affinity: _Object | None = None


class PodSpec(Model):
    """Where a pod runs and what its containers see."""

    node_selector: dict[_Key, _LabelValue] | None = None
    tolerations: tuple[Toleration, ...] | None = None
    affinity: Affinity | None = None
    topology_spread_constraints: _Objects | None = None
    runtime_class_name: _Name | None = None
    scheduler_name: _Name | None = None
    image_pull_secrets: Annotated[tuple[SecretName, ...], _once("name")] | None = None
    host_aliases: _Objects | None = None
    dns_config: _Object | None = None
    dns_policy: Literal["ClusterFirst", "Default", "None"] | None = None
    termination_grace_period_seconds: Annotated[Integer, Field(ge=0)] | None = None
    volumes: Annotated[tuple[Volume, ...], _once("name")] | None = None
    security_context: SecurityContext | None = None
    containers: Annotated[tuple[Container, ...], _once("name")] | None = None


class Patch(Model):
    """The patch of a pod template."""

    metadata: Metadata | None = None
    spec: PodSpec | None = None
