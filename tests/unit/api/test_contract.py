"""The seam between engine and worker: results fit a termination message, and a garbled one is nothing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from tests.unit.api.manifests import document

from tandem_api.contract import (
    MAX_RESULT_BYTES,
    CandidateScore,
    StageFailure,
    StageRequest,
    StageResult,
    StorageRef,
    parse_termination,
)
from tandem_api.v1alpha1.run import parse_run
from tandem_api.v1alpha1.status import Artifact, Usage

ARTIFACT = Artifact(uri="s3://bucket/prefix/", sha256="a" * 64, count=7)
FULL = StageResult(
    outcome="stopped",
    reason="BudgetExhausted",
    message="the token budget is spent",
    scores=tuple(CandidateScore(prompts=ARTIFACT, score=0.5, low=0.4, high=0.6, n=100, errors=1) for _ in range(2)),
    prompt_set=ARTIFACT,
    traces=ARTIFACT,
    adapter=ARTIFACT,
    bundle=ARTIFACT,
    usage=Usage(calls=1, prompt_tokens=2, completion_tokens=3, gpu_seconds=4),
    facts={f"fact.{n}": "x" * 20 for n in range(32)},
)


@pytest.mark.parametrize("result", [StageResult(), FULL])
def test_a_result_survives_the_termination_message(result):
    assert parse_termination(result.to_message()) == result
    assert len(FULL.to_message().encode()) <= MAX_RESULT_BYTES


def test_a_failure_survives_the_termination_message():
    failure = StageFailure(error="BadData", message="line 3: …", usage=Usage(calls=2))
    assert parse_termination(failure.model_dump_json()) == failure


def test_the_size_limit_is_exact_and_counts_bytes():
    text = "x" * (MAX_RESULT_BYTES - len(StageResult(message="x").to_message().encode()) + 1)
    assert len(StageResult(message=text).to_message().encode()) == MAX_RESULT_BYTES
    with pytest.raises(ValueError, match="a stage result of 4097 bytes; at most 4096 are allowed"):
        StageResult(message=text + "x").to_message()
    with pytest.raises(ValueError, match="4097 bytes"):
        StageResult(message=text[:-1] + "é").to_message()


@given(st.text(max_size=40))
def test_a_garbled_last_word_is_no_word(text):
    assert parse_termination(text) is None


@pytest.mark.parametrize("text", ["{}", '{"version":1}', '{"scores":[{"score":2}]}', '{"error":"x"}', "null", "[]"])
def test_json_is_a_result_only_where_it_is_one(text):
    parsed = parse_termination(text)
    # The defaults of a result make an empty object one: `done` without anything.
    assert parsed == (StageResult() if text in ("{}", '{"version":1}') else None)


def test_a_score_outside_of_0_to_1_is_refused():
    with pytest.raises(ValidationError):
        CandidateScore(score=1.5, low=0, high=1, n=1)


def test_a_request_survives_its_file_and_names_its_places():
    request = StageRequest(
        namespace="team",
        name="reviews",
        uid="u1",
        index=2,
        kind="w",
        stage="train",
        attempt=3,
        spec=parse_run(document(strategy=[{"kind": "w", "weightOptimizer": {"rank": 8}}])).spec,
        storage=StorageRef(bucket="b", prefix="runs"),
    )
    assert StageRequest.model_validate_json(request.model_dump_json()) == request
    assert request.stage_layout.result == "runs/team/reviews/u1/steps/2-w/train/result.json"


def test_a_request_of_another_release_is_refused():
    with pytest.raises(ValidationError, match="version"):
        StageRequest.model_validate({"version": 2})
