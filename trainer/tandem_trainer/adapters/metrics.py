"""What the sidecar counts, for GET /metrics."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Histogram

#: `what`: fetch or load. Loads that failed are not in it.
SECONDS: Final = Histogram(
    "tandem_adapter_seconds",
    "Time to fetch an adapter into the pod, or to load it into vLLM",
    ["what"],
    buckets=(0.1, 0.3, 1, 3, 10, 30, 100, 300),
)
#: `kind`: permanent for the one after which the adapter is given up.
FAILURES: Final = Counter("tandem_adapter_failures", "Tries to fetch or load an adapter that failed", ["kind"])
# There from the start, so that the first one is seen as a change.
for _what in ("fetch", "load"):
    SECONDS.labels(_what)
for _kind in ("passing", "permanent"):
    FAILURES.labels(_kind)
