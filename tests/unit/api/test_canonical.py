"""Digests and seeds depend on content alone."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem_api.canonical import canonical_json, digest, seed_from, sha256_hex
from tandem_api.records import PredictorPrompt, PromptSet, ScoredExample

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_the_canonical_form_reads_back_and_is_its_own_canonical_form(value):
    text = canonical_json(value)
    assert json.loads(text) == value
    assert canonical_json(json.loads(text)) == text


@given(st.dictionaries(st.text(), st.integers(), max_size=6))
def test_the_order_of_keys_does_not_matter(value):
    assert digest(dict(reversed(value.items()))) == digest(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_json_cannot_hold_is_refused(value):
    with pytest.raises(ValueError):
        canonical_json([value])


def test_the_digest_is_the_sha256_of_the_utf8_text():
    assert digest({"b": 1, "a": "é"}) == sha256_hex('{"a":"é","b":1}'.encode())


@given(st.lists(JSON, max_size=3))
def test_a_seed_is_small_enough_for_every_library(parts):
    assert 0 <= seed_from(*parts) < 2**31


def test_seeds_tell_their_parts_apart_and_are_equal_in_every_process():
    assert len({seed_from(0, "a"), seed_from(1, "a"), seed_from(0, "b"), seed_from("0a"), seed_from(0, "a", 0)}) == 5
    code = "from tandem_api.canonical import seed_from; print(seed_from(7, 'train', 'x'))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == seed_from(7, "train", "x")


def test_equal_prompt_sets_have_equal_digests_and_others_do_not():
    def prompt_set(instruction: str = "Answer.", **demo: object) -> PromptSet:
        return PromptSet(predictors={"main": PredictorPrompt(instruction=instruction, demos=(demo,) if demo else ())})

    assert prompt_set(a=1, b=2).sha256 == prompt_set(b=2, a=1).sha256
    assert (
        len({prompt_set().sha256, prompt_set("Reply.").sha256, prompt_set(a=1).sha256, prompt_set(a="1").sha256}) == 4
    )
    stored = PromptSet.model_validate_json(prompt_set(a=[1, {"b": None}]).model_dump_json())
    assert stored == prompt_set(a=[1, {"b": None}])
    assert stored.sha256 == prompt_set(a=[1, {"b": None}]).sha256


def test_a_ledger_line_without_defaults_reads_back():
    record = ScoredExample(key="k", candidate="c", example="1", score=0.5, prediction={"answer": "é"})
    assert ScoredExample.model_validate_json(record.model_dump_json(exclude_defaults=True)) == record
