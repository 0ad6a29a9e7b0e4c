"""A union of objects that their field `type` tells apart, as one object for a structural schema. Pure.

Structural schemas have no unions. The object has the fields of all types, and CEL rules refuse a field that the given
type does not have. What is not the same for all types cannot be said in the schema and is said in the descriptions: a
default, which the models fill in, and which types a field belongs to.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from tandem_api.v1alpha1.base import rule

Object = dict[str, Any]

RULES = "x-kubernetes-validations"
_WORDS = frozenset({"description", "default"})


def merged(types: Mapping[str, Object]) -> Object:
    """One object for `types`: the structural schema of each type by its name, the default one first.

    Raises TypeError for a field that two types have in ways that no schema can say at once.
    """
    names = dict.fromkeys(name for schema in types.values() for name in schema["properties"] if name != "type")
    properties: Object = {"type": _type(types)}
    rules: list[dict[str, str]] = []
    required: list[str] = []
    for name in names:
        owners = {kind: schema["properties"][name] for kind, schema in types.items() if name in schema["properties"]}
        properties[name] = _field(name, owners, for_all=len(owners) == len(types))
        if len(owners) < len(types):
            text = f"{name} belongs to {'the type' if len(owners) == 1 else 'the types'} {', '.join(owners)}"
            rules.append(rule(f"{_is_one_of(owners)} || !has(self.{name})", text))
        needing = [kind for kind, schema in types.items() if name in schema.get("required", ())]
        if len(needing) == len(types):
            required.append(name)
        elif needing:
            rules.append(rule(f"{_is_none_of(needing)} || has(self.{name})", f"{', '.join(needing)} needs {name}"))
    rules += _own_rules(types)
    return {
        "type": "object",
        **({"required": required} if required else {}),
        **({RULES: rules} if rules else {}),
        "properties": properties,
    }


def _type(types: Mapping[str, Object]) -> Object:
    texts = (f"{kind}: {schema['properties']['type']['description']}" for kind, schema in types.items())
    return {"description": " ".join(texts), "type": "string", "enum": list(types), "default": next(iter(types))}


def _is_one_of(kinds: Collection[str]) -> str:
    """The CEL expression that is true for these types."""
    quoted = [f"'{kind}'" for kind in kinds]
    return f"self.type == {quoted[0]}" if len(quoted) == 1 else f"self.type in [{', '.join(quoted)}]"


def _is_none_of(kinds: Collection[str]) -> str:
    return f"self.type != '{next(iter(kinds))}'" if len(kinds) == 1 else f"!({_is_one_of(kinds)})"


def _own_rules(types: Mapping[str, Object]) -> list[dict[str, str]]:
    """The objects' own rules, each for the types that have it."""
    owners: dict[tuple[str, str], list[str]] = {}
    for kind, schema in types.items():
        for one in schema.get(RULES, ()):
            owners.setdefault((one["rule"], one["message"]), []).append(kind)
    return [
        rule(expression if len(kinds) == len(types) else f"{_is_none_of(kinds)} || ({expression})", message)
        for (expression, message), kinds in owners.items()
    ]


def _field(name: str, owners: Mapping[str, Object], *, for_all: bool) -> Object:
    """One field as all its owners accept it: limits that differ are widened."""
    nodes = list(owners.values())
    default = nodes[0].get("default")
    keeps_default = for_all and all(node.get("default") == default for node in nodes)
    result: Object = {"description": _described(owners, for_all=for_all, with_default=not keeps_default)}
    for key in dict.fromkeys(key for node in nodes for key in node if key not in _WORDS):
        values = [node.get(key) for node in nodes]
        if all(value == values[0] for value in values):
            result[key] = values[0]
        elif key == "enum":
            result[key] = list(dict.fromkeys(item for value in values for item in value or ()))
        elif key.startswith(("min", "max")):
            # No limit in one type is no limit for all.
            limits = [node[key] for node in nodes if key in node]
            if len(limits) == len(nodes):
                result[key] = min(limits) if key.startswith("min") else max(limits)
        else:
            raise TypeError(f"{name}: {', '.join(owners)} have different values of {key!r}")
    return {**result, "default": default} if keeps_default and default is not None else result


def _described(owners: Mapping[str, Object], *, for_all: bool, with_default: bool) -> str:
    """What the field means, with the types that it belongs to where these are not all or not of one mind."""
    texts: dict[str, list[str]] = {}
    for kind, node in owners.items():
        text, default = node.get("description", ""), node.get("default")
        if with_default and default is not None and not isinstance(default, dict):
            text += f" Default: {str(default).lower() if isinstance(default, bool) else default}."
        texts.setdefault(text, []).append(kind)
    if for_all and len(texts) == 1:
        return next(iter(texts))
    return " ".join(f"[{', '.join(kinds)}] {text}" for text, kinds in texts.items())
