"""The file between the operator and the sidecar."""

from __future__ import annotations

import json
from typing import Any

import pytest
from pydantic import ValidationError

from tandem_api.adapters import MAX_ADAPTERS, DesiredAdapter, DesiredAdapters

SHA = "3f" * 32
GOOD: dict[str, Any] = {"name": "reviews-3f3f", "uri": "s3://bucket/runs/adapter/", "sha256": SHA}


def test_the_file_is_what_both_sides_write_and_read() -> None:
    desired = DesiredAdapters(adapters=(DesiredAdapter(**GOOD),))
    assert json.loads(desired.text) == {"version": 1, "adapters": [GOOD]}
    assert DesiredAdapters.model_validate_json(desired.text) == desired
    assert DesiredAdapters.model_validate_json(desired.text).digest == desired.digest != DesiredAdapters().digest
    assert desired.adapters[0].artifact.uri == GOOD["uri"]


@pytest.mark.parametrize(
    "change",
    [
        {"name": ""},
        {"name": "a,b"},
        {"name": "../x"},
        {"uri": "file:/x/"},
        {"uri": "s3://bucket/without-slash"},
        {"sha256": "3F" * 32},
        {"path": "/x"},
    ],
)
def test_what_vllm_or_the_store_would_misread_is_refused(change: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        DesiredAdapter(**{**GOOD, **change})


def test_names_are_unique_and_not_too_many() -> None:
    with pytest.raises(ValidationError, match="more than once"):
        DesiredAdapters(adapters=(DesiredAdapter(**GOOD), DesiredAdapter(**GOOD)))
    many = tuple(DesiredAdapter(**{**GOOD, "name": f"a{number}"}) for number in range(MAX_ADAPTERS + 1))
    with pytest.raises(ValidationError, match="at most 8"):
        DesiredAdapters(adapters=many)
