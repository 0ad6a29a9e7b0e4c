"""One JSON form for everything that is hashed or stored, so that equal values have equal digests."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def canonical_json(value: Any) -> str:
    """JSON with sorted keys, no spaces and no NaN. Raises ValueError for NaN and TypeError for foreign types."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def sha256_hex(data: bytes) -> str:
    """The sha256 of `data` as 64 lower-case hex digits."""
    return hashlib.sha256(data).hexdigest()


def digest(value: Any) -> str:
    """sha256 (hex) of the canonical JSON of `value`."""
    return sha256_hex(canonical_json(value).encode())


def seed_from(*parts: Any) -> int:
    """A seed in [0, 2**31) that depends on `parts` alone: never on time or order of arrival."""
    return int(digest(list(parts))[:8], 16) & 0x7FFFFFFF
