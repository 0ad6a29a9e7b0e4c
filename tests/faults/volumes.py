"""What a pod's containers see of the world: environment, arguments and mounted files, as folders of this machine.

A container has a root folder of its own in which every mount path leads to its volume. Whatever in its environment or
its arguments names such a path is rewritten to lie in there.
"""

from __future__ import annotations

import base64
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from tests.faults.cluster_api import ClusterApi

Object = dict[str, Any]

TERMINATION: Final = "/dev/termination-log"
_SERVICE: Final = re.compile(r"http://(?P<service>[a-z0-9-]+)\.(?P<namespace>[a-z0-9-]+)\.svc(?=:)")


class MissingError(Exception):
    """A ConfigMap, a Secret or a key of it is not there; in the kubelet's words."""


@dataclass(frozen=True)
class Sources:
    """Where a pod's parts come from."""

    read: Callable[[str, str], Object | None]
    """(kind, name) of a ConfigMap or a Secret in the pod's namespace."""
    service_address: Callable[[str, str], str]
    """(namespace, name) of a Service: the address that stands for it here."""


async def read_sources(pod: Object, api: ClusterApi, service_address: Callable[[str, str], str]) -> Sources:
    """Everything that the pod names, read now."""
    spec, namespace = pod["spec"], pod["metadata"]["namespace"]
    wanted = set()
    for volume in spec.get("volumes") or []:
        wanted |= {("ConfigMap", volume["configMap"]["name"])} if "configMap" in volume else set()
        wanted |= {("Secret", volume["secret"]["secretName"])} if "secret" in volume else set()
    for variable in (variable for container in spec["containers"] for variable in container.get("env") or []):
        for kind, key in (("Secret", "secretKeyRef"), ("ConfigMap", "configMapKeyRef")):
            reference = (variable.get("valueFrom") or {}).get(key)
            wanted |= {(kind, reference["name"])} if reference else set()
    found = {(kind, name): await api.get(kind, namespace, name) for kind, name in sorted(wanted)}
    return Sources(lambda kind, name: found.get((kind, name)), service_address)


@dataclass(frozen=True)
class PodFiles:
    """The files of one pod below `folder`."""

    pod: Object
    folder: Path
    claims: Path
    """Where persistent volumes of the pod's namespace lie."""

    def write_volumes(self, sources: Sources) -> None:
        """Make every volume, or renew what has changed. Raises MissingError."""
        for volume in self.pod["spec"].get("volumes") or []:
            place = self._volume(volume)
            if "configMap" in volume:
                self._write_files(place, self._keys("ConfigMap", volume["configMap"]["name"], sources), sources)
            elif "secret" in volume:
                self._write_files(place, self._keys("Secret", volume["secret"]["secretName"], sources), sources)
            else:
                place.mkdir(parents=True, exist_ok=True)

    def write_root(self, container: Object) -> None:
        """Make the container's root; called before its first start."""
        root = self.root(container)
        volumes = {volume["name"]: self._volume(volume) for volume in self.pod["spec"].get("volumes") or []}
        (root / "dev").mkdir(parents=True, exist_ok=True)
        for mount in container.get("volumeMounts") or []:
            link = root / mount["mountPath"].lstrip("/")
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(volumes[mount["name"]])

    def root(self, container: Object) -> Path:
        """The container's root folder."""
        return self.folder / "roots" / str(container["name"])

    def termination(self, container: Object) -> Path:
        """Its termination message."""
        return self.root(container) / TERMINATION.lstrip("/")

    def local(self, container: Object, value: str) -> str:
        """`value`, with a path of the container as one of this machine."""
        mounts = [mount["mountPath"] for mount in container.get("volumeMounts") or []]
        known = {*mounts, TERMINATION, *(str(parent) for mount in mounts for parent in Path(mount).parents)} - {"/"}
        is_inside = any(value == path or value.startswith(f"{path}/") for path in known)
        return str(self.root(container) / value.lstrip("/")) if is_inside else value

    def environment(self, container: Object, sources: Sources) -> dict[str, str]:
        """All of it. Raises MissingError."""
        found = {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ}
        for variable in container.get("env") or []:
            value = variable.get("value", "")
            if "valueFrom" in variable:
                value = self._referred(variable["valueFrom"], sources)
            if value is not None:
                found[variable["name"]] = self.local(container, value)
        return found

    def _referred(self, source: Object, sources: Sources) -> str | None:
        (kind, reference), *_ = source.items()
        if kind not in ("secretKeyRef", "configMapKeyRef"):
            return ""
        kind = "Secret" if kind == "secretKeyRef" else "ConfigMap"
        is_optional = bool(reference.get("optional"))
        try:
            keys = self._keys(kind, reference["name"], sources)
        except MissingError:
            if is_optional:
                return None
            raise
        if reference["key"] not in keys:
            if is_optional:
                return None
            namespace = self.pod["metadata"]["namespace"]
            raise MissingError(f"couldn't find key {reference['key']} in {kind} {namespace}/{reference['name']}")
        return keys[reference["key"]].decode()

    def _keys(self, kind: str, name: str, sources: Sources) -> dict[str, bytes]:
        thing = sources.read(kind, name)
        if thing is None:
            raise MissingError(f'{kind.lower()} "{name}" not found')
        if kind == "Secret":
            return {key: base64.b64decode(value) for key, value in (thing.get("data") or {}).items()}
        return {key: value.encode() for key, value in (thing.get("data") or {}).items()}

    def _volume(self, volume: Object) -> Path:
        claim = (volume.get("persistentVolumeClaim") or {}).get("claimName")
        return self.claims / claim if claim else self.folder / "volumes" / str(volume["name"])

    def _write_files(self, place: Path, files: dict[str, bytes], sources: Sources) -> None:
        """As the kubelet does: the folder is a link that is replaced as a whole when the content has changed."""

        def address(match: re.Match[str]) -> str:
            return f"http://{sources.service_address(match['namespace'], match['service'])}"

        wanted = {name: _SERVICE.sub(address, text.decode()).encode() for name, text in files.items()}
        if place.is_dir() and {path.name: path.read_bytes() for path in place.iterdir()} == wanted:
            return
        place.parent.mkdir(parents=True, exist_ok=True)
        old = place.resolve() if place.is_symlink() else None
        version = 1 + (int(old.name.rpartition(".")[2]) if old is not None else 0)
        new = place.with_name(f"{place.name}.{version}")
        new.mkdir()
        for name, content in wanted.items():
            (new / name).write_bytes(content)
        link = place.with_name(f".{place.name}.link")
        link.symlink_to(new.name)
        link.replace(place)
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)
