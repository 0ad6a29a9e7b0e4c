"""Where two outcomes differ, for a failure's message: paths and both values."""

from __future__ import annotations

import json
from typing import Any


def differences(found: Any, wanted: Any, path: str = "") -> list[str]:
    """One line for each leaf that is not the same. Texts that are JSON are looked into."""
    if found == wanted:
        return []
    if isinstance(found, dict) and isinstance(wanted, dict):
        keys = sorted(found.keys() | wanted.keys(), key=str)
        return [line for key in keys for line in differences(found.get(key), wanted.get(key), f"{path}.{key}")]
    if isinstance(found, list) and isinstance(wanted, list) and len(found) == len(wanted):
        pairs = enumerate(zip(found, wanted, strict=True))
        return [line for number, (a, b) in pairs for line in differences(a, b, f"{path}[{number}]")]
    if isinstance(found, str) and isinstance(wanted, str) and found[:1] == wanted[:1] and found[:1] in ("{", "["):
        return differences(json.loads(found), json.loads(wanted), path)
    return [f"{path}: found {found!r}, wanted {wanted!r}"]
