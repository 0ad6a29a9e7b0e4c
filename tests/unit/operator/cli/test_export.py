"""`tandem export`: from a run on a cluster, a run's folder and a bundle, to a manifest and nothing else on stdout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.memory_store import MemoryStore
from tests.unit.operator.cli.cluster_case import at_stage, ended, manifest, tandem, with_status
from tests.unit.operator.cli.fake_cluster import FakeCluster

from tandem_api.canonical import canonical_json, sha256_hex
from tandem_api.store.s3 import file_sha256
from tandem_operator.cli import export as module


def status(adapter: bool = True) -> dict[str, Any]:
    found = ended()
    if adapter:
        found["best"]["adapter"] = {"uri": "s3://bucket/x/adapter/", "sha256": "3f" * 32}
    return found


def documents(*arguments: object) -> list[dict[str, Any]]:
    result = tandem("export", *arguments)
    assert result.exit_code == 0, result.stderr
    return list(yaml.safe_load_all(result.stdout))


def bundle(folder: Path, **run: str) -> str:
    """A result bundle; its adapter's digest."""
    (folder / "adapter").mkdir(parents=True)
    sums = {}
    for name, text in {"adapter_config.json": '{"r": 8}', "adapter_model.safetensors": "weights"}.items():
        (folder / "adapter" / name).write_text(text)
        sums[name] = file_sha256(folder / "adapter" / name)
    sha256 = sha256_hex(canonical_json(sums).encode())
    facts = {"namespace": "team", "name": "small", "uid": "u1", "model": "hf://org/name", **run}
    scores = {"run": facts, "best": {"score": 0.5, "adapter": sha256}, "test": {"score": 0.875}}
    (folder / "scores.json").write_text(json.dumps(scores))
    return sha256


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> MemoryStore:
    made = MemoryStore("models")
    monkeypatch.setattr(module, "S3Store", lambda bucket, endpoint, region: made)
    return made


def test_a_run_on_a_cluster(cluster: FakeCluster) -> None:
    serving = {"image": "registry/mine:1", "extraArgs": ["--max-model-len=4096"]}
    cluster.put(with_status(manifest(serving=serving), status()))
    deployment, service = documents("small", "--replicas", 2)
    assert (deployment["kind"], service["kind"]) == ("Deployment", "Service")
    assert deployment["spec"]["replicas"] == 2
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry/mine:1"
    assert "--max-model-len=4096" in container["command"]
    assert "s3://bucket/x/adapter/" in container["command"]
    (inference,) = documents("small", "--format", "kserve", "--image", "other:2", "--into", "prod", "-n", "default")
    assert inference["metadata"]["namespace"] == "prod"
    assert inference["spec"]["predictor"]["containers"][0]["image"] == "other:2"


def test_without_an_adapter_the_base_model_is_served(cluster: FakeCluster) -> None:
    cluster.put(with_status(manifest(), status(adapter=False)))
    assert "base" in documents("small")[0]["spec"]["template"]["spec"]["containers"][0]["command"]


@pytest.mark.parametrize("found", [at_stage("optimize"), ended("False", "TooManyErrors"), {}], ids=str)
def test_a_run_without_a_result_is_refused(cluster: FakeCluster, found: dict[str, Any]) -> None:
    cluster.put(with_status(manifest(), found))
    result = tandem("export", "small")
    assert result.exit_code == 2
    assert "only one that has succeeded" in result.stderr
    assert result.stdout == ""


def test_a_bundles_adapter_is_brought_to_a_bucket(tmp_path: Path, store: MemoryStore) -> None:
    sha256 = bundle(tmp_path / "result")
    found, _ = documents("result", "--upload", "s3://models/team/", "--credentials-secret", "key")
    command = found["spec"]["template"]["spec"]["containers"][0]["command"]
    uri = f"s3://models/team/small-{sha256[:16]}/"
    assert command[command.index("--adapter-uri") + 1] == uri
    assert command[command.index("--adapter-sha256") + 1] == sha256
    assert store.get(f"team/small-{sha256[:16]}/adapter_model.safetensors") == b"weights"
    assert found["metadata"]["annotations"]["tandem.dev/score"] == "0.8750"


def test_an_adapter_that_has_changed_is_not_exported(tmp_path: Path, store: MemoryStore) -> None:
    bundle(tmp_path / "result")
    (tmp_path / "result/adapter/adapter_model.safetensors").write_text("others")
    result = tandem("export", "result", "--upload", "s3://models/")
    assert result.exit_code == 2
    assert "is not the run's adapter" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((), "--upload s3://BUCKET/PREFIX/"),
        (("--upload", "/tmp"), "--upload: found '/tmp'"),
        (("--upload", "s3://models/", "--gpus", "1", "--name", "A"), "--name: found 'A'"),
    ],
)
def test_what_a_bundle_lacks_is_said(tmp_path: Path, store: MemoryStore, arguments: tuple[str, ...], said: str) -> None:
    bundle(tmp_path / "result")
    result = tandem("export", "result", *arguments)
    assert result.exit_code == 2
    assert said in result.stderr


def test_a_bundle_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "result").mkdir()
    (tmp_path / "result/scores.json").write_text("[]")
    result = tandem("export", "result")
    assert result.exit_code == 2
    assert "scores.json is not that of a result bundle" in result.stderr


def test_a_name_that_is_nowhere_tells_all_places(tmp_path: Path) -> None:
    result = tandem("export", "nowhere")
    assert result.exit_code == 2
    assert "there is no run 'nowhere'" in result.stderr
    assert "On a cluster: there is no kubeconfig" in result.stderr
    assert "nowhere/scores.json does not exist, either" in tandem("export", "x/nowhere").stderr
