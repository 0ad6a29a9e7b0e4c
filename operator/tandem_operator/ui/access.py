"""Who may read. Pure.

Any program on this machine, of any user, can reach a loopback port, and so can any web page that a browser here shows:
so a random token is asked for, and the name under which we are addressed must be this machine's own (a page whose name
its owner makes point to 127.0.0.1 would else be of the same origin as ours: DNS rebinding).
"""

from __future__ import annotations

import hmac
import secrets
from dataclasses import dataclass

#: What a page of ours may do: load its own style and script, and ask us again.
POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
#: The report brings its style with it, and nothing else.
REPORT_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'; sandbox"
HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": POLICY,
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
}
_OURSELVES = frozenset({"127.0.0.1", "localhost", "[::1]"})


@dataclass(frozen=True)
class Token:
    """The secret of one server."""

    value: str

    @classmethod
    def new(cls) -> Token:
        """A random one, of 256 bits."""
        return cls(secrets.token_urlsafe(32))

    def is_it(self, given: str | None) -> bool:
        """Whether it was given; how long that takes tells nothing."""
        return given is not None and hmac.compare_digest(given.encode(errors="replace"), self.value.encode())


def is_ourselves(host: str | None) -> bool:
    """Whether a Host header names this machine; the port may be another one, of a tunnel."""
    if not host:
        return False
    name, colon, port = host.lower().rpartition(":")
    if not colon or host.endswith("]"):
        return host.lower() in _OURSELVES
    return name in _OURSELVES and port.isdigit()


def cookie_name(port: int) -> str:
    """Cookies do not know ports: two servers on one machine must not take each other's."""
    return f"tandem-ui-{port}"
