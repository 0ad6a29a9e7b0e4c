"""What a user's patch of a pod template may hold: an allow-list, shaped like Kubernetes' PodTemplateSpec.

A patch says where a pod runs and what it mounts, never what runs in it or with which rights: a pod that passed the
restricted Pod Security profile still passes it with any patch that is accepted here. The fields themselves are in
`podtemplate_fields`.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from tandem_api.v1alpha1 import podtemplate_fields as fields
from tandem_api.v1alpha1.base import MAX_NAME, cut

#: The path of what is wrong with a patch as a whole.
_WHOLE = "(patch)"
#: No more problems of one patch are told.
_MAX_TOLD = 8
#: What pydantic's errors of type want, in words.
_WANTED = {
    **dict.fromkeys(("model_type", "dict_type"), "an object"),
    "tuple_type": "a list",
    "string_type": "a text",
    "int_type": "an integer",
    "bool_type": "true or false",
}
#: The objects of a patch by their path without list indices; for what may be given instead of an unknown field.
_PARTS: dict[str, type[BaseModel]] = {
    "": fields.Patch,
    "metadata": fields.Metadata,
    "spec": fields.PodSpec,
    "spec.tolerations": fields.Toleration,
    "spec.affinity": fields.Affinity,
    "spec.imagePullSecrets": fields.SecretName,
    "spec.securityContext": fields.SecurityContext,
    "spec.volumes": fields.Volume,
    "spec.volumes.configMap": fields.ConfigMapSource,
    "spec.volumes.secret": fields.SecretSource,
    "spec.volumes.persistentVolumeClaim": fields.ClaimSource,
    "spec.volumes.projected": fields.ProjectedSource,
    "spec.volumes.projected.sources": fields.Projection,
    "spec.containers": fields.Container,
    "spec.containers.resources": fields.Resources,
    "spec.containers.volumeMounts": fields.Mount,
    "spec.containers.env": fields.Variable,
    "spec.containers.env.valueFrom": fields.ValueFrom,
    "spec.containers.env.valueFrom.configMapKeyRef": fields.KeyReference,
    "spec.containers.env.valueFrom.secretKeyRef": fields.KeyReference,
    "spec.containers.envFrom": fields.Variables,
    "spec.containers.envFrom.configMapRef": fields.Reference,
    "spec.containers.envFrom.secretRef": fields.Reference,
}


def _fields(path: str, names: str, reason: str) -> dict[str, str]:
    return {f"{path}.{name}": reason for name in names.split()}


#: Fields of a pod that a patch may not hold, by their path without list indices, and what to do instead.
REFUSED: dict[str, str] = {
    **_fields("metadata", "name generateName namespace", "Tandem names its pods; remove it"),
    **_fields("metadata", "finalizers ownerReferences", "Tandem removes its pods; remove it"),
    **_fields("spec", "hostNetwork hostPID hostIPC", "pods stay apart from their node; remove it"),
    **_fields("spec", "serviceAccountName serviceAccount", "use spec.storage.s3.serviceAccount"),
    **_fields("spec", "automountServiceAccountToken", "a run's pods do not talk to the API server; remove it"),
    **_fields("spec", "priorityClassName priority", "use spec.priorityClass"),
    **_fields(
        "spec",
        "initContainers ephemeralContainers",
        "every container is Tandem's; put what you need into an image (spec.program.image, spec.serving.image)",
    ),
    **_fields("spec", "nodeName", "it bypasses the scheduler; use nodeSelector or affinity"),
    **_fields("spec", "restartPolicy", "Tandem starts failed pods anew itself; use spec.attempts"),
    **_fields("spec", "activeDeadlineSeconds", "use spec.stageTimeoutSeconds"),
    **_fields(
        "spec.securityContext",
        "privileged allowPrivilegeEscalation capabilities procMount readOnlyRootFilesystem runAsNonRoot seccompProfile"
        " seLinuxOptions appArmorProfile sysctls windowsOptions",
        "pods run with the rights of the restricted Pod Security profile; remove it",
    ),
    **_fields("spec.volumes", "hostPath", "pods stay apart from their node; use a persistentVolumeClaim"),
    **_fields("spec.volumes", "nfs iscsi cephfs rbd glusterfs fc", "use a persistentVolumeClaim or csi"),
    **_fields(
        "spec.volumes.projected.sources",
        "serviceAccountToken podCertificate",
        "a run's pods have no identity but spec.storage.s3.serviceAccount; remove it",
    ),
    **_fields("spec.containers", "image", "use spec.serving.image or spec.program.image"),
    **_fields(
        "spec.containers",
        "command args",
        "Tandem starts its own programs; give vLLM arguments in spec.serving.extraArgs",
    ),
    **_fields(
        "spec.containers",
        "securityContext",
        "containers run with the rights of the restricted Pod Security profile; give user and groups in"
        " spec.securityContext",
    ),
    **_fields(
        "spec.containers",
        "ports livenessProbe readinessProbe startupProbe lifecycle workingDir restartPolicy stdin tty volumeDevices"
        " terminationMessagePath terminationMessagePolicy",
        "Tandem sets it itself; remove it",
    ),
    **_fields("spec.containers.resources", "claims", "pods make no resource claims; use requests and limits"),
    **_fields("spec.containers.volumeMounts", "mountPropagation", "pods stay apart from their node; remove it"),
}


def problems(patch: Any, containers: Sequence[str] = fields.CONTAINERS) -> list[tuple[str, str]]:
    """Everything that is wrong in a patch: (path in the patch, for example `spec.volumes[0].hostPath`, message).

    `patch` is any JSON; `containers` are those that may be patched. Never raises.
    """
    return _problems(fields.Patch, patch, (), tuple(containers))


def _problems(
    model: type[BaseModel], value: Any, above: tuple[str, ...], context: tuple[str, ...] = ()
) -> list[tuple[str, str]]:
    """What is wrong in `value`; `above`: where an object of this shape stands in a patch."""
    try:
        model.model_validate(value, by_alias=True, by_name=False, context=context)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False)
        told = [(_path(e["loc"]), _message(e, above)) for e in found[:_MAX_TOLD]]
        more = [("(more)", f"{len(found) - _MAX_TOLD} more problems")] if len(found) > _MAX_TOLD else []
        return told + more
    return []


def checked(value: dict[str, Any] | None, containers: Sequence[str] = fields.CONTAINERS) -> dict[str, Any] | None:
    """`value` as it is, for a validator of a field. Raises ValueError with every problem, one a line."""
    return _accepted(value, problems(value, containers) if value is not None else [])


def checked_resources(value: dict[str, Any] | None) -> dict[str, Any] | None:
    """The same for a container's resources, which may name devices."""
    above = ("spec", "containers", "resources")
    return _accepted(value, _problems(fields.PodResources, value, above) if value is not None else [])


def _accepted(value: dict[str, Any] | None, wrong: list[tuple[str, str]]) -> dict[str, Any] | None:
    if wrong:
        told = (message if path == _WHOLE else f"{path}: {message}" for path, message in wrong)
        raise ValueError("\n  ".join(["not accepted:", *told]))
    return value


def _path(location: tuple[int | str, ...]) -> str:
    # pydantic marks errors of a mapping's key; the key itself stands before the mark.
    parts = location[:-1] if location[-1:] == ("[key]",) else location
    named = (f"[{part}]" if isinstance(part, int) else f".{cut(part, MAX_NAME)}" for part in parts)
    return "".join(named).lstrip(".") or _WHOLE


def _message(error: Any, above: tuple[str, ...]) -> str:
    kind, text = error["type"], str(error["msg"])
    if kind == "extra_forbidden":
        return _unknown((*above, *error["loc"]))
    if kind == "missing":
        return "required, but not given"
    if kind == "value_error":
        return text.removeprefix("Value error, ")
    wanted = f"allowed: {_WANTED[kind]}" if kind in _WANTED else f"{text[0].lower()}{text[1:]}"
    return f"found {_found(error['input'])}; {wanted}"


def _unknown(location: tuple[int | str, ...]) -> str:
    *parents, name = (str(part) for part in location if not isinstance(part, int))
    part = ".".join(parents)
    refused = REFUSED.get(f"{part}.{name}")
    if refused is not None:
        return f"not allowed: {refused}"
    allowed = sorted(field.alias or key for key, field in _PARTS[part].model_fields.items())
    close = difflib.get_close_matches(name, allowed, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"unknown field; {hint}allowed: {', '.join(allowed)}"


def _found(value: Any) -> str:
    if value is None:
        return "nothing"
    if isinstance(value, (dict, list, tuple)):
        return "an object" if isinstance(value, dict) else "a list"
    return cut(repr(value), 120)
