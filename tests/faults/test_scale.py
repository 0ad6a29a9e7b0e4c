"""Many runs, one operator: what each run costs the API server, and that memory does not grow with what has ended.

Counts are bounded, not times: those are measured by tests/bench/operator_scale.py and told in docs/reliability.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from tests.bench.operator_scale import SETTINGS, measure
from tests.faults.world import World, is_full

RUNS, ACTIVE = (1000, 200) if is_full() else (20, 10)
#: Of a run `p`, as it was counted; `vanilla` has a stage less. For each stage a ConfigMap and a Job are made and let go
#: (4), and an event and the status tell of it.
MOST_WRITES = 39
#: A new operator has to look at each run once, and may tell one of what it tells at a start.
AT_A_RESTART = 4
MEMORY_MB = 300


@pytest.mark.timeout(7200 if is_full() else 1200)
def test_each_of_many_runs_costs_a_bounded_number_of_writes_and_little_memory(
    make_world: Callable[..., World], record_cases: Callable[[str, int, int], None]
) -> None:
    found = measure(make_world(**SETTINGS), RUNS, ACTIVE, strategy="vanilla")
    record_cases("scale", RUNS, RUNS)
    assert found.most_writes <= MOST_WRITES + AT_A_RESTART, found
    assert found.peak_rss_mb <= MEMORY_MB, found
    # Every pass was counted, and none began anew for nothing: a run is looked at when something happens to it.
    assert found.passes >= RUNS
    assert not math.isnan(found.p99_seconds)
    print(found)
