"""How large a spec may be, whatever it says. Asked before anything else looks at it. Pure.

The API server bounds most fields by its schema, but not those that are free-form. What is accepted is stored in a
ConfigMap, and is hashed and copied by code that walks into it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any, Final

#: Of the spec as JSON, in UTF-8. A ConfigMap holds four times as much.
MAX_BYTES: Final = 256 * 1024
#: Objects and lists in each other, from the spec on.
MAX_DEPTH: Final = 64
#: Names in a path that say enough to find a place.
_NAMES: Final = 3


def bounds_problem(spec: Any) -> tuple[str, str] | None:
    """Where a spec goes beyond the bounds, and what to do about it; None when it does not. Never raises."""
    level: list[tuple[tuple[str, ...], Any]] = [(("spec",), spec)]
    for _ in range(MAX_DEPTH):
        level = [inner for place in level for inner in _inside(*place)]
        if not level:
            return _size_problem(spec)
    path = ".".join(level[0][0])
    return path, f"objects and lists are nested more than {MAX_DEPTH} deep; allowed: {MAX_DEPTH}; make it flatter"


def _inside(path: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], Any]]:
    """The objects and lists right inside one."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for name, item in items:
        if isinstance(item, (dict, list, tuple)):
            known = len(path) >= _NAMES or not isinstance(value, dict)
            yield path if known else (*path, str(name)[:64]), item


def _size_problem(spec: Any) -> tuple[str, str] | None:
    try:
        size = _size(spec)
    except ValueError:
        wrong = "holds a number or a text that JSON has not, such as NaN; write a finite number, or valid text"
        return _unwritable_place(spec), wrong
    if size <= MAX_BYTES:
        return None
    largest = max(spec, key=lambda name: _size(spec[name])) if isinstance(spec, dict) else ""
    advice = "keep data in a ConfigMap or in S3, and name it here"
    return f"spec.{str(largest)[:64]}", f"the spec has {size} bytes as JSON; allowed: {MAX_BYTES}; {advice}"


def _unwritable_place(spec: Any) -> str:
    """The field that has what JSON has not, as far down as names tell."""
    place: tuple[str, ...] = ("spec",)
    while isinstance(spec, dict) and len(place) < _NAMES:
        name = next((name for name, item in spec.items() if not _is_writable({name: item})), None)
        if name is None or not _is_writable(str(name)):
            break
        place, spec = (*place, str(name)[:64]), spec[name]
    return ".".join(place)


def _is_writable(value: Any) -> bool:
    try:
        _size(value)
    except ValueError:
        return False
    return True


def _size(value: Any) -> int:
    """Bytes of the JSON. Raises ValueError for NaN and for texts that are no Unicode."""
    # YAML knows dates, too, which are texts here.
    return len(json.dumps(value, ensure_ascii=False, allow_nan=False, default=str, skipkeys=True).encode())
