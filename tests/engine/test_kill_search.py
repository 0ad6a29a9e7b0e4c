"""A search that is killed again and again ends as one that nobody disturbed, and pays for at most a batch twice each
time.

Each attempt is a real worker on a real S3 server, forked from a process that has imported everything: an attempt that
lives for half a second would otherwise spend three on its imports.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import threading
import time
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest
from tests.engine import model
from tests.scripted_lm.server import ScriptedServer

from tandem_api.contract import Endpoint, StageRequest, StorageRef
from tandem_api.errors import EXIT_DONE
from tandem_api.layout import StageLayout
from tandem_api.store import S3Store
from tandem_trainer import main
from tandem_trainer.stages.optimize import OPTIMIZERS as SEARCHES

KILLS = 20
CONCURRENCY = 4
#: The calls in flight, and as many again that may wait to be written (docs/local.md).
BATCH = 2 * CONCURRENCY
LATENCY_SECONDS = 0.1

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "bootstrap-random-search": {"candidates": 6, "maxBootstrappedDemos": 2, "maxLabeledDemos": 2},
    "mipro": {"trials": 8, "instructions": 3, "demoSets": 4, "minibatchSize": 10, "maxBootstrappedDemos": 2},
}


def answer(request: dict[str, Any]) -> Any:
    """The engine tests' model; asked for something else than a review's label, it writes an instruction."""
    if model.ITEM.search(request["text"].rpartition("\n\n")[2]):
        return model.answer(request)
    way = hashlib.sha256(json.dumps([request["text"], request.get("seed")]).encode()).hexdigest()[:6]
    return f" Say whether the review is positive or negative, in the way {way}."


class Model:
    """The scripted model, which says when it has answered so many different calls."""

    def __init__(self) -> None:
        self.server = ScriptedServer(self._answer, latency=LATENCY_SECONDS)
        self._wanted = 0
        self._reached = threading.Event()

    def _answer(self, request: dict[str, Any]) -> Any:
        if len(self.server.lm.answered) + 1 >= self._wanted:
            self._reached.set()
        return answer(request)

    def reaches(self, calls: int) -> threading.Event:
        """Set once so many different calls have been answered, or are about to be."""
        self._wanted, self._reached = calls, threading.Event()
        return self._reached


def attempt(environment: dict[str, str]) -> None:
    """One attempt, in a process of its own: what `python -m tandem_trainer.main` does."""
    os.environ.update(environment)
    os._exit(main.main())


@dataclass
class Search:
    """An optimize stage; `start` may be called again and again."""

    folder: Path
    url: str
    s3: dict[str, str]
    environment: dict[str, str]
    optimizer: str
    uid: str
    forks: Any
    attempts: int = field(default=0, init=False)

    @property
    def request(self) -> StageRequest:
        data: dict[str, Any] = {"inputs": ["review"]}
        for split, first, count in (("train", 0, 20), ("validation", 100, 24)):
            path = self.folder / f"{split}.jsonl"
            path.write_text("".join(f"{json.dumps(_row(n))}\n" for n in range(first, first + count)))
            data[split] = {"uri": path.as_uri()}
        return StageRequest.model_validate(
            {
                "namespace": "default",
                "name": "search",
                "uid": self.uid,
                "index": 1,
                "kind": "p",
                "stage": "optimize",
                "attempt": self.attempts,
                "spec": {
                    "program": {"inline": {"signature": "review -> sentiment", "adapter": "plain"}},
                    "metric": {"builtin": "exact-match", "field": "sentiment"},
                    "data": data,
                    "model": {"uri": "file:model", "sampling": {"maxTokens": 8}},
                    "strategy": "p",
                    "promptOptimizer": {"type": self.optimizer, **OPTIMIZERS[self.optimizer]},
                    "evaluation": {"concurrency": CONCURRENCY},
                },
                "storage": StorageRef(**self.s3),
                "endpoint": Endpoint(url=self.url, model="base"),
            }
        )

    @property
    def layout(self) -> StageLayout:
        return self.request.stage_layout

    def start(self) -> BaseProcess:
        self.attempts += 1
        path = self.folder / f"request-{self.attempts}.json"
        path.write_text(self.request.model_dump_json(by_alias=True))
        environment = self.environment | {
            "TANDEM_REQUEST_FILE": str(path),
            "TANDEM_TERMINATION_FILE": str(self.folder / "termination"),
            "TANDEM_PROGRESS_FILE": str(self.folder / "progress.json"),
            "TANDEM_CACHE": str(self.folder),
        }
        process: BaseProcess = self.forks.Process(target=attempt, args=(environment,))
        process.start()
        return process

    def end(self, process: BaseProcess) -> None:
        process.join(240)
        assert process.exitcode == EXIT_DONE, self.last_word()

    def last_word(self) -> str:
        """For a failure's message: how the last attempt that ended by itself ended."""
        path = self.folder / "termination"
        return path.read_text() if path.exists() else "no attempt has ended by itself"

    def outcome(self, store: S3Store) -> list[str]:
        """The result and the trials, without the names of this very run."""
        found = [store.get(key) for key in (self.layout.result, self.layout.trials)]
        return [(data or b"missing").decode().replace(self.uid, "UID") for data in found]


def _row(number: int) -> dict[str, str]:
    label = "good" if number % 2 else "bad"
    sentiment = "positive" if number % 2 else "negative"
    return {"id": str(number), "review": f"item {number} is {label}", "sentiment": sentiment}


@pytest.fixture(scope="module")
def forks():
    """Where attempts are forked from."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, *SEARCHES.values(), "boto3", "optuna"])
    return context


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_a_search_killed_at_random_moments_ends_as_the_undisturbed_one(
    optimizer, tmp_path, bucket, store, forks, record_cases
):
    s3, environment = bucket

    def search(name: str, server: ScriptedServer) -> Search:
        folder = tmp_path / name
        folder.mkdir()
        return Search(folder, server.url, s3, environment, optimizer, f"{optimizer}-{name}", forks)

    with Model().server as server:
        calm = search("calm", server)
        calm.end(calm.start())
        calls, wanted = server.stats()["distinct"], server.lm.answered
        assert server.stats()["repeats"] == 0

    moments = random.Random(f"{optimizer} kills")
    model = Model()
    with model.server as server:
        killed = search("killed", server)
        paid_twice = []
        for point in sorted(moments.sample(range(1, calls), KILLS)):
            before = server.stats()["repeats"]
            reached = model.reaches(point)
            process = killed.start()
            assert reached.wait(120), f"call {point} of {calls} was not made; {killed.last_word()}"
            time.sleep(moments.uniform(0, 2 * LATENCY_SECONDS))
            process.kill()
            process.join()
            paid_twice.append(server.stats()["repeats"] - before)
        before = server.stats()["repeats"]
        killed.end(killed.start())
        paid_twice.append(server.stats()["repeats"] - before)
        print(f"{calls} calls, {KILLS} kills, paid twice after each: {paid_twice[1:]}")
        assert max(paid_twice) <= BATCH
        assert server.lm.answered.keys() == wanted.keys(), "the killed search has asked other things"
    assert killed.outcome(store) == calm.outcome(store)
    record_cases("one machine: searches killed", KILLS, KILLS)
