"""Every prompt optimizer in a whole run: killed in the middle of its step, it ends as it does undisturbed.

One manifest has a step of each. It is run twice: once nothing disturbs it; once in every step first the worker is
killed, and then the whole command. The rest of the module compares what both runs have left. Runs cost seconds.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.engine import model
from tests.engine.world import CONCURRENCY, Engine
from tests.scripted_lm.server import ScriptedServer

from tandem_api.layout import RunLayout
from tandem_api.store import S3Store

#: A batch: the calls in flight, and as many again that may wait to be written (docs/local.md).
BATCH = 2 * CONCURRENCY
LATENCY_SECONDS = 0.1
KEYS = {"TANDEM_TEACHER_API_KEY": "the-teachers-key", "TANDEM_PROPOSER_API_KEY": "the-proposers-key"}
#: The optimizers of the manifest's steps, in their order.
STEPS: dict[str, dict[str, Any]] = {
    "bootstrap-random-search with a teacher": {
        "type": "bootstrap-random-search",
        "candidates": 5,
        "maxBootstrappedDemos": 2,
        "maxLabeledDemos": 2,
        "teacher": {"model": "teacher", "keySecret": "teacher"},
    },
    "mipro": {"type": "mipro", "instructions": 3, "demoSets": 3, "trials": 6, "minibatchSize": 8},
    "mipro with another proposer": {
        "type": "mipro",
        "variant": "zero-shot",
        "instructions": 4,
        "trials": 6,
        "minibatchSize": 8,
        "proposer": {"model": "writer", "keySecret": "writer"},
    },
    "gepa": {"type": "gepa", "maxMetricCalls": 80},
    "dspy": {"type": "dspy", "class": "SIMBA", "args": {"bsize": 8, "num_candidates": 3, "max_steps": 2}},
}
TEACHER_STEP, PROPOSER_STEP = 1, 3
#: The step after the last `p` step.
FINAL_STEP = len(STEPS) + 1


@dataclass(frozen=True)
class Others:
    """The models that the steps ask beside the served one, behind APIs that want a key."""

    teacher: ScriptedServer
    proposer: ScriptedServer

    @property
    def servers(self) -> tuple[ScriptedServer, ...]:
        return self.teacher, self.proposer

    def strategy(self) -> list[dict[str, Any]]:
        """A `p` step for each of STEPS."""
        steps = copy.deepcopy(list(STEPS.values()))
        steps[TEACHER_STEP - 1]["teacher"]["url"] = f"{self.teacher.url}/v1"
        steps[PROPOSER_STEP - 1]["proposer"]["url"] = f"{self.proposer.url}/v1"
        return [{"kind": "p", "promptOptimizer": settings} for settings in steps]


@dataclass
class Story:
    """A run of all steps."""

    engine: Engine
    others: Others
    made: list[int] = field(default_factory=list)
    """The calls that each step made, those that were lost with a kill included."""
    foreign: list[dict[str, Any]] = field(default_factory=list)
    """What the run has asked the other models."""

    def __post_init__(self) -> None:
        self.engine.spec = {"strategy": self.others.strategy()}
        self.engine.environment = self.engine.environment | KEYS

    def end(self) -> None:
        """Take what this run has asked the other models away from them."""
        for server in self.others.servers:
            self.foreign += server.requests
            server.requests.clear()

    def calls(self) -> Counter[str]:
        """All calls of all models, by their bodies, once the run has ended."""
        bodies = [{name: value for name, value in request.items() if name != "nth"} for request in self.foreign]
        return self.engine.calls() + Counter(json.dumps(body, sort_keys=True) for body in bodies)

    def total(self) -> int:
        """How many calls there were so far."""
        log = self.engine.log
        own = log.read_bytes().count(b"\n") if log.exists() else 0
        return own + sum(len(server.requests) for server in self.others.servers)

    def step(self, index: int) -> dict[str, Any]:
        found: dict[str, Any] = self.engine.status()["steps"][index]
        return found

    def own_calls(self, index: int) -> int:
        """The calls that a step's result counts."""
        return sum(int(stage["usage"]["calls"]) for stage in self.step(index)["stages"])

    def trials(self, store: S3Store, index: int) -> list[dict[str, Any]]:
        """The trial table of a step, without the names of this very run."""
        metadata = yaml.safe_load((self.engine.workdir / "status.yaml").read_text())["metadata"]
        layout = RunLayout("", "default", metadata["name"], metadata["uid"]).stage(index, "p", "optimize")
        data = store.get(layout.trials)
        assert data is not None
        return [json.loads(line.replace(metadata["uid"], "UID")) for line in data.decode().splitlines()]

    def task(self, index: int, kind: str = "p", stage: str = "optimize") -> Path:
        """The folder of a stage's first attempt."""
        return self.engine.workdir / "tasks" / f"engine-{index}{kind}-{stage}-1"

    def run_and_kill(self, undisturbed: Story) -> None:
        """Drive the run to its end; of every step the worker is killed after a third of its calls, and the command
        after two thirds."""
        engine, latency = self.engine, ("--latency", f"{LATENCY_SECONDS}")
        process = engine.start(*latency)
        for index in range(1, FINAL_STEP):
            before, calls = self._total_at(self.task(index)), undisturbed.own_calls(index)
            self._wait_for_calls(before + calls // 3)
            self._kill_worker(index)
            self._wait_for_calls(before + 2 * calls // 3)
            engine.kill(process)
            engine.wait_for("the children's end", lambda: not engine.processes())
            process = engine.start(*latency)
            after = self.task(index + 1) if index + 1 < FINAL_STEP else self.task(FINAL_STEP, "f", "evaluate")
            self.made.append(self._total_at(after) - before)
        output, _ = process.communicate(timeout=120)
        assert process.returncode == 0, output + engine.logs()

    def _total_at(self, task: Path) -> int:
        """The calls until that attempt begins: its process takes longer to start than we do to count."""
        self.engine.wait_for(f"{task.name}", task.exists, timeout=120)
        return self.total()

    def _wait_for_calls(self, count: int) -> None:
        self.engine.wait_for(f"call {count}", lambda: self.total() >= count, timeout=120)

    def _kill_worker(self, index: int) -> None:
        request = str(self.task(index) / "request.json")
        found = [p for p in self.engine.processes() if p.environ().get("TANDEM_REQUEST_FILE") == request]
        assert len(found) == 1, found
        found[0].kill()


@pytest.fixture(scope="module")
def stories(
    tmp_path_factory: pytest.TempPathFactory, bucket: tuple[dict[str, str], dict[str, str]]
) -> Iterator[tuple[Story, Story]]:
    """(the run that nothing disturbed, the run that was killed in every step)."""
    s3, environment = bucket
    folder = tmp_path_factory.mktemp("optimizers")

    def foreign(name: str, key: str) -> ScriptedServer:
        return ScriptedServer(model.answer, models=(name,), latency=LATENCY_SECONDS, key=KEYS[key])

    engines = [Engine(folder / name, s3, environment) for name in ("undisturbed", "killed")]
    with (
        foreign("teacher", "TANDEM_TEACHER_API_KEY") as teacher,
        foreign("writer", "TANDEM_PROPOSER_API_KEY") as proposer,
    ):
        undisturbed = Story(engines[0], Others(teacher, proposer))
        undisturbed.engine.drive()
        undisturbed.end()
        killed = Story(engines[1], Others(teacher, proposer))
        try:
            killed.run_and_kill(undisturbed)
            killed.end()
            yield undisturbed, killed
        finally:
            for process in killed.engine.processes():
                process.kill()


each_step = pytest.mark.parametrize("index", range(1, FINAL_STEP), ids=list(STEPS))


@each_step
@pytest.mark.timeout(400)
def test_a_step_whose_worker_and_command_were_killed_ends_as_the_undisturbed_one(
    index: int, stories: tuple[Story, Story], store: S3Store
) -> None:
    undisturbed, killed = stories
    wanted, step = undisturbed.step(index), killed.step(index)
    assert step["state"] == "Succeeded" and step["stages"][0]["failures"] == 1
    for name in ("score", "errors", "tokens"):
        assert step[name] == wanted[name], name
    for name in ("facts", "usage"):
        assert step["stages"][0][name] == wanted["stages"][0][name], name
    assert (step.get("promptSet") or {}).get("sha256") == (wanted.get("promptSet") or {}).get("sha256")
    trials = killed.trials(store, index)
    assert trials == undisturbed.trials(store, index) and len(trials) > 1


@each_step
def test_a_kill_pays_for_at_most_a_batch_twice(index: int, stories: tuple[Story, Story]) -> None:
    undisturbed, killed = stories
    repeated = killed.made[index - 1] - undisturbed.own_calls(index)
    print(f"{undisturbed.own_calls(index)} calls, of which {repeated} were made twice")
    # Two kills. One step asks two models at the same time: summaries are written while demos are bootstrapped.
    models = 2 if index == PROPOSER_STEP else 1
    assert 0 <= repeated <= 2 * BATCH * models


def test_both_runs_ask_the_same_and_return_the_same_program(stories: tuple[Story, Story]) -> None:
    undisturbed, killed = stories
    assert killed.calls().keys() == undisturbed.calls().keys()
    wanted, status = undisturbed.engine.outcome(), killed.engine.outcome()
    for name in ("baseline", "best", "test", "usage"):
        assert status[name] == wanted[name], name
    for name in ("program.json", "prompts.json"):
        results = [(story.engine.workdir / "result" / name).read_text() for story in stories]
        assert results[0] == results[1], name
    assert float(status["best"]["score"]) > float(status["baseline"]["score"])


def test_other_models_are_asked_by_their_steps_alone_and_their_keys_are_written_nowhere(
    stories: tuple[Story, Story],
) -> None:
    undisturbed, _ = stories
    asked = Counter(request["model"] for request in undisturbed.foreign)
    assert asked["teacher"] > 0 and asked["writer"] > 0
    served = Counter(json.loads(body)["model"] for body in undisturbed.engine.calls().elements())
    assert set(served) == {"base"}
    counted = {index: undisturbed.own_calls(index) for index in range(FINAL_STEP + 1)}
    assert sum(counted.values()) == served.total() + asked.total()
    workdir = undisturbed.engine.workdir
    for path in (path for path in workdir.rglob("*") if path.is_file()):
        text = path.read_bytes()
        assert not any(key.encode() in text for key in KEYS.values()), path


#: Strategies beside those of the other modules, and what their steps are.
STRATEGIES = {
    "vanilla": "",
    "p -> p": "pp",
    "w -> w": "ww",
    "w -> p": "wp",
    "(p -> w){2}": "pwpw",
}


@pytest.mark.timeout(400)
def test_one_manifest_runs_every_strategy(tmp_path: Path, bucket: tuple[dict[str, str], dict[str, str]]) -> None:
    s3, environment = bucket
    engines = {text: Engine(tmp_path / f"{n}", s3, environment) for n, text in enumerate(STRATEGIES)}
    manifests = set()
    for text, engine in engines.items():
        engine.spec = {"strategy": text}
        manifest = engine.write().read_text()
        manifests.add(manifest.replace(yaml.safe_dump({"strategy": text}).strip(), "strategy: ..."))
    assert len(manifests) == 1, "only the strategy differs"
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(Engine.drive, engines.values()))
    for text, engine in engines.items():
        status = engine.status()
        kinds = ["baseline", *STRATEGIES[text], "final"]
        assert [(step["kind"], step["state"]) for step in status["steps"]] == [(k, "Succeeded") for k in kinds], text
        assert status["test"]["n"] == 20 and (engine.workdir / "result" / "program.json").is_file()
        is_better = float(status["best"]["score"]) > float(status["baseline"]["score"])
        assert is_better == (text != "vanilla"), text
        assert ("adapter" in status["best"]) <= ("w" in text)
        _assert_that_steps_build_on_each_other(engine, text)


def _assert_that_steps_build_on_each_other(engine: Engine, text: str) -> None:
    """Every call of a step names the model that the steps before it have made."""
    adapters = [step["adapter"]["sha256"] for step in engine.status()["steps"] if step["kind"] == "w"]
    assert len(set(adapters)) == STRATEGIES[text].count("w")
    served = [json.loads(line)["model"] for line in engine.log.read_text().splitlines()]
    order = list(dict.fromkeys(served))
    assert order == ["base", *(f"engine-{sha256[:16]}" for sha256 in adapters)], text
