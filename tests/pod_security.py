"""The *restricted* Pod Security Standard as a pure function over a pod template: what its admission would refuse.

Written from the standard's text as of Kubernetes 1.34, *baseline* and *restricted* together, with the field paths that
it names; ephemeral and init containers are held to the same rules as containers. Linux pods only: none of ours says
`os.name: windows`, and one that does is refused here.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

Object = dict[str, Any]

#: The release of Kubernetes whose standard this is.
VERSION = "v1.34"
VOLUMES = frozenset(
    {"configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret"}
)
ADDABLE_CAPABILITIES = frozenset({"NET_BIND_SERVICE"})
SELINUX_TYPES = frozenset({None, "", "container_t", "container_init_t", "container_kvm_t", "container_engine_t"})
APPARMOR_TYPES = frozenset({None, "RuntimeDefault", "Localhost"})
SECCOMP_TYPES = frozenset({"RuntimeDefault", "Localhost"})
SYSCTLS = frozenset(
    {
        *("kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.ip_unprivileged_port_start"),
        *("net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range", "net.ipv4.ip_local_reserved_ports"),
        *("net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout", "net.ipv4.tcp_keepalive_intvl"),
        *("net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem"),
    }
)
_APPARMOR_ANNOTATION = "container.apparmor.security.beta.kubernetes.io/"
_CONTAINERS = ("containers", "initContainers", "ephemeralContainers")
_PROBES = ("livenessProbe", "readinessProbe", "startupProbe")
_HOOKS = ("postStart", "preStop")


def violations(template: Object) -> list[str]:
    """Everything that the standard forbids in a pod template, or in a pod, by field path; empty: it is restricted."""
    pod = template["spec"]
    containers = [(f"{kind}[{one['name']}]", one) for kind in _CONTAINERS for one in pod.get(kind) or []]
    context = pod.get("securityContext") or {}
    found = [*_annotations(template), *_host(pod), *_volumes(pod), *_context("spec.securityContext", context)]
    for path, container in containers:
        found += _container(path, container, context)
    return found


def _annotations(template: Object) -> Iterator[str]:
    for key, profile in ((template.get("metadata") or {}).get("annotations") or {}).items():
        is_allowed = profile in ("", "runtime/default") or str(profile).startswith("localhost/")
        if key.startswith(_APPARMOR_ANNOTATION) and not is_allowed:
            yield f"metadata.annotations[{key}]"


def _host(pod: Object) -> Iterator[str]:
    yield from (f"spec.{name}" for name in ("hostNetwork", "hostPID", "hostIPC") if pod.get(name))
    if (pod.get("os") or {}).get("name", "linux") != "linux":
        yield "spec.os.name"


def _volumes(pod: Object) -> Iterator[str]:
    for volume in pod.get("volumes") or []:
        yield from (f"spec.volumes[{volume['name']}].{kind}" for kind in {*volume} - {"name"} - VOLUMES)


def _context(path: str, context: Object) -> Iterator[str]:
    """What is forbidden in a pod's context and in a container's alike."""
    if (context.get("windowsOptions") or {}).get("hostProcess"):
        yield f"{path}.windowsOptions.hostProcess"
    selinux = context.get("seLinuxOptions") or {}
    if selinux.get("type") not in SELINUX_TYPES:
        yield f"{path}.seLinuxOptions.type"
    yield from (f"{path}.seLinuxOptions.{name}" for name in ("user", "role") if selinux.get(name))
    if (context.get("appArmorProfile") or {}).get("type") not in APPARMOR_TYPES:
        yield f"{path}.appArmorProfile.type"
    if context.get("runAsUser") == 0:
        yield f"{path}.runAsUser"
    if "seccompProfile" in context and (context["seccompProfile"] or {}).get("type") not in SECCOMP_TYPES:
        yield f"{path}.seccompProfile.type"
    for one in context.get("sysctls") or []:
        if one["name"] not in SYSCTLS:
            yield f"{path}.sysctls[{one['name']}]"


def _container(path: str, container: Object, of_pod: Object) -> Iterator[str]:
    own = container.get("securityContext") or {}
    where = f"{path}.securityContext"
    yield from _context(where, own)
    if own.get("privileged"):
        yield f"{where}.privileged"
    if own.get("allowPrivilegeEscalation") is not False:
        yield f"{where}.allowPrivilegeEscalation"
    if own.get("procMount", "Default") != "Default":
        yield f"{where}.procMount"
    capabilities = own.get("capabilities") or {}
    if "ALL" not in (capabilities.get("drop") or []):
        yield f"{where}.capabilities.drop"
    if {*(capabilities.get("add") or [])} - ADDABLE_CAPABILITIES:
        yield f"{where}.capabilities.add"
    if own.get("runAsNonRoot", of_pod.get("runAsNonRoot")) is not True:
        yield f"{where}.runAsNonRoot"
    if (own.get("seccompProfile") or of_pod.get("seccompProfile") or {}).get("type") not in SECCOMP_TYPES:
        yield f"{where}.seccompProfile"
    yield from (f"{path}.ports.hostPort" for port in container.get("ports") or [] if port.get("hostPort"))
    handlers = {name: container.get(name) for name in _PROBES}
    handlers |= {f"lifecycle.{name}": (container.get("lifecycle") or {}).get(name) for name in _HOOKS}
    for name, handler in handlers.items():
        for kind in ("httpGet", "tcpSocket"):
            if ((handler or {}).get(kind) or {}).get("host"):
                yield f"{path}.{name}.{kind}.host"
