"""Patches laid under one of our pod templates: first the platform team's, then the run's. Pure.

What our template sets stays as it is, so a patch changes neither what runs in a pod nor with which rights. Maps and
lists are united; of two patches the later one wins. Two exceptions: a patch may replace the volume `cache`, and the
longest grace period is taken.

Patches need not have passed `tandem_api.v1alpha1.podtemplate`: the platform team's is not restricted.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from tandem_api.errors import ConfigurationError
from tandem_api.v1alpha1.podtemplate_fields import CACHE_VOLUME

#: How one field is merged: (our value or None, the patches' values, the strongest last) -> the value, or None.
_Rule = Callable[[Any, list[Any]], Any]
_Rules = Mapping[str, tuple[type[Any], _Rule]]
_KINDS = {dict: "an object", list: "a list", int: "an integer"}


def merge(template: dict[str, Any], *patches: dict[str, Any] | None) -> dict[str, Any]:
    """A new pod template: `template` with `patches` laid under it, of which the later are the stronger.

    Containers that `template` does not have are left out. The same patches laid under the result change nothing.
    Raises ConfigurationError if a patch is not shaped like a pod template.
    """
    given = [copy.deepcopy(patch) for patch in patches if patch]
    return _merge_object(_TEMPLATE, copy.deepcopy(template), given)


def _merge_object(rules: _Rules, ours: dict[str, Any], theirs: list[dict[str, Any]]) -> dict[str, Any]:
    """An object field by field; a field without a rule is taken whole, ours or else the last patch's."""
    merged = dict(ours)
    for name in dict.fromkeys(name for patch in theirs for name in patch):
        given = [patch[name] for patch in theirs if patch.get(name) is not None]
        if not given:
            continue
        kind, rule = rules.get(name, (object, _ours_or_last))
        for value in given:
            if not isinstance(value, kind):
                raise ConfigurationError(f"podTemplate: {name}: found {value!r}; allowed: {_KINDS[kind]}")
        value = rule(ours.get(name), given)
        if value is not None:
            merged[name] = value
    return merged


def _object(rules: _Rules) -> tuple[type[Any], _Rule]:
    return dict, lambda ours, theirs: _merge_object(rules, ours or {}, theirs)


def _ours_or_last(ours: Any, theirs: list[Any]) -> Any:
    return theirs[-1] if ours is None else ours


def _ours_alone(ours: Any, theirs: list[Any]) -> Any:
    return ours


def _longest(ours: int | None, theirs: list[int]) -> int:
    return max([*theirs, ours] if ours is not None else theirs)


def _united(ours: list[Any] | None, theirs: list[list[Any]]) -> list[Any]:
    """Ours, then what the patches add."""
    return [*(ours or []), *_added(ours or [], theirs)]


def _united_before(ours: list[Any] | None, theirs: list[list[Any]]) -> list[Any]:
    """What the patches add, then ours: for lists whose last item wins."""
    return [*_added(ours or [], theirs), *(ours or [])]


def _added(ours: list[Any], theirs: list[list[Any]]) -> list[Any]:
    added: list[Any] = []
    for item in (item for items in theirs for item in items):
        if item not in ours and item not in added:
            added.append(item)
    return added


def _by_key(key: str, layers: Iterable[list[Any]]) -> dict[str, dict[str, Any]]:
    """The items of all `layers` by `key`, in the order of their first mention, each as it is mentioned last."""
    items: dict[str, dict[str, Any]] = {}
    for item in (item for layer in layers for item in layer):
        if not isinstance(item, dict) or not isinstance(item.get(key), str):
            raise ConfigurationError(f"podTemplate: found {item!r} in a list; allowed: an object with {key}")
        items[item[key]] = item
    return items


def _keyed(key: str) -> tuple[type[Any], _Rule]:
    """A list whose items are told apart by `key`; of the same key ours is taken, or else the last patch's."""

    def rule(ours: list[Any] | None, theirs: list[list[Any]]) -> list[Any]:
        # Ours come first, too: an environment variable may refer to those before it.
        return list(_by_key(key, [ours or [], *theirs, ours or []]).values())

    return list, rule


def _volumes(ours: list[Any] | None, theirs: list[list[Any]]) -> list[Any]:
    volumes = _by_key("name", [ours or [], *theirs, ours or []])
    given = _by_key("name", theirs)
    if CACHE_VOLUME in given:
        volumes[CACHE_VOLUME] = given[CACHE_VOLUME]
    return list(volumes.values())


def _amounts(ours: dict[str, Any] | None, theirs: list[dict[str, Any]]) -> dict[str, Any]:
    """Requests and limits. A resource that a stronger layer names in either is that layer's in both: one layer's
    request may lie above another's limit."""
    merged = _merge_object({"requests": (dict, _ours_alone), "limits": (dict, _ours_alone)}, ours or {}, theirs)
    for patch in reversed(theirs):
        taken = {*(merged.get("requests") or {}), *(merged.get("limits") or {})}
        for kind in ("requests", "limits"):
            added = {name: amount for name, amount in (patch.get(kind) or {}).items() if name not in taken}
            if added:
                merged[kind] = {**(merged.get(kind) or {}), **added}
    return merged


def _containers(ours: list[Any] | None, theirs: list[list[Any]]) -> list[Any]:
    given = [_by_key("name", [containers]) for containers in theirs]
    return [
        _merge_object(
            _CONTAINER, container, [patch[container["name"]] for patch in given if container["name"] in patch]
        )
        for container in ours or []
    ]


_MAP = _object({})
_CONTAINER: _Rules = {
    **dict.fromkeys(("image", "command", "args"), (object, _ours_alone)),
    "env": _keyed("name"),
    # Of two sources with the same key Kubernetes takes the last.
    "envFrom": (list, _united_before),
    "volumeMounts": _keyed("mountPath"),
    "resources": (dict, _amounts),
    "securityContext": _MAP,
}
_SPEC: _Rules = {
    "nodeSelector": _MAP,
    "tolerations": (list, _united),
    "imagePullSecrets": (list, _united),
    "volumes": (list, _volumes),
    "securityContext": _object({"supplementalGroups": (list, _united)}),
    "containers": (list, _containers),
    "terminationGracePeriodSeconds": (int, _longest),
}
_TEMPLATE: _Rules = {
    "metadata": _object({"labels": _MAP, "annotations": _MAP}),
    "spec": _object(_SPEC),
}
