"""A bundle's program on a model server: which name it calls, in which format, and what is told when it cannot."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dspy
import pytest
from tests.scripted_lm.server import Fault, ScriptedServer
from tests.unit.trainer.report.sample import spec as some_spec

import tandem
from tandem_api.adapters import PREDICTORS, PredictorAdapters
from tandem_api.errors import AdapterMissingError, ConfigurationError, DataError, ServingError
from tandem_api.v1alpha1 import Metadata, OptimizationRun
from tandem_trainer.program.loading import load_program as load_of_spec

ADAPTER = "reviews-adapter"
PROGRAM = """
import dspy

class Two(dspy.Module):
    def __init__(self):
        super().__init__()
        self.first = dspy.Predict("review -> summary")
        self.second = dspy.Predict("summary -> sentiment")

    def forward(self, review):
        return self.second(summary=self.first(review=review).summary)
"""


@pytest.fixture
def make_bundle(tmp_path: Path) -> Callable[..., Path]:
    """A bundle's folder: `tuned` with an adapter, `owners` with one for each of these predictors."""

    def make(*, tuned: bool = True, owners: tuple[str, ...] = (), **changes: Any) -> Path:
        folder = tmp_path / "result"
        folder.mkdir()
        run = OptimizationRun(metadata=Metadata(name="reviews"), spec=some_spec(**changes))
        loaded = load_of_spec(run.spec, code_path=tmp_path)
        demo = {"review": "Bad.", "sentiment": "negative"}
        prompts = {
            name: {"instruction": f"Instruction of {name}.", "demos": [] if len(loaded.predictors) > 1 else [demo]}
            for name in loaded.predictors
        }
        document = run.to_json()
        del document["status"]
        for name, content in (
            ("run.json", document), ("prompts.json", {"predictors": prompts}), ("program.json", {}),
            ("scores.json", {"best": {"adapter": "a" * 64 if tuned else None}}),
        ):  # fmt: skip
            (folder / name).write_text(json.dumps(content))
        if tuned:
            (folder / "adapter").mkdir()
        if owners:
            index = PredictorAdapters(predictors=owners).model_dump_json()
            (folder / "adapter" / PREDICTORS).write_text(index)
        return folder

    return make


def inline(adapter: str) -> dict[str, Any]:
    signature = "review -> sentiment: Literal['positive', 'negative']"
    return {"inline": {"signature": signature, "instructions": "Original.", "adapter": adapter}}


def test_a_plain_program_calls_the_adapter_as_it_was_scored(make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle(program=inline("plain"))
    with ScriptedServer(lambda request: " positive\n\nReview: next", models=("base", ADAPTER)) as server:
        program = tandem.load_program(folder, f"{server.url}/v1")
        assert isinstance(program, dspy.Module)
        assert program(review="I liked it.").sentiment == "positive"
    (sent,) = server.requests
    assert sent["endpoint"] == "completions" and sent["model"] == ADAPTER
    assert sent["prompt"] == (
        "Instruction of self.\n\nReview: Bad.\nSentiment: negative\n\nReview: I liked it.\nSentiment:"
    )
    assert (sent["temperature"], sent["max_tokens"], sent["stop"]) == (0, 16, ["\n\n", "\nReview:"])


def test_a_chat_program_sends_messages_and_the_key(make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle()
    answer = "[[ ## sentiment ## ]]\nnegative\n\n[[ ## completed ## ]]"
    with ScriptedServer(lambda request: answer, models=(ADAPTER,), key="secret") as server:
        program = tandem.load_program(tandem.Bundle.open(folder), server.url, api_key="secret")
        assert asyncio.run(program.acall(review="No.")).sentiment == "negative"
        assert program.deepcopy()(review="No.").sentiment == "negative"
        first, second = server.requests
    assert first["endpoint"] == "chat" and first["seed"] == second["seed"], "the same inputs, the same seed"
    assert first["messages"][0]["role"] == "system"


def test_a_server_without_the_adapter_is_told_of_with_what_it_serves(make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle()
    with (
        ScriptedServer(models=("base", "other")) as server,
        pytest.raises(
            AdapterMissingError, match=r"does not serve 'reviews-adapter', but 'base', 'other'; .* as model="
        ),
    ):
        tandem.load_program(folder, server.url)


def test_the_adapter_may_have_another_name_there(make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle(program=inline("plain"))
    with ScriptedServer(lambda request: "positive", models=("base", "mine")) as server:
        tandem.load_program(folder, server.url, model="mine")(review="Good.")
        assert server.requests[0]["model"] == "mine"


def test_without_an_adapter_the_base_model_is_found_by_itself(make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle(tuned=False, program=inline("plain"))
    with ScriptedServer(lambda request: "positive", models=("org/small-7b",)) as server:
        server.lm.adapters["somebody's"] = "/adapter"
        assert tandem.load_program(folder, server.url)(review="Good.").sentiment == "positive"
        assert server.requests[0]["model"] == "org/small-7b"
    with ScriptedServer(models=("a", "b")) as server, pytest.raises(ConfigurationError, match="name it with model="):
        tandem.load_program(folder, server.url)


def test_each_predictor_calls_its_own_adapter(
    make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "two_steps.py").write_text(PROGRAM)
    folder = make_bundle(owners=("first",), program={"entrypoint": "two_steps:Two", "adapter": "plain"})
    with ScriptedServer(lambda request: "positive", models=("base",)) as server:
        server.lm.adapters[f"{ADAPTER}-0"] = "/adapter/0"
        program = tandem.load_program(folder, server.url, code=tmp_path)
        assert program(review="Good.").sentiment == "positive"
    assert [request["model"] for request in server.requests] == [f"{ADAPTER}-0", "base"]
    assert "Instruction of second." in server.requests[1]["prompt"]


def test_a_server_that_is_away_or_no_model_server_is_told_of(make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle()
    with pytest.raises(ServingError, match="does not answer at /v1/models"):
        tandem.load_program(folder, "http://127.0.0.1:9", timeout=5)
    with pytest.raises(ConfigurationError, match="endpoint: found 'file:///etc"):
        tandem.load_program(folder, "file:///etc")
    with ScriptedServer() as server, pytest.raises(ServingError, match="answers 404; is it a vLLM"):
        tandem.load_program(folder, f"{server.url}/elsewhere")


def test_a_server_that_dies_later_is_an_error_and_no_answer(make_bundle: Callable[..., Path]) -> None:
    folder = make_bundle(program=inline("plain"))
    with ScriptedServer(lambda request: Fault(status=500), models=(ADAPTER,)) as server:
        program = tandem.load_program(folder, server.url, timeout=0.5)
        with pytest.raises(ServingError, match="gave no answer"):
            program(review="Good.")


def test_another_folder_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"is no result bundle of this version: program\.json, .* is not there"):
        tandem.load_program(tmp_path, "http://127.0.0.1:9")
