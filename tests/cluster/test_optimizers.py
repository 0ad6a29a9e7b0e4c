"""A step of mipro, one of gepa and one of DSPy's own in one run on a cluster with real vLLM; the pod of the first and
the operator are killed on the way."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

import pytest
from tests.cluster.harness import OPERATOR_NAMESPACE, Namespace, reviews
from tests.local.test_optimizers import EXAMPLES, STEPS

#: The optimizers with a real model are also in tests/local, and killed pods in test_run.py, every day.
pytestmark = pytest.mark.full
RUN = "optimizers"
SECONDS = 600
#: Percent of a stage.
MIDDLE = 20


@dataclass
class Killer:
    """Follows the run to its end, and kills once each."""

    namespace: Namespace
    pods: list[str] = field(default_factory=list)
    """Killed pods of the first step's optimize stage."""
    operators: list[int] = field(default_factory=list)
    """Steps in which the operator was killed."""

    def follow(self) -> dict[str, Any]:
        """The finished run."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            run = self.namespace.run(RUN)
            assert run is not None
            status = run.get("status") or {}
            if status.get("finished"):
                return run
            self._look(status.get("step") or {})
            time.sleep(0.3)
        said = self.namespace.kubectl("describe", "optrun", RUN)
        raise AssertionError(f"{RUN} did not end within {SECONDS} s: {said}")

    def _look(self, step: dict[str, Any]) -> None:
        if step.get("stage") != "optimize" or (step.get("progress") or 0) < MIDDLE:
            return
        if step["index"] == 1 and not self.pods:
            working = [p for p in self.namespace.pods(RUN, "worker") if p["status"]["phase"] == "Running"]
            (pod,) = [p["metadata"]["name"] for p in working]
            self.pods.append(pod)
            self.namespace.kubectl("delete", "pod", pod, "--grace-period=0", "--force", "--wait=false")
        elif step["index"] == 2 and not self.operators:
            self.operators.append(step["index"])
            chosen = ("-l", "app.kubernetes.io/component=operator", "--grace-period=0", "--force", "--wait=false")
            self.namespace.cluster.kubectl("delete", "pod", "-n", OPERATOR_NAMESPACE, *chosen)


@pytest.fixture(scope="module")
def story(namespace: Namespace) -> tuple[Killer, dict[str, Any]]:
    """The run, to its end."""
    steps = [{"kind": "p", "promptOptimizer": settings} for settings in STEPS]
    run = reviews(namespace.name, RUN, strategy=steps)
    for split in ("train", "validation", "test"):
        run["spec"]["data"][split]["limit"] = EXAMPLES
    namespace.cluster.apply(run)
    killer = Killer(namespace)
    return killer, killer.follow()


@pytest.mark.timeout(SECONDS + 120)
def test_the_run_succeeds_though_a_pod_and_the_operator_were_killed(story: tuple[Killer, dict[str, Any]]) -> None:
    killer, run = story
    assert len(killer.pods) == 1 and len(killer.operators) == 1
    status = run["status"]
    succeeded = next(c for c in status["conditions"] if c["type"] == "Succeeded")
    assert succeeded["status"] == "True", succeeded
    assert [step["state"] for step in status["steps"]] == ["Succeeded"] * (len(STEPS) + 2)
    # The Job itself replaces a pod that was deleted: neither that nor the operator's death is a failure of the stage.
    assert [(s["attempt"], s["failures"]) for step in status["steps"] for s in step["stages"]] == [(1, 0)] * 6
    assert status["test"]["n"] == EXAMPLES
    assert float(status["best"]["score"]) >= float(status["baseline"]["score"])


@pytest.mark.parametrize("index", range(1, len(STEPS) + 1), ids=[settings["type"] for settings in STEPS])
def test_every_step_leaves_its_trials_and_has_paid_for_nothing_that_it_knew(
    index: int, story: tuple[Killer, dict[str, Any]], namespace: Namespace
) -> None:
    _, run = story
    step = run["status"]["steps"][index]
    assert step["stages"][0]["facts"]["optimizer"] == STEPS[index - 1]["type"]
    root = f"{namespace.name}/{RUN}/{run['metadata']['uid']}/steps/{index}-p/optimize/"
    full = [trial["full"] for trial in namespace.lines(f"{root}trials.jsonl") if trial["full"]]
    assert float(step["score"]) == pytest.approx(max(score["score"] for score in full), abs=1e-4)
    assert all(score["n"] == EXAMPLES for score in full)
    paid = namespace.lines(f"{root}ledger/") + namespace.lines(f"{root}calls/")
    assert len({record["key"] for record in paid}) == len(paid)
    assert sum(record["usage"]["calls"] for record in paid) == step["stages"][0]["usage"]["calls"] > EXAMPLES
    # Each pod writes under a name of its own: the second one went on from what the first had written.
    pods = {key.rsplit("-", 1)[0] for key in namespace.objects(f"{root}ledger/")}
    assert len(pods) == (2 if index == 1 else 1), pods
