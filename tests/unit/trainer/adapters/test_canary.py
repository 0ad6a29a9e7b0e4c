"""The canary: what counts as the right adapter, and what does not, without a model."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from tests.memory_store import MemoryStore

from tandem_api.errors import DataError
from tandem_api.v1alpha1.status import Artifact
from tandem_trainer.adapters.canary import (
    CANARY_FILE,
    MIN_NATS,
    Canary,
    CanaryRow,
    CanaryUnansweredError,
    fetch_canaries,
    find_fault,
    judge,
    logprobs,
    parse,
    question,
    read_canary,
)

#: The adapter gives each token of the completions 2 nats more than the base model does.
ROWS = (
    CanaryRow(tokens=(1, 2, 3, 4), prompt_tokens=2, base=(-2.5, -2.5), adapter=(-0.5, -0.5)),
    CanaryRow(tokens=(1, 5, 6), prompt_tokens=1, base=(-3.0, -3.0), adapter=(-1.0, -1.0)),
)
CANARY = Canary(rows=ROWS)


def answer(tokens: tuple[int, ...], logprobs: list[float]) -> dict[str, Any]:
    """vLLM's, with the most likely token beside each one of the prompt."""
    told = [{str(t): {"logprob": lp, "rank": 7}, "999": {"logprob": -0.1, "rank": 1}} for t, lp in
            zip(tokens[1:], logprobs, strict=True)]  # fmt: skip
    return {"choices": [{"text": "x", "prompt_logprobs": [None, *told]}]}


@pytest.mark.parametrize(
    ("measured", "said"),
    [
        pytest.param([-0.5, -0.5, -1.0, -1.0], None, id="the adapter itself"),
        pytest.param([-0.9, -0.1, -1.4, -0.6], None, id="the adapter, with much noise"),
        pytest.param([-1.5, -1.5, -2.0, -2.0], None, id="half way: in doubt it is the adapter"),
        pytest.param([-3.0, -0.5, -1.0, -1.0], None, id="one token far off: all count together"),
        pytest.param([-2.5, -2.5, -3.0, -3.0], "with the base model", id="the base model"),
        pytest.param([-2.3, -2.8, -2.8, -3.1], "with the base model", id="the base model, with noise"),
        pytest.param([-1.6, -1.6, -2.1, -2.1], "with the base model", id="nearer to the base model"),
        pytest.param([-6.0, -6.0, -7.0, -7.0], "with other weights", id="another adapter"),
        pytest.param([-11.0] * 4, "with other weights", id="damaged weights"),
        pytest.param([-0.0, -2.5, -0.1, -3.5], "with other weights", id="another adapter with nearly the same mean"),
        pytest.param([-2.5, -2.5, -9.0, -9.0], "with other weights", id="like the base model on one row only"),
        pytest.param([float("nan")] * 4, "with other weights", id="not a number"),
    ],
)
def test_a_server_is_judged_by_how_near_it_is_to_the_adapter(measured: list[float], said: str | None) -> None:
    fault = judge(CANARY, "run-1", [measured[:2], measured[2:]])
    if said is None:
        assert fault is None
    else:
        assert fault is not None and f"answers as 'run-1' {said}" in fault


def test_the_message_tells_the_figures() -> None:
    assert judge(CANARY, "run-1", [(-2.5, -2.5), (-3.0, -3.0)]) == (
        "the server answers as 'run-1' with the base model (canary: known completions are 2.00 nats per token away "
        "from the adapter, at most 1.00 are allowed, and 0.00 from the base model)"
    )


def test_the_noise_of_arithmetic_never_refuses_the_weakest_canary_that_there_may_be() -> None:
    adapter = -1.0 + MIN_NATS
    weakest = Canary(rows=(CanaryRow(tokens=(1, 2), prompt_tokens=1, base=(-1.0,), adapter=(adapter,)),))
    for noise in (-0.2, 0.2):
        assert judge(weakest, "run-1", [[adapter + noise]]) is None


def test_a_canary_without_rows_refuses_nobody() -> None:
    assert judge(Canary(reason="they hardly differ"), "run-1", []) is None


def test_the_call_asks_for_the_tokens_scores_and_leaves_nothing_in_the_servers_cache() -> None:
    body = question("run-1", ROWS[0])
    assert (body["model"], body["prompt"], body["max_tokens"]) == ("run-1", [1, 2, 3, 4], 1)
    assert (body["temperature"], body["prompt_logprobs"]) == (0, 1)
    assert body["cache_salt"], "a wrong adapter's blocks would be found under the right one's name"


def test_the_figures_are_those_of_the_completions_own_tokens() -> None:
    assert logprobs(ROWS[0], answer((1, 2, 3, 4), [-9.0, -1.0, -2.0])) == [-1.0, -2.0]
    assert logprobs(ROWS[1], answer((1, 5, 6), [-1.0, -3.0])) == [-1.0, -3.0]


@pytest.mark.parametrize(
    "said",
    [
        {"choices": [{"text": "x"}]},
        {"choices": [{"text": "x", "prompt_logprobs": None}]},
        {"choices": [{"prompt_logprobs": [None, {"2": {"logprob": -1}}]}]},
        {"choices": [{"prompt_logprobs": [None, {}, {}, {}]}]},
        {"choices": []},
        {},
    ],
)
def test_a_server_that_does_not_tell_log_probabilities_is_not_judged(said: dict[str, Any]) -> None:
    with pytest.raises(CanaryUnansweredError):
        logprobs(ROWS[0], said)


def test_each_row_is_asked_for_under_the_adapters_name() -> None:
    asked = []

    async def complete(body: Mapping[str, Any]) -> Mapping[str, Any]:
        asked.append(body)
        tokens = tuple(body["prompt"])
        return answer(tokens, [-2.75] * (len(tokens) - 1))

    fault = asyncio.run(find_fault(CANARY, "run-1", complete))
    assert fault is not None and "the base model" in fault
    assert asked == [question("run-1", row) for row in ROWS]
    assert asyncio.run(find_fault(Canary(), "run-1", complete)) is None and len(asked) == 2


def test_a_call_that_fails_is_no_verdict() -> None:
    async def complete(body: Mapping[str, Any]) -> Mapping[str, Any]:
        raise TimeoutError

    with pytest.raises(TimeoutError):
        asyncio.run(find_fault(CANARY, "run-1", complete))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (CANARY.model_dump_json(), ""),
        (Canary(reason="they hardly differ").model_dump_json(), "they hardly differ"),
        ('{"version": 2, "rows": []}', "canary.json cannot be read"),
        (CANARY.model_dump_json().replace("-2.5", "-2.5,-2.5", 1), "canary.json cannot be read"),
        ("[1", "canary.json cannot be read"),
        (None, "there is no canary.json"),
    ],
    ids=["rows", "none", "of a later release", "more figures than tokens", "garbage", "absent"],
)
def test_what_cannot_be_used_as_a_canary_is_none_and_says_why(tmp_path: Path, content: str | None, reason: str) -> None:
    folder, store = tmp_path / "adapter", MemoryStore()
    folder.mkdir()
    (folder / "adapter_config.json").write_text("{}")
    if content is not None:
        (folder / CANARY_FILE).write_text(content)
        assert parse(content.encode()) == read_canary(folder)
    found = read_canary(folder)
    assert found.reason.startswith(reason) and bool(found.rows) == (not reason)
    assert fetch_canaries(store, store.put_folder("adapter/", folder)) == (found,)


def test_a_damaged_canary_in_the_store_is_noticed(tmp_path: Path) -> None:
    store = MemoryStore()
    (tmp_path / CANARY_FILE).write_text(CANARY.model_dump_json())
    adapter = store.put_folder("adapter/", tmp_path)
    with pytest.raises(DataError):
        fetch_canaries(store, Artifact(uri=adapter.uri, sha256="0" * 64))
    store.objects[f"adapter/{CANARY_FILE}"] = b"{}"
    with pytest.raises(DataError):
        fetch_canaries(store, adapter)


def test_each_adapter_of_a_folder_of_several_has_a_canary_of_its_own(tmp_path: Path) -> None:
    store = MemoryStore()
    for number in range(3):
        (tmp_path / f"{number}").mkdir()
        (tmp_path / f"{number}" / "adapter_config.json").write_text("{}")
        if number != 1:
            reason = f"of {number}"
            (tmp_path / f"{number}" / CANARY_FILE).write_text(Canary(reason=reason).model_dump_json())
    adapter = store.put_folder("adapter/", tmp_path).model_copy(update={"adapters": 3})
    found = fetch_canaries(store, adapter)
    assert [canary.reason for canary in found] == ["of 0", "there is no canary.json", "of 2"]
