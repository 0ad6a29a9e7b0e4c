"""Many runs, one operator: what each run costs the API server, and that memory does not grow with what has ended.

Counts are bounded, not times: those are measured by tests/bench/operator_scale.py and told in docs/reliability.md.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
from tests.bench.operator_scale import SETTINGS, measure
from tests.faults.world import World, is_full

RUNS, ACTIVE = (1000, 200) if is_full() else (60, 20)
#: A run `vanilla` has three stages (check, evaluate, and the final evaluate). Each is a ConfigMap and a Job, made and
#: let go (4), changes of the status when it is asked for, begins and ends (5), and two events (2). Beside them: the
#: accepted spec, two policies, the server's four objects, made and let go, scaled down once, its pod's note; what the
#: status says of the server and of the end (6), with as many events.
STAGES, PER_STAGE, BESIDE = 3, 11, 26
MOST_WRITES = STAGES * PER_STAGE + BESIDE
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
