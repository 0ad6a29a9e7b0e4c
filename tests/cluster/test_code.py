"""The program's code from a ConfigMap and from a tarball in S3, checked before anything is served."""

from __future__ import annotations

import base64
import hashlib
import io
import tarfile
from typing import Any

import pytest
from tests.cluster.harness import Namespace, reviews, until

CODE = """
import dspy


def build():
    return dspy.Predict("review -> sentiment")


def metric(example, prediction, trace=None):
    return float(example.sentiment == prediction.sentiment)
"""


def tarball() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz") as archive:
        entry = tarfile.TarInfo("sentiment.py")
        entry.size = len(CODE.encode())
        archive.addfile(entry, io.BytesIO(CODE.encode()))
    return data.getvalue()


def with_code(namespace: Namespace, name: str, code: dict[str, Any]) -> dict[str, Any]:
    program = {"entrypoint": "sentiment:build", "adapter": "plain", "code": code}
    return reviews(namespace.name, name, program=program, metric={"entrypoint": "sentiment:metric"}, strategy="p")


def accepted(namespace: Namespace, name: str) -> dict[str, Any]:
    """The Accepted condition once it is known; then the run is deleted."""

    def look() -> dict[str, Any] | None:
        found = namespace.condition(name, "Accepted")
        return found if found.get("status") in ("True", "False") else None

    found = until(90, f"the check of {name}", look)
    namespace.kubectl("delete", "optrun", name, "--wait=true", "--timeout=60s")
    return found


def test_code_from_a_configmap(namespace: Namespace) -> None:
    code = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "code", "namespace": namespace.name}}
    namespace.cluster.apply({**code, "data": {"sentiment.py": CODE}})
    namespace.cluster.apply(with_code(namespace, "from-map", {"uri": "configmap://code"}))
    assert accepted(namespace, "from-map")["status"] == "True"


@pytest.mark.parametrize("honest", [True, False], ids=["right digest", "wrong digest"])
def test_code_from_a_tarball_is_run_only_with_the_digest_that_was_meant(namespace: Namespace, honest: bool) -> None:
    data = tarball()
    put = (
        "import boto3, base64; boto3.client('s3', endpoint_url='http://s3:8333', region_name='us-east-1')"
        f".put_object(Bucket='tandem', Key='code.tar.gz', Body=base64.b64decode('{base64.b64encode(data).decode()}'))"
    )
    namespace.kubectl("exec", "s3", "--", "python3", "-c", put)
    sha256 = hashlib.sha256(data if honest else b"other").hexdigest()
    name = "from-s3" if honest else "from-s3-other"
    namespace.cluster.apply(with_code(namespace, name, {"uri": "s3://tandem/code.tar.gz", "sha256": sha256}))
    found = accepted(namespace, name)
    assert found["status"] == str(honest), found
    assert honest or f"program.code.sha256 is {sha256}" in found["message"]
