"""The common base of the resource's models and its scalar types.

Outside (YAML, JSON, the CRD) names are camelCase, inside they are snake_case. Models are frozen down to the leaves
and refuse unknown fields. Kubernetes objects carry no floating-point numbers, so decimals travel as strings.
"""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, Strict
from pydantic.alias_generators import to_camel


class Model(BaseModel):
    """Base of every object in the resource: frozen, camelCase outside, no unknown fields."""

    model_config = ConfigDict(
        alias_generator=to_camel,
        validate_by_name=True,
        validate_by_alias=True,
        serialize_by_alias=True,
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
    )

    def to_json(self) -> dict[str, Any]:
        """The object as plain JSON values, camelCase, without unset (null) fields."""
        return self.model_dump(mode="json", by_alias=True, exclude_none=True)


def _refuse_number(value: Any) -> Any:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        raise ValueError(f'found the number {value}; decimals travel as strings: write "{value}" in quotes')
    return value


def shown(value: Any) -> str:
    """What was found, for a message: nothing, a mapping, a list, or the value itself in at most 120 characters."""
    if value is None:
        return "nothing"
    if isinstance(value, (dict, list, tuple)):
        return "a mapping" if isinstance(value, dict) else "a list"
    return repr(value)[:120]


class Form:
    """The form of a text: its pattern for the CRD, and a check whose message says in words what is `allowed`."""

    def __init__(self, pattern: str, allowed: str) -> None:
        self.pattern = pattern
        self._allowed = allowed

    def check(self, value: Any) -> Any:
        """`value`, if it has this form or is no text at all. Raises ValueError."""
        if isinstance(value, str) and re.fullmatch(self.pattern, value) is None:
            raise ValueError(f"found {shown(value)}; allowed: {self._allowed}")
        return value


_POSITIVE = Form(r"^[0-9]+(\.[0-9]+)?([eE]-?[0-9]+)?$", 'a decimal of at least 0 in quotes, such as "0.5" or "5e-4"')
_FRACTION = Form(r"^(0(\.[0-9]+)?|1(\.0+)?)$", 'a decimal from 0 to 1 in quotes, such as "0.25"')
_ENTRYPOINT = Form(r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_.]*$", 'a Python object as "package.module:name"')
#: A decimal number >= 0 as a string: "0.5", "5e-4".
PositiveDecimal = Annotated[
    str,
    Field(pattern=_POSITIVE.pattern, max_length=24),
    BeforeValidator(_POSITIVE.check),
    BeforeValidator(_refuse_number),
]
#: A decimal number in [0, 1] as a string: "0.25".
Fraction = Annotated[
    str,
    Field(pattern=_FRACTION.pattern, max_length=24),
    BeforeValidator(_FRACTION.check),
    BeforeValidator(_refuse_number),
]
#: An integer: neither a text nor a decimal nor true and false, which the API server refuses, too.
Integer = Annotated[int, Strict()]
#: true or false: neither a text such as "yes" nor 0 and 1, which the API server refuses, too.
Boolean = Annotated[bool, Strict()]
#: A sha256 as 64 lower-case hex digits.
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", max_length=64)]


class Schemes:
    """The schemes that an address may have: its pattern for the CRD, and a check with a message for people."""

    def __init__(self, *names: str) -> None:
        self._allowed = ", ".join(f"{name}:" for name in names)
        self.pattern = rf"^({'|'.join(names)}):.+$"
        self._names = names

    def check(self, value: Any) -> Any:
        """`value`, if it is an address that is allowed or no text at all. Raises ValueError."""
        if isinstance(value, str) and value.partition(":")[0] not in self._names:
            raise ValueError(f"found {value!r}; allowed: an address that begins with one of {self._allowed}")
        return value


_CODE, _DATA = Schemes("file", "s3", "configmap"), Schemes("file", "s3", "configmap", "hf")
_MODEL = Schemes("hf", "s3", "pvc", "file", "pypi")
#: Where code lies.
CodeUri = Annotated[str, Field(pattern=_CODE.pattern, max_length=1024), BeforeValidator(_CODE.check)]
#: Where a data set lies.
DataUri = Annotated[str, Field(pattern=_DATA.pattern, max_length=1024), BeforeValidator(_DATA.check)]
#: Where a model lies.
ModelUri = Annotated[str, Field(pattern=_MODEL.pattern, max_length=1024), BeforeValidator(_MODEL.check)]
#: A Python object: "package.module:name".
Entrypoint = Annotated[str, Field(pattern=_ENTRYPOINT.pattern, max_length=256), BeforeValidator(_ENTRYPOINT.check)]
#: A free-form object that Tandem passes on.
FreeForm = Annotated[dict[str, Any], Field(json_schema_extra={"x-kubernetes-preserve-unknown-fields": True})]


def decimal(value: float, places: int = 4) -> str:
    """`value` as the fixed-point string that status fields hold, for example ``0.8750``."""
    return str(Decimal(repr(float(value))).quantize(Decimal(1).scaleb(-places)))


def rule(expression: str, message: str) -> dict[str, str]:
    """One CEL rule for the CRD (`x-kubernetes-validations`)."""
    return {"rule": expression, "message": message}


def cel(*rules: dict[str, str]) -> ConfigDict:
    """A model configuration that carries CEL rules into the CRD."""
    return ConfigDict(json_schema_extra={"x-kubernetes-validations": [dict(r) for r in rules]})
