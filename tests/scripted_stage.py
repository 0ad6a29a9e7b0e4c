"""One stage against a scripted LM server over real HTTP and a store in memory: the fixture's other half is here.

The task: the answer to `q7` is `a7`. Programs for it are at the end; they are named by their entry points.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import dspy
from tests.memory_store import MemoryStore
from tests.scripted_lm.server import ScriptedServer

from tandem_api.canonical import canonical_json
from tandem_api.contract import Endpoint, Prompts, StageRequest, StageResult, StorageRef
from tandem_api.records import PromptSet
from tandem_trainer.context import StageContext, Stopping
from tandem_trainer.progress import ProgressReporter

#: The served name: an adapter's, so that a call for the base model would be refused.
MODEL = "adapter-1"
QUESTION = re.compile(r"^Question: q(\d+)$", re.MULTILINE)


def asked(request: dict[str, Any]) -> int:
    """The number of the question that a plain prompt ends with."""
    return int(QUESTION.findall(request["text"])[-1])


def demos_shown(request: dict[str, Any]) -> int:
    """How many demos a plain prompt holds."""
    return len(QUESTION.findall(request["text"])) - 1


def helped_by_demos(request: dict[str, Any]) -> str:
    """A model that answers every fourth question unaided, and more with every demo: all with three."""
    number = asked(request)
    return f"a{number}" if number % 4 <= demos_shown(request) else "no idea"


def rows(numbers: Sequence[int]) -> list[dict[str, Any]]:
    return [{"id": f"e{number}", "question": f"q{number}", "answer": f"a{number}"} for number in numbers]


@dataclass
class ScriptedStage:
    """Makes requests and runs stages on them; every run is an attempt with the same store."""

    folder: Path
    server: ScriptedServer
    run_stage: Callable[[StageContext], StageResult]
    kind: str
    stage: str
    store: MemoryStore = field(default_factory=MemoryStore)
    stopping: Stopping = field(default_factory=Stopping)
    train: Sequence[int] = tuple(range(24))
    validation: Sequence[int] = tuple(range(100, 108))
    seed: int = 0
    concurrency: int = 8
    program: dict[str, Any] = field(
        default_factory=lambda: {"inline": {"signature": "question -> answer", "adapter": "plain"}}
    )
    optimizer: dict[str, Any] = field(default_factory=dict)
    sampling: dict[str, Any] = field(default_factory=dict)
    start: PromptSet | None = None
    tokens_left: int | None = None

    def request(self) -> StageRequest:
        data: dict[str, Any] = {"inputs": ["question"]}
        for name, numbers in (("train", self.train), ("validation", self.validation)):
            path = self.folder / f"{name}.jsonl"
            path.write_text("".join(json.dumps(row) + "\n" for row in rows(numbers)), encoding="utf-8")
            data[name] = {"uri": path.as_uri()}
        spec = {
            "program": self.program,
            "metric": {"builtin": "exact-match", "field": "answer"},
            "data": data,
            "model": {"uri": "file:model", "sampling": self.sampling},
            "strategy": "p -> w",
            "evaluation": {"concurrency": self.concurrency, "maxErrorRate": "1"},
            "seed": self.seed,
            "promptOptimizer" if self.kind == "p" else "weightOptimizer": self.optimizer,
        }
        artifact = None
        if self.start is not None:
            artifact = self.store.put("start.json", canonical_json(self.start.model_dump(mode="json")).encode())
        return StageRequest.model_validate(
            {
                "namespace": "default",
                "name": "run",
                "uid": "1",
                "index": 1 if self.kind == "p" else 2,
                "kind": self.kind,
                "stage": self.stage,
                "attempt": 1,
                "spec": spec,
                "storage": StorageRef(bucket="bucket"),
                "endpoint": Endpoint(url=self.server.url, model=MODEL),
                "prompts": (Prompts(label="current" if artifact else "vanilla", artifact=artifact),),
                "tokens_left": self.tokens_left,
            }
        )

    def run(self) -> StageResult:
        """One attempt. The result must fit into a termination message."""
        progress = ProgressReporter(self.folder / "progress.json")
        context = StageContext(self.request(), self.store, progress, self.folder, self.stopping)
        result = self.run_stage(context)
        progress.flush()
        result.to_message()
        return result

    def calls_of(self, attempt: Callable[[], Any]) -> int:
        """How many LM calls an attempt makes."""
        before = len(self.server.requests)
        attempt()
        return len(self.server.requests) - before

    def object(self, name: str) -> bytes:
        """An object of the stage, by its name under the stage's prefix."""
        return self.store.objects[f"{self.request().stage_layout.root}{name}"]

    def trials(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.object("trials.jsonl").splitlines()]

    def prompt_sets(self) -> list[PromptSet]:
        """The prompt sets of the trials, in their order."""
        return [
            PromptSet.model_validate_json(self.object(f"prompts/{trial['prompts']['sha256']}.json"))
            for trial in self.trials()
        ]

    def stop_at(self, calls: int) -> None:
        """Ask the stage to stop, as SIGTERM does, when the server sees its call number `calls` (from 1)."""
        answer = self.server.lm.answer
        self.stopping = stopping = Stopping()

        def counting(request: dict[str, Any]) -> Any:
            if len(self.server.requests) == calls:
                stopping.set()
            return answer(request)

        self.server.lm.answer = counting


class _Hops(dspy.Module):
    """Calls `search` once or several times, `answer` once, and `idle` never."""

    def __init__(self, hops: int) -> None:
        super().__init__()
        self.hops = hops
        self.search = dspy.Predict("question, hop -> query")
        self.answer = dspy.Predict("question, query -> answer")
        self.idle = dspy.Predict("question -> note")

    async def aforward(self, question: str) -> dspy.Prediction:
        query = ""
        for hop in range(self.hops):
            query = (await self.search.acall(question=question, hop=hop)).query
        answer = await self.answer.acall(question=question, query=query)
        return dspy.Prediction(answer=answer.answer)


def two_hops() -> dspy.Module:
    return _Hops(2)


#: The program of three predictors, for a spec.
TWO_HOPS = {"entrypoint": "tests.scripted_stage:two_hops", "adapter": "plain"}


class _Repaired(dspy.Module):
    """Calls `answer`, and `repair` where that does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = dspy.Predict("question -> answer")
        self.repair = dspy.Predict("note, question -> answer")

    async def aforward(self, question: str) -> dspy.Prediction:
        found = await self.answer.acall(question=question)
        if found.answer == "no idea":
            found = await self.repair.acall(note="again", question=question)
        return dspy.Prediction(answer=found.answer)


def repaired() -> dspy.Module:
    return _Repaired()


#: The program with a predictor that is called in some runs only.
REPAIRED = {"entrypoint": "tests.scripted_stage:repaired", "adapter": "plain"}


def hopping(request: dict[str, Any]) -> str:
    """Answers the calls of `two_hops`; the answer is right for even numbers."""
    number, last = asked(request), request["text"].splitlines()[-1]
    if last == "Query:":
        hop = re.findall(r"^Hop: (\d)$", request["text"], re.MULTILINE)[-1]
        return f"s{number}-{hop}"
    return f"a{number}" if number % 2 == 0 else "no idea"
