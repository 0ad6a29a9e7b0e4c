"""What tests of the operator alone share: runs whose pods are no processes, and an operator that is kept running."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from tests.faults.kubelet import Ending, Script
from tests.faults.operator_process import OperatorProcess
from tests.faults.proxy import Call
from tests.faults.world import RUN_SECONDS, World
from tests.unit.operator.kubernetes.controllers import ordinary

from tandem_api.contract import StageRequest
from tandem_api.v1alpha1.run import KIND

Object = dict[str, Any]

#: Long enough for a machine with much else to do: where nothing is about leading, the leadership must not be lost.
LEASE: Final = {"durationSeconds": 30, "renewSeconds": 2}


def script(seconds: float = 0.2) -> Script:
    """Every worker succeeds, so many seconds after its start."""

    def ending(pod: Object, request: str) -> Ending:
        if not request:
            return Ending(seconds=seconds)
        return Ending(0, ordinary(_nameless(StageRequest.model_validate_json(request))).to_message(), seconds)

    return ending


def _nameless(request: StageRequest) -> StageRequest:
    """The request as if its run had no name of its own: an adapter is served under one that is made of it."""
    if request.endpoint is None:
        return request
    model = request.endpoint.model.replace(request.name, "NAME")
    return request.model_copy(update={"endpoint": request.endpoint.model_copy(update={"model": model})})


@contextmanager
def kept_running(*operators: OperatorProcess) -> Iterator[None]:
    """Start operators, and start them anew whenever they end, as their Deployment would."""

    def keep(is_over: threading.Event) -> None:
        pause = 1.0
        while not is_over.wait(pause):
            for operator in operators:
                if not operator.is_running:
                    operator.start()
                    pause = min(2 * pause, 8.0)

    for operator in operators:
        operator.start()
    with _beside(keep):
        yield


@contextmanager
def poked(world: World, names: Iterable[str], seconds: float = 6.0) -> Iterator[None]:
    """Somebody writes to the runs now and then: a run whose passes fail in a row is then not left alone for minutes."""
    names = list(names)

    def poke(is_over: threading.Event) -> None:
        number = 0
        while not is_over.wait(seconds):
            number += 1
            for name in names:
                found = world.api.get(KIND, world.namespace, name)
                if found is not None and "finished" not in found.get("status", {}):
                    note = {"metadata": {"annotations": {"tests/poke": str(number)}}}
                    world.api.patch(KIND, world.namespace, name, note)

    with _beside(poke):
        yield


@contextmanager
def _beside(work: Callable[[threading.Event], None]) -> Iterator[None]:
    """`work` in a thread of its own, until the end, which it is told by an event."""
    is_over = threading.Event()
    thread = threading.Thread(target=work, args=(is_over,), name=work.__name__, daemon=True)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


def wait_all(world: World, names: Iterable[str], seconds: float = RUN_SECONDS) -> None:
    """Until all of the runs have succeeded and are tidied up."""
    for name in names:
        world.wait_finished(name, seconds=seconds)


def result(world: World, name: str) -> Object:
    """What became of a run, without its name: the same for each run of the same spec, whatever happened to it."""

    def plain(value: Any) -> Any:
        return json.loads(json.dumps(value).replace(name, "NAME"))

    # Other runs' Jobs are counted under the same roof.
    made = {job: count for job, count in world.created_jobs.items() if belongs(job, name)}
    return {
        "outcome": plain(world.outcome(name)),
        "children": plain(world.children(name)),
        "jobs": Counter(plain(made)),
    }


def belongs(thing: str, run: str) -> bool:
    """Whether an object of that name is the run, or was made for it. No run's name begins with another's."""
    return thing == run or thing.startswith((f"{run}-", f"{run}."))


class Owners:
    """Which run a call is about."""

    def __init__(self) -> None:
        self.uids: dict[str, str] = {}
        """By name of the run."""

    def apply(self, world: World, name: str, **spec: Any) -> None:
        """Create a run, and know its calls."""
        self.uids[name] = world.apply_run(name, **spec)["metadata"]["uid"]

    def of(self, call: Call) -> str | None:
        """The run; None: it is no call of a pass over one of these."""
        found = (name for name, uid in self.uids.items() if belongs(call.name, name) or uid in call.path)
        return next(found, None)
