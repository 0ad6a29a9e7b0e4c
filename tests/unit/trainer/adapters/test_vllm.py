"""How vLLM's answers are read."""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from tests.unit.trainer.adapters.fake_vllm import metrics

from tandem_trainer.adapters.plan import Activity, Observed
from tandem_trainer.adapters.vllm import VLLM, activity, adapter_roots


def test_only_adapters_have_a_parent() -> None:
    models = """{"object": "list", "data": [
        {"id": "base", "root": "/models/base", "parent": null, "max_model_len": 128},
        {"id": "run-1", "root": "/tandem/adapters/ff", "parent": "base"}]}"""
    assert adapter_roots(models) == {"run-1": "/tandem/adapters/ff"}


@pytest.mark.parametrize("models", ["", "[]", "{}", '{"data": 1}', '{"data": [{"parent": "base"}]}', '{"data": ["x"]}'])
def test_what_is_no_list_of_models_is_none(models: str) -> None:
    assert adapter_roots(models) is None


def test_the_newest_sample_tells_whose_calls_there_are() -> None:
    assert activity(metrics()) == Activity(0, frozenset())
    assert activity(metrics(("a", "b"), ("b", "c"))) == Activity(4, frozenset({"a", "b", "c"}))


def test_with_several_engines_every_adapter_may_be_meant() -> None:
    found = activity(metrics(("a",), engines=2))
    assert found is not None and found.engines == 2 and found.is_busy("b")
    found = activity(metrics((), engines=2))
    assert found is not None and not found.is_busy("a")


@pytest.mark.parametrize("text", ["", "# nothing\n", "<html>not metrics</html>\n", "vllm:num_requests_running 1.0\n"])
def test_metrics_that_do_not_tell_are_none(text: str) -> None:
    assert activity(text) is None


def observe(**answers: Any) -> Observed:
    """What is seen of a server whose paths answer so: (status, JSON)."""

    async def answer(request: web.Request) -> web.Response:
        status, body = answers.get(request.path.rpartition("/")[2], (404, {"detail": "Not Found"}))
        return web.json_response(body, status=status)

    async def look() -> Observed:
        app = web.Application()
        app.add_routes([web.get("/{path:.*}", answer)])
        runner = web.AppRunner(app)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        try:
            async with aiohttp.ClientSession() as session:
                return await VLLM(session, f"http://127.0.0.1:{runner.addresses[0][1]}/").observe()
        finally:
            await runner.cleanup()

    return asyncio.run(look())


WELL: dict[str, Any] = {"health": (200, None), "models": (200, {"data": []})}


def test_a_server_that_is_well_is_up() -> None:
    assert observe(**WELL) == Observed(up=True)
    assert observe(**WELL, is_sleeping=(200, {"is_sleeping": False}), is_paused=(200, {"is_paused": False})).up


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        ({"health": (503, None)}, "GET /health answers 503"),
        ({"models": (401, {"error": {"message": "Unauthorized"}})}, "GET /v1/models answers 401: Unauthorized"),
        ({"models": (200, {})}, "no list of models"),
        ({"is_sleeping": (200, {"is_sleeping": True})}, "GET /is_sleeping"),
        ({"is_paused": (200, {"is_paused": True})}, "GET /is_paused"),
    ],
)
def test_health_alone_is_not_enough(answers: dict[str, Any], said: str) -> None:
    found = observe(**{**WELL, **answers})
    assert not found.up and said in found.message


def test_where_nobody_listens_nothing_was_done() -> None:
    async def load() -> tuple[Any, Any]:
        async with aiohttp.ClientSession() as session:
            nobody = VLLM(session, "http://127.0.0.1:9")
            return await nobody.load("a", "/a"), await nobody.activity()

    answer, found = asyncio.run(load())
    assert (answer.status, answer.sent, found) == (None, False, None)
