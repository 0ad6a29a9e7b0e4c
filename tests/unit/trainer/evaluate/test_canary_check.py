"""A stage asks the server for the adapter's canary before anything else, over real HTTP."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.memory_store import MemoryStore
from tests.scripted_lm.server import Fault, Scored, ScriptedServer

from tandem_api.contract import Endpoint, Prompts
from tandem_api.errors import ServingError, WrongAdapterError
from tandem_api.v1alpha1.status import Artifact
from tandem_trainer.adapters.canary import CANARY_FILE, Canary, CanaryRow
from tandem_trainer.stages import evaluate

NAME = "run-0123456789abcdef"
ROWS = [{"q": f"question {n}", "a": "yes"} for n in range(10)]
RIGHT, BASE = -0.5, -3.0
CANARY = Canary(
    rows=tuple(CanaryRow(tokens=(1, 2, n), prompt_tokens=2, base=(BASE,), adapter=(RIGHT,)) for n in (3, 4))
)


class Script:
    """Answers questions with yes; `canary` is its answer to a call for log-probabilities."""

    def __init__(self) -> None:
        self.canary: Callable[[dict[str, Any]], str | Fault | Scored] = lambda request: Scored(RIGHT)

    def __call__(self, request: dict[str, Any]) -> str | Fault | Scored:
        return self.canary(request) if "prompt_logprobs" in request else " yes"


@pytest.fixture
def script() -> Script:
    return Script()


@pytest.fixture
def server(script: Script) -> Iterator[ScriptedServer]:
    with ScriptedServer(script, models=[NAME]) as running:
        yield running


@pytest.fixture
def run(make_spec: Any, make_context: Any, write_jsonl: Any, server: ScriptedServer, store: MemoryStore) -> Any:
    """An attempt of an evaluate stage on the adapter that is served."""

    def attempt(adapter: Artifact | None, **evaluation: Any) -> Any:
        uri = write_jsonl("d.jsonl", ROWS)
        spec = make_spec(
            uri, validation=uri, evaluation={"concurrency": 4, "unavailableTimeoutSeconds": 1, **evaluation}
        )
        endpoint = Endpoint(url=server.url, model=NAME, adapter=adapter)
        return evaluate.run(make_context(spec, endpoint=endpoint, prompts=(Prompts(label="vanilla"),)))

    return attempt


@pytest.fixture
def put(store: MemoryStore, tmp_path: Path) -> Callable[[Canary | None], Artifact]:
    """An adapter in the store."""

    def write(canary: Canary | None) -> Artifact:
        folder = tmp_path / "adapter"
        folder.mkdir()
        (folder / "adapter_config.json").write_text("{}")
        if canary is not None:
            (folder / CANARY_FILE).write_text(canary.model_dump_json())
        return store.put_folder("adapter/", folder)

    return write


def kinds(server: ScriptedServer) -> list[str]:
    return ["canary" if "prompt_logprobs" in request else "call" for request in server.requests]


def test_the_right_adapter_is_asked_first_and_the_canary_costs_the_run_nothing(
    run: Any, put: Any, server: ScriptedServer
) -> None:
    result = run(put(CANARY))
    assert kinds(server) == ["canary"] * 2 + ["call"] * len(ROWS)
    assert {request["model"] for request in server.requests} == {NAME}
    assert result.scores[0].score == 1.0
    assert result.usage.calls == len(ROWS)


@pytest.mark.parametrize(("logprob", "said"), [(BASE, "with the base model"), (-9.0, "with other weights")])
def test_a_server_with_something_else_behind_the_name_is_never_scored(
    run: Any, put: Any, script: Script, server: ScriptedServer, store: MemoryStore, logprob: float, said: str
) -> None:
    script.canary = lambda request: Scored(logprob)
    with pytest.raises(WrongAdapterError, match=f"answers as {NAME!r} {said}") as caught:
        run(put(CANARY))
    assert server.url in str(caught.value) and isinstance(caught.value, ServingError)
    assert kinds(server) == ["canary"] * 2
    assert not [key for key in store.objects if "/ledger/" in key]


def test_a_canary_call_that_fails_is_tried_again_and_is_no_verdict(
    run: Any, put: Any, script: Script, server: ScriptedServer
) -> None:
    script.canary = lambda request: Fault(status=503) if request["nth"] < 2 else Scored(RIGHT)
    assert run(put(CANARY), unavailableTimeoutSeconds=60).scores[0].score == 1.0
    assert kinds(server).count("canary") == 6


def test_a_server_that_goes_away_is_an_outage_and_no_wrong_adapter(run: Any, put: Any, script: Script) -> None:
    script.canary = lambda request: Fault(drop=True)
    with pytest.raises(ServingError, match="gave no answer for 1 s") as caught:
        run(put(CANARY))
    assert not isinstance(caught.value, WrongAdapterError)


@pytest.mark.parametrize("answer", [Fault(status=400, text="prompt_logprobs is off"), " text without them"])
def test_a_server_that_cannot_be_asked_is_taken_at_its_word_with_a_warning(
    run: Any, put: Any, script: Script, caplog: pytest.LogCaptureFixture, answer: str | Fault
) -> None:
    script.canary = lambda request: answer
    with caplog.at_level(logging.WARNING):
        assert run(put(CANARY)).scores[0].score == 1.0
    assert f"{NAME} is taken without its canary" in caplog.text


@pytest.mark.parametrize("canary", [None, Canary(reason="it hardly differs")], ids=["no file", "no rows"])
def test_an_adapter_without_a_canary_is_taken_without(
    run: Any, put: Any, server: ScriptedServer, canary: Canary | None
) -> None:
    assert run(put(canary)).scores[0].score == 1.0
    assert set(kinds(server)) == {"call"}


def test_the_base_model_needs_none(run: Any, server: ScriptedServer) -> None:
    run(None)
    assert set(kinds(server)) == {"call"}
