"""Hundreds of manifests that are almost right, on the real API server with the real operator.

Each is refused in words, by the one or by the other, or comes to an end; then a corrected one succeeds under the same
name. No run stays without a word, nothing of the program's inside is told, and the operator lives through all of it.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from tests.faults.api import ApiError
from tests.faults.kubelet import Ending
from tests.faults.manifests import OPTIMIZERS, Case, cases, changes, manifest, whole
from tests.faults.world import World, is_full
from tests.unit.operator.kubernetes.controllers import ordinary

from tandem_api.conditions import INVALID
from tandem_api.contract import StageRequest
from tandem_api.v1alpha1.run import KIND, ManifestError, parse_run

Object = dict[str, Any]

COUNT = 600 if is_full() else 15
BATCH = 15
#: For a batch to be judged, or to succeed, on a slow machine.
SECONDS = 400.0
#: API servers of Kubernetes 1.20 take time that doubles with each further object in an object.
DEEPEST = 12
#: What only a program's author understands.
INTERNALS = re.compile(r"Traceback|\b[A-Za-z]+Error\(|<class|object at 0x|\bpydantic\b|NoneType|File \"/")
#: Secrets that the valid manifests name.
SECRETS = ("s3", "hub", "key")


def script(pod: Object, request: str) -> Ending:
    """Every worker succeeds at once."""
    if not request:
        return Ending()
    asked = StageRequest.model_validate_json(request)
    # The choice among epochs is an evaluation, too.
    known = asked if not asked.stage.startswith("select") else asked.model_copy(update={"stage": "evaluate"})
    return Ending(message=ordinary(known).to_message())


def chosen(world: World) -> list[Case]:
    """The cases of this test: those that one node and an old API server can carry."""
    valid = [manifest(), *(whole(kind) for kind in OPTIMIZERS)]
    for document in valid:
        # No such class here, and no pod would start.
        document["spec"].pop("priorityClass", None)
        document["metadata"]["namespace"] = world.namespace
        document["spec"]["storage"]["s3"]["endpoint"] = world.s3["endpoint"]
    fit = [change for change in changes() if depth(change.value) <= DEEPEST and not is_large(change.value)]
    made = cases(valid, COUNT * 3 // 2, seed=5, choice=fit)
    return [case for case in map(with_strategy, made) if is_short(case.document)][:COUNT]


def with_strategy(case: Case) -> Case:
    """The case with as few steps as show what was changed."""
    touched = {change.keys[1] for change in case.changes}
    strategy = "w" if touched & {"training", "weightOptimizer"} else "p" if "promptOptimizer" in touched else "vanilla"
    return Case(case.number, {**case.valid, "spec": {**case.valid["spec"], "strategy": strategy}}, case.changes)


def is_short(document: Object) -> bool:
    """Whether it needs no hundreds of pods."""
    try:
        spec = parse_run(document).spec
    except ManifestError:
        return True
    return len(spec.steps) <= 4 and spec.serving.replicas <= 2


def is_large(value: Any) -> bool:
    """Texts of megabytes say nothing more here than they do to the models alone."""
    try:
        return len(json.dumps(value)) > 100_000
    except TypeError:  # REMOVED
        return False


def depth(value: Any) -> int:
    inside = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return 1 + max(map(depth, inside), default=0)


def named(case: Case, document: Object) -> Object:
    return {**document, "metadata": {**document["metadata"], "name": f"case-{case.number}"}}


def text_names(case: Case, text: str) -> bool:
    """Whether a message tells of something that was changed: the field, or an object that holds it."""
    flat = re.sub(r"\W", "", text).lower()
    return any(key.lower()[:8] in flat for change in case.changes for key in change.keys[1:])


class Trial:
    """One case on its way."""

    def __init__(self, case: Case) -> None:
        self.case = case
        self.verdict = ""
        """refused by the API server, refused by the operator, ended: ..., suspended, gone; empty: not yet."""
        self.wrong: list[str] = []

    @property
    def name(self) -> str:
        return f"case-{self.case.number}"

    @property
    def is_followed(self) -> bool:
        """Whether a valid one comes after it; where nothing was stored, one of four is enough."""
        return self.verdict != "refused by the API server" or self.case.number % 4 == 0

    def declare(self, world: World) -> None:
        """Create it as it is."""
        try:
            world.api.create(named(self.case, self.case.document))
        except ApiError as error:
            self.verdict = "refused by the API server"
            said = json.loads(error.body).get("message", "")
            if error.status not in (400, 422) or not text_names(self.case, said):
                self.wrong.append(f"the API server says {error.status} {said[:300]}")

    def judge(self, run: Object | None) -> bool:
        """Whether it is known what became of it."""
        if self.verdict:
            return True
        conditions = {one["type"]: one for one in ((run or {}).get("status") or {}).get("conditions") or []}
        summary, suspended = conditions.get("Succeeded", {}), conditions.get("Suspended", {})
        if run is None:
            self.verdict = "gone"  # its time after the end was over
        elif summary.get("reason") == INVALID:
            self.verdict = "refused by the operator"
            self._look_at(summary["message"], "spec.")
        elif summary.get("status") in ("True", "False"):
            self.verdict = f"ended: {summary['reason']}"
            if summary["status"] == "False":
                self._look_at(f"{summary['reason']}: {summary['message']}", "")
        elif suspended.get("status") == "True":
            self.verdict = "suspended"
        return bool(self.verdict)

    def correct(self, world: World) -> None:
        """Edit it where it may be edited, each other time; else delete it and create the valid one under its name."""
        valid = named(self.case, self.case.valid)
        stored = world.api.get(KIND, world.namespace, self.name)
        if stored is None and not self.is_followed:
            return
        if stored is None:
            world.api.create(valid)
        elif self.verdict == "suspended" or (self.verdict == "refused by the operator" and self.case.number % 2):
            world.api.patch(KIND, world.namespace, self.name, _edit(stored["spec"], valid["spec"]))
        else:
            world.api.delete(KIND, world.namespace, self.name)
            world.wait("its end", lambda: _is_created(world, valid), SECONDS)

    def _look_at(self, text: str, beginning: str) -> None:
        if not text_names(self.case, text) or not text.startswith(beginning):
            self.wrong.append(f"{self.verdict}, which names nothing that was changed: {text[:300]}")

    def __str__(self) -> str:
        return f"{self.case}: {self.verdict or 'no word of it'}; {'; '.join(self.wrong)}"


def _edit(old: Any, new: Any) -> Object:
    """The merge patch of a spec: what is not wanted any more is null."""
    return {"spec": _changed(old, new)}


def _changed(old: Any, new: Any) -> Any:
    if not isinstance(old, dict) or not isinstance(new, dict):
        return new
    return {key: _changed(old.get(key), new[key]) if key in new else None for key in {**old, **new}}


def _is_created(world: World, document: Object) -> bool:
    try:
        world.api.create(document)
    except ApiError as error:
        if error.status != 409:
            raise
        return False
    return True


def settle(world: World, trials: list[Trial], done: Callable[[Trial, Object | None], bool]) -> list[Trial]:
    """Wait until all are done; those that are not when the time is over."""
    end = time.monotonic() + SECONDS
    while True:
        runs = {run["metadata"]["name"]: run for run in world.api.list(KIND, world.namespace)}
        left = [trial for trial in trials if not done(trial, runs.get(trial.name))]
        if not left or time.monotonic() > end:
            return left
        assert world.operator.is_running, world.operator.tail()
        time.sleep(0.25)


def has_succeeded(trial: Trial, run: Object | None) -> bool:
    if not trial.is_followed:
        return True
    conditions = ((run or {}).get("status") or {}).get("conditions") or []
    return any(one["type"] == "Succeeded" and one["status"] == "True" for one in conditions)


def told(world: World) -> Iterator[tuple[str, str]]:
    """Everything that was said to users: (where, text)."""
    for run in world.api.list(KIND, world.namespace):
        yield f"status of {run['metadata']['name']}", json.dumps(run.get("status", {}))
    for event in world.api.list("Event", world.namespace):
        if event["involvedObject"]["kind"] == KIND:
            yield f"event of {event['involvedObject']['name']}", f"{event['reason']} {event['message']}"


@pytest.fixture
def declared(make_world: Callable[..., World]) -> World:
    """A world whose pods need no processes, and an operator that gives them up soon."""
    # A Lease that a loaded machine does not lose: this is not about leadership.
    world = make_world(startFailureSeconds=5, lease={"durationSeconds": 60, "renewSeconds": 5})
    world.kubelet.scripts[world.namespace] = script
    world.proxy.calls = None
    for name in SECRETS:
        metadata = {"name": name, "namespace": world.namespace}
        world.api.create({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "stringData": {"API_KEY": "x"}})
    world.operator.start()
    world.operator.wait_until_ready()
    return world


@pytest.mark.timeout(10_800 if is_full() else 3000)
def test_every_manifest_is_refused_in_words_or_ends_and_a_corrected_one_succeeds(
    declared: World, record_cases: Callable[[str, int, int], None]
) -> None:
    world, pid = declared, declared.operator.pid
    found = chosen(world)
    assert len(found) == COUNT
    lost: list[str] = []
    verdicts: dict[str, int] = {}
    for at in range(0, COUNT, BATCH):
        trials = [Trial(case) for case in found[at : at + BATCH]]
        known = len(lost)
        for trial in trials:
            trial.declare(world)
        settle(world, trials, Trial.judge)
        for trial in trials:
            verdicts[trial.verdict] = verdicts.get(trial.verdict, 0) + 1
            trial.correct(world)
        for trial in settle(world, trials, has_succeeded):
            trial.wrong.append(f"the corrected one did not succeed: {world.condition('Succeeded', trial.name)}")
        lost += [str(trial) for trial in trials if trial.wrong or not trial.verdict]
        lost += [f"{where}: {text[:500]}" for where, text in told(world) if INTERNALS.search(text)]
        # In parts: a failure is seen while the rest still runs.
        print(f"{at + len(trials)} of {COUNT}: {verdicts}", *lost[known:], sep="\n", flush=True)
        assert world.operator.is_running and world.operator.pid == pid, world.operator.tail()
        for trial in trials:
            world.api.delete(KIND, world.namespace, trial.name)
    record_cases("declared states", COUNT, COUNT - len(lost))
    print(verdicts)
    assert not lost, f"{verdicts}\n{len(lost)} lost:\n" + "\n".join(lost[:20])
    assert min(verdicts.get(f"refused by the {who}", 0) for who in ("API server", "operator")) > COUNT / 30, verdicts
    assert "Traceback" not in world.operator.log.read_text(errors="replace")
    errors = re.findall(r'tandem_reconcile_errors_total{type="(?!Api)(\w+)"}', world.operator.metrics())
    assert errors == []
