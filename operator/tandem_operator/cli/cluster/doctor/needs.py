"""What the spec of a run needs of the cluster: objects of its namespace, devices, APIs. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

SECRET, CONFIG_MAP, CLAIM, ACCOUNT = "secrets", "configmaps", "persistentvolumeclaims", "serviceaccounts"
_AWS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
#: MLflow's account: pods start without it, too.
_OPTIONAL = ("mlflow", "credentialsSecret")
#: Fields of the spec, and of pod templates, that name an object.
_NAMES = {
    "tokenSecret": SECRET,
    "keySecret": SECRET,
    "secretName": SECRET,
    "serviceAccount": ACCOUNT,
    "serviceAccountName": ACCOUNT,
    "claimName": CLAIM,
}
#: The same where the name, and mostly a key, is inside.
_REFERENCES = {
    "secretKeyRef": SECRET,
    "secretRef": SECRET,
    "configMapKeyRef": CONFIG_MAP,
    "configMapRef": CONFIG_MAP,
    "configMap": CONFIG_MAP,
}
_SCHEMES = {"configmap://": CONFIG_MAP, "pvc://": CLAIM}


@dataclass(frozen=True)
class Needed:
    """An object of the run's namespace."""

    kind: str
    """The plural, as in the API's paths."""
    name: str
    keys: tuple[str, ...] = ()
    """Of a Secret or ConfigMap."""


@dataclass(frozen=True)
class Devices:
    """What one kind of pod asks for beside CPU and memory."""

    where: str
    """The field that says so."""
    amounts: dict[str, int]


@dataclass(frozen=True)
class Needs:
    """All of it."""

    objects: tuple[Needed, ...]
    devices: tuple[Devices, ...]
    jobset: bool
    queue: str | None


def needs_of(spec: dict[str, Any], settings: dict[str, Any]) -> Needs:
    """What a valid spec needs; `settings`: the operator's, for what every run gets and what the spec does not say
    (empty: not known)."""
    defaults = settings.get("defaults") or {}
    given = {name: defaults.get(name) for name in ("cacheVolume", "podTemplate")}
    pull = [Needed(SECRET, name) for name in (settings.get("images") or {}).get("pullSecrets") or []]
    devices = [
        Devices(f"spec.{part}.resources" if own else f"the operator's defaults.{part}.resources", amounts)
        for part in ("serving", "training")
        for own in [(spec.get(part) or {}).get("resources")]
        for amounts in [_amounts(own or (defaults.get(part) or {}).get("resources") or {})]
        if amounts
    ]
    is_set = (spec.get("training") or {}).get("backend") == "jobset"
    objects = dict.fromkeys([*_objects(spec), *_objects(given), *pull])
    return Needs(tuple(objects), tuple(devices), is_set, spec.get("queue"))


def _objects(value: Any, field: str = "") -> Iterator[Needed]:
    if isinstance(value, dict):
        if value.get("optional") is True:
            return
        yield from _reference(value, field)
        for key, inner in value.items():
            if (field, key) != _OPTIONAL:
                yield from _objects(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _objects(inner, field)
    elif isinstance(value, str):
        yield from _named(value, field)


def _reference(value: dict[str, Any], field: str) -> Iterator[Needed]:
    kind = SECRET if field == "imagePullSecrets" else _REFERENCES.get(field)
    if kind is not None and value.get("name"):
        yield Needed(kind, value["name"], (value["key"],) if value.get("key") else ())


def _named(value: str, field: str) -> Iterator[Needed]:
    if field == "credentialsSecret":
        yield Needed(SECRET, value, _AWS_KEYS)
    elif field in _NAMES:
        yield Needed(_NAMES[field], value)
    for scheme, kind in _SCHEMES.items():
        if value.startswith(scheme):
            name, _, rest = value.removeprefix(scheme).partition("/")
            yield Needed(kind, name, (rest,) if rest and kind == CONFIG_MAP else ())


def _amounts(resources: dict[str, Any]) -> dict[str, int]:
    """Devices are extended resources: their names have a domain, and their amounts are whole."""
    asked = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
    return {name: int(amount) for name, amount in asked.items() if "/" in name and str(amount).isdecimal()}
