"""Fixtures of the evaluation tests: a spec to vary, and data files."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from tests.memory_store import MemoryStore

from tandem_api.contract import Endpoint, StageRequest, StorageRef
from tandem_api.v1alpha1 import Spec
from tandem_trainer.context import StageContext
from tandem_trainer.progress import ProgressReporter

SpecMaker = Callable[..., Spec]


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[[str, Iterable[dict[str, Any]]], str]:
    """Write rows as JSON Lines; returns the file's URI."""

    def write(name: str, rows: Iterable[dict[str, Any]]) -> str:
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        return path.as_uri()

    return write


@pytest.fixture
def make_spec(tmp_path: Path) -> SpecMaker:
    """A spec whose data may be set by split: a URI, or the split's whole mapping."""

    def make(
        train: Any = "file:train.jsonl",
        validation: Any = None,
        test: Any = None,
        *,
        inputs: tuple[str, ...] = ("q",),
        holdout: dict[str, str] | None = None,
        metric: dict[str, str] | None = None,
        **fields: Any,
    ) -> Spec:
        given = {"train": train, "validation": validation, "test": test}
        data: dict[str, Any] = {
            name: {"uri": split} if isinstance(split, str) else split for name, split in given.items() if split
        }
        data["inputs"] = list(inputs)
        if holdout is not None:
            data["holdout"] = holdout
        return Spec.model_validate(
            {
                "program": {"inline": {"signature": f"{', '.join(inputs)} -> a", "adapter": "plain"}},
                "metric": metric or {"builtin": "exact-match", "field": "a"},
                "model": {"uri": "file:model"},
                "data": data,
                **fields,
            }
        )

    return make


ContextMaker = Callable[..., StageContext]


@pytest.fixture
def make_context(tmp_path: Path, store: MemoryStore) -> ContextMaker:
    """The context of one attempt of a stage, over the test's store."""

    def make(
        spec: Spec, *, stage: str = "evaluate", kind: str = "baseline", url: str = "", **fields: Any
    ) -> StageContext:
        request = StageRequest.model_validate(
            {
                "namespace": "default",
                "name": "reviews",
                "uid": "u1",
                "index": 0,
                "kind": "baseline",
                "stage": stage,
                "attempt": 1,
                "spec": spec,
                "storage": StorageRef(bucket="bucket"),
                "endpoint": Endpoint(url=url, model="base") if url else None,
                **fields,
            }
        )
        return StageContext(
            request=request,
            store=store,
            progress=ProgressReporter(tmp_path / "progress.json"),
            cache=tmp_path / "cache",
        )

    return make
