"""A stage whose model is the adapters of several predictors: each call under the right name, or none at all."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.scripted_lm.server import ScriptedServer
from tests.scripted_stage import MODEL, TWO_HOPS, ScriptedStage, hopping

from tandem_api.contract import StageRequest
from tandem_api.errors import AdapterMissingError, DataError
from tandem_trainer.adapters.predictors import adapter_set, write_predictors
from tandem_trainer.stages import evaluate, traces

OWNERS = ("answer", "search")


@dataclass
class OwnAdapters(ScriptedStage):
    """The endpoint's model is two adapters."""

    claimed: int = 2
    """So many adapters the status says."""

    def request(self) -> StageRequest:
        folder = self.folder / "adapters"
        folder.mkdir(exist_ok=True)
        write_predictors(folder, OWNERS)
        adapter = adapter_set(self.store.put_folder("adapters/", folder), OWNERS)
        request = super().request()
        assert request.endpoint is not None
        several = adapter.model_copy(update={"adapters": self.claimed})
        evaluation = request.spec.evaluation.model_copy(update={"unavailable_timeout_seconds": 1})
        return request.model_copy(
            update={
                "endpoint": request.endpoint.model_copy(update={"adapter": several}),
                "spec": request.spec.model_copy(update={"evaluation": evaluation}),
            }
        )


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with ScriptedServer(hopping, models=("base", f"{MODEL}-0", f"{MODEL}-1")) as running:
        yield running


@pytest.fixture
def stage(tmp_path: Path, server: ScriptedServer) -> OwnAdapters:
    return OwnAdapters(
        tmp_path, server, traces.run, "w", "traces", program=TWO_HOPS, optimizer={"traces": {"minTraces": 1}}
    )


def test_each_predictors_calls_go_to_its_own_adapter(stage: OwnAdapters) -> None:
    stage.run()
    asked = {(request["model"], request["text"].splitlines()[-1]) for request in stage.server.requests}
    assert asked == {(f"{MODEL}-0", "Answer:"), (f"{MODEL}-1", "Query:")}


def test_what_was_scored_is_taken_over_by_a_second_attempt(stage: OwnAdapters) -> None:
    stage.run_stage, stage.stage = evaluate.run, "evaluate"
    first = stage.run()
    assert stage.calls_of(stage.run) == 0 and first.scores


def test_nothing_is_asked_where_one_of_the_adapters_is_not_served(stage: OwnAdapters) -> None:
    stage.server.lm.models.remove(f"{MODEL}-1")
    with pytest.raises(AdapterMissingError, match=f"{MODEL}-1"):
        stage.run()
    assert stage.server.requests == []


@pytest.mark.parametrize("damage", ["another number", "another content"])
def test_a_folder_that_is_not_what_was_trained_is_refused(stage: OwnAdapters, damage: str) -> None:
    if damage == "another number":
        stage.claimed = 3
    else:
        put = stage.store.put_folder

        def damaged(prefix: str, folder: Path):  # type: ignore[no-untyped-def]
            artifact = put(prefix, folder)
            index = {"version": 1, "predictors": list(reversed(OWNERS))}
            stage.store.objects["adapters/predictors.json"] = json.dumps(index).encode()
            return artifact

        stage.store.put_folder = damaged  # type: ignore[method-assign]
    with pytest.raises(DataError):
        stage.run()
    assert stage.server.requests == []
