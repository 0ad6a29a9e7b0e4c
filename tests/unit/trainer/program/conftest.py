"""Fixtures of the program tests: specs, and programs run on a scripted server."""

from __future__ import annotations

import asyncio
import sys
import textwrap
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.scripted_lm.server import ScriptedServer

from tandem_api.contract import Endpoint
from tandem_api.records import PromptSet
from tandem_api.v1alpha1 import Spec
from tandem_api.v1alpha1.spec import Sampling
from tandem_trainer.lm.client import Backoff, LMClient
from tandem_trainer.program.loading import LoadedProgram, load_program
from tandem_trainer.program.running import ProgramRun, ProgramRunner

SpecMaker = Callable[..., Spec]
ProgramMaker = Callable[..., LoadedProgram]
WithRunner = Callable[..., Any]
GREEDY = Sampling()


def build_spec(program: dict[str, Any], inputs: tuple[str, ...] = ("question",), field: str = "answer") -> Spec:
    return Spec.model_validate(
        {
            "program": program,
            "metric": {"builtin": "exact-match", "field": field},
            "data": {"train": {"uri": "file:train.jsonl"}, "inputs": list(inputs)},
            "model": {"uri": "file:model"},
        }
    )


@pytest.fixture
def inline() -> ProgramMaker:
    """An inline program; its inputs are those of the signature."""

    def make(signature: str = "question -> answer", *, adapter: str = "plain", **fields: Any) -> LoadedProgram:
        given, _, outputs = signature.partition("->")
        inputs = tuple(part.partition(":")[0].strip() for part in given.split(","))
        field = outputs.split(",")[-1].partition(":")[0].strip()
        program = {"inline": {"signature": signature, "adapter": adapter, **fields}}
        return load_program(build_spec(program, inputs, field))

    return make


@pytest.fixture
def code(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Write `user_program.py`; returns its folder. The import is forgotten after the test."""

    def write(text: str, name: str = "user_program.py") -> Path:
        (tmp_path / name).write_text("import dspy\n" + textwrap.dedent(text), encoding="utf-8")
        return tmp_path

    before_path, before_modules = list(sys.path), set(sys.modules)
    yield write
    sys.path[:] = before_path
    for name in set(sys.modules) - before_modules:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def entrypoint(code: Callable[[str], Path]) -> ProgramMaker:
    """The program that `build` (or another name) in this code returns."""

    def make(text: str, *, name: str = "build", adapter: str = "plain", **fields: Any) -> LoadedProgram:
        spec = build_spec({"entrypoint": f"user_program:{name}", "adapter": adapter, **fields})
        return load_program(spec, code_path=code(text))

    return make


@pytest.fixture
def with_runner() -> WithRunner:
    """Run `work(runner)` with a runner on this server; the client gives up after 0.2 s."""

    def run(
        server: ScriptedServer, program: LoadedProgram, work: Callable[[ProgramRunner], Awaitable[Any]], **options: Any
    ) -> Any:
        async def main() -> Any:
            client = LMClient(
                Endpoint(url=server.url, model="base"),
                concurrency=16,
                request_timeout_seconds=5,
                unavailable_timeout_seconds=0.2,
                backoff=Backoff(first_seconds=0.001, max_seconds=0.002),
                **options,
            )
            async with client, ProgramRunner(program, client, seed=3, concurrency=16) as runner:
                return await work(runner)

        return asyncio.run(main())

    return run


def run(runner: ProgramRunner, prompts: PromptSet | None = None, **changes: Any) -> Any:
    """A run of the example `e-1`, greedily and with the original prompts unless `changes` say otherwise."""
    options = {"example_id": "e-1", "inputs": {"question": "Why?"}, "sample": 0, "sampling": GREEDY, **changes}
    return runner.run(prompts or runner.program.vanilla, options.pop("example_id"), options.pop("inputs"), **options)


def run_once(with_runner: WithRunner, server: ScriptedServer, program: LoadedProgram, **options: Any) -> ProgramRun:
    result: ProgramRun = with_runner(server, program, run, **options)
    return result
