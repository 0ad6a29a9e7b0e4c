"""Runs of instant pods that come to the same point, and stay there until the test lets them go on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from tests.faults.kubelet import Ending
from tests.faults.world import World
from tests.unit.operator.kubernetes.controllers import ordinary

from tandem_api.contract import StageRequest
from tandem_operator.platforms.kubernetes import names

Object = dict[str, Any]

#: A strategy with every kind of stage, and its stages.
STRATEGY: Final = "p -> w"
STAGES: Final = ("0b-check", "0b-evaluate", "1p-optimize", "2w-traces", "2w-train", "2w-evaluate", "3f-evaluate")

#: For a test that is not about the Lease: a busy machine must not cost it.
LONG_LEASE: Final = {"durationSeconds": 60, "renewSeconds": 2}


def point(thing: Object) -> str:
    """The step and stage that a worker's pod, or its Job, is for: 1p-optimize."""
    labels = thing["metadata"]["labels"]
    return str(labels.get(names.TASK, "")).removeprefix(f"{labels[names.RUN]}-").rpartition("-")[0]


class Stages:
    """When the workers of a world's pods may begin, and end."""

    def __init__(self, world: World, begun: Iterable[str] = (), ended: Iterable[str] = ()) -> None:
        self.begun, self.ended = set(begun), set(ended)
        """Stages; of one run alone: RUN/STAGE."""
        self._world = world
        world.kubelet.scripts[world.namespace] = self._script
        world.kubelet.hold(lambda pod: pod["metadata"]["namespace"] == world.namespace and self._is_held(pod))

    def workers(self, stage: str, *phases: str) -> dict[str, Object]:
        """The pod of each run that works on that stage, or is about to, or has; by run."""
        pods = self._world.kubelet.pods(self._world.namespace, names.WORKER)
        return {
            pod["metadata"]["labels"][names.RUN]: pod
            for pod in pods
            if point(pod) == stage
            and (pod.get("status") or {}).get("phase", "Pending") in phases
            and not pod["metadata"].get("deletionTimestamp")
        }

    def _is_held(self, pod: Object) -> bool:
        return pod["metadata"]["labels"].get(names.COMPONENT) == names.WORKER and not _is_in(pod, self.begun)

    def _script(self, pod: Object, request: str) -> Ending:
        if not request:
            return Ending()
        message = ordinary(StageRequest.model_validate_json(request)).to_message()
        return Ending(message=message, may_end=lambda: _is_in(pod, self.ended))


def _is_in(pod: Object, stages: set[str]) -> bool:
    run = pod["metadata"]["labels"][names.RUN]
    return bool({point(pod), f"{run}/{point(pod)}"} & stages)


def stages_of(world: World, run: str) -> list[Object]:
    """All stages of a run's status."""
    return [stage for step in world.status(run)["steps"] for stage in step["stages"]]
