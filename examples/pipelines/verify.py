"""Whether a CloudEvent is from who it says: `is_genuine(headers, body, key)`. The standard library alone."""

from __future__ import annotations

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping

#: Older ones may have been recorded and sent again by somebody.
TOLERANCE_SECONDS = 300


def is_genuine(headers: Mapping[str, str], body: bytes, key: str) -> bool:
    """`headers` with lower-case names, `body` as it was received, `key` as it is in the Secret (one line of it)."""
    try:
        identity, stamp = headers["webhook-id"], headers["webhook-timestamp"]
        signatures = headers["webhook-signature"].split(" ")
        age = abs(time.time() - int(stamp))
    except (KeyError, ValueError):
        return False
    secret = base64.b64decode(key.strip().removeprefix("whsec_"))
    wanted = hmac.new(secret, f"{identity}.{stamp}.".encode() + body, hashlib.sha256).digest()
    expected = f"v1,{base64.b64encode(wanted).decode()}"
    # Compared in constant time: how long it takes must not tell how much of it is right.
    is_signed = any(hmac.compare_digest(expected.encode(), one.encode()) for one in signatures)
    return is_signed and age <= TOLERANCE_SECONDS
