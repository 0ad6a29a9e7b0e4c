"""Time in these tests is the cluster's."""

from __future__ import annotations

import pytest
from tests.unit.operator.kubernetes.cluster import START, Clock

from tandem_operator.app import deletion, passes
from tandem_operator.platforms.kubernetes import events, platform


@pytest.fixture(autouse=True)
def clock(monkeypatch):
    Clock.current = START
    for module in (passes, deletion, events, platform):
        monkeypatch.setattr(module, "datetime", Clock)
