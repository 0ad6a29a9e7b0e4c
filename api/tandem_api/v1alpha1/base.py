"""The common base of the resource's models and its scalar types.

Outside (YAML, JSON, the CRD) names are camelCase, inside they are snake_case. Models are frozen down to the leaves
and refuse unknown fields. Kubernetes objects carry no floating-point numbers, so decimals travel as strings.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, Strict
from pydantic.alias_generators import to_camel

_KEYWORDS = {"class_name": "class"}


def _outside(name: str) -> str:
    """A field's name outside. A keyword of Python's has another name inside, which type checkers must take, too."""
    return to_camel(_KEYWORDS.get(name, name))


class Model(BaseModel):
    """Base of every object in the resource: frozen, camelCase outside, no unknown fields."""

    model_config = ConfigDict(
        alias_generator=_outside,
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


def _refuse_infinite(value: str) -> str:
    if math.isinf(float(value)):
        raise ValueError(f"found {value!r}, which is too large for a number; write a smaller one")
    return value


#: As many characters of a name that somebody has chosen are told.
MAX_NAME = 64


def shown(value: Any) -> str:
    """What was found, for a message: nothing, a mapping, a list, or the value itself, a long one cut."""
    if value is None:
        return "nothing"
    if isinstance(value, (dict, list, tuple)):
        return "a mapping" if isinstance(value, dict) else "a list"
    return cut(repr(value), 120)


def cut(text: str, most: int) -> str:
    """`text` in at most so many characters; one that was longer ends in dots."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


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
    AfterValidator(_refuse_infinite),
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


_NAME = r"[a-z0-9]([-a-z0-9.]*[a-z0-9])?"
_OBJECT_NAME = Form(
    f"^{_NAME}$", "the name of an object in the run's own namespace: lower-case letters, digits, '-' and '.'"
)
#: An object of the run's namespace, by its name: there is no way to write another namespace.
ObjectName = Annotated[
    str, Field(pattern=_OBJECT_NAME.pattern, min_length=1, max_length=253), BeforeValidator(_OBJECT_NAME.check)
]
#: The form of an address that names an object of the run's namespace, or a bucket.
_ADDRESSES = {
    "configmap": Form(rf"configmap://{_NAME}(/[-._A-Za-z0-9]*)?", "configmap://NAME, or configmap://NAME/KEY"),
    "pvc": Form(rf"pvc://{_NAME}(/.*)?", "pvc://CLAIM/PATH"),
    "s3": Form(rf"s3://{_NAME}(/.*)?", "s3://BUCKET/KEY"),
}


class Schemes:
    """The schemes that an address may have: its pattern for the CRD, and a check with a message for people."""

    def __init__(self, *names: str) -> None:
        self._allowed = ", ".join(f"{name}:" for name in names)
        self.pattern = rf"^({'|'.join(names)}):.+$"
        self._names = names

    def check(self, value: Any) -> Any:
        """`value`, if it is an address that is allowed or no text at all. Raises ValueError."""
        if not isinstance(value, str):
            return value
        scheme, _, rest = value.partition(":")
        if scheme not in self._names:
            raise ValueError(f"found {shown(value)}; allowed: an address that begins with one of {self._allowed}")
        if re.search(r"[\x00-\x1f\x7f\\]", value):
            raise ValueError(f"found {shown(value)}; allowed: an address without control characters and backslashes")
        # A path on this machine may go upwards: it may start at the manifest's folder.
        if scheme != "file" and any(part in (".", "..") for part in rest.split("/")):
            raise ValueError(f"found {shown(value)}; allowed: an address without '.' and '..' parts")
        if scheme in _ADDRESSES:
            _ADDRESSES[scheme].check(value)
        return value


class WebAddress:
    """The address of a server without keys in it: its pattern for the CRD, and a check with a message for people."""

    pattern = r"^https?://[^/?#@\s]+(/[^?#\s]*)?$"

    def __init__(self, examples: str, keys: str) -> None:
        """`examples` of what is allowed; `keys`: the field that names the Secret with the keys."""
        self._allowed = f"an address such as {examples}, without a user, a password or a query ({keys})"

    def check(self, url: Any) -> Any:
        """`url`, if it is an address or no text at all. Raises ValueError, without the keys that may stand in `url`."""
        if not isinstance(url, str) or (re.fullmatch(self.pattern, url) and _has_a_port(url)):
            return url
        without_user = re.sub(r"^(\w+://)?.*@", r"\1...@", url, flags=re.DOTALL)
        found = re.sub(r"([?#]).*", r"\1...", without_user, flags=re.DOTALL)
        raise ValueError(f"found {shown(found)}; allowed: {self._allowed}")


def _has_a_port(url: str) -> bool:
    """Whether the port of `url` is a number from 0 to 65535, or not given."""
    try:
        urlsplit(url).port  # noqa: B018 - reading it is the check
    except ValueError:
        return False
    return True


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
