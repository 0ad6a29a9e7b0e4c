"""A manifest becomes a run, or everything that is wrong is told first; cancel, suspend and resume."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.unit.operator.cli.cluster_case import at_stage, ended, manifest, tandem, with_status
from tests.unit.operator.cli.fake_cluster import LIST, FakeCluster, status_answer, write_kubeconfig


def write(resource: dict[str, Any]) -> Path:
    path = Path("run.yaml")
    path.write_text(yaml.safe_dump(resource, sort_keys=False))
    return path


def test_what_the_user_wrote_is_sent_as_it_is(cluster: FakeCluster) -> None:
    written = manifest()
    written["metadata"] |= {"labels": {"team": "a"}, "uid": "old", "resourceVersion": "1"}
    result = tandem("submit", "-f", write({**written, "status": {"phase": "Pending"}}))
    assert result.exit_code == 0
    assert result.stdout == ("small is submitted to namespace default\nto watch it: tandem watch small -n default\n")
    [(path, query, body)] = cluster.asked("POST")
    assert path == LIST
    assert query["fieldValidation"] == "Strict"
    assert body == {
        **manifest(),
        "metadata": {"name": "small", "namespace": "default", "labels": {"team": "a"}},
    }


@pytest.mark.parametrize(
    ("in_manifest", "in_context", "option", "want"),
    [
        (None, None, None, "default"),
        (None, "context", None, "context"),
        ("written", "context", None, "written"),
        (None, "context", "option", "option"),
        ("written", "context", "written", "written"),
    ],
)
def test_the_namespace_is_the_options_the_manifests_or_the_contexts(
    cluster: FakeCluster, tmp_path: Path, in_manifest: str | None, in_context: str | None, option: str | None, want: str
) -> None:
    server = yaml.safe_load((tmp_path / "kubeconfig").read_text())["clusters"][0]["cluster"]["server"]
    config = write_kubeconfig(tmp_path / "other", server, in_context)
    written = manifest()
    if in_manifest:
        written["metadata"]["namespace"] = in_manifest
    options = ["-n", option] if option else []
    assert tandem("submit", "-f", write(written), "--kubeconfig", config, *options).exit_code == 0
    assert list(cluster.runs) == [(want, "small")]


def test_two_namespaces_are_not_guessed_between(cluster: FakeCluster) -> None:
    written = manifest()
    written["metadata"]["namespace"] = "a"
    result = tandem("submit", "-f", write(written), "-n", "b")
    assert result.exit_code == 2
    assert "run.yaml names the namespace 'a' in metadata.namespace, and -n names 'b'" in result.stderr


def test_the_manifest_is_checked_with_lines_before_the_cluster_is_asked(cluster: FakeCluster) -> None:
    path = write(manifest(storage=None, data={"train": {"uri": "file:rows/train.jsonl"}, "inputs": ["question"]}))
    path.write_text(path.read_text().replace("  storage: null\n", ""))
    for command in (("submit", "-f", path), ("run", "-f", path), ("validate", "--cluster", "-f", path)):
        result = tandem(*command)
        assert result.exit_code == 2
        line = path.read_text().splitlines().index("      uri: file:rows/train.jsonl") + 1
        assert f"run.yaml:{line}: spec.data.train.uri: found 'file:rows/train.jsonl'" in result.stderr
        assert "kubectl create configmap NAME --from-file=train.jsonl=rows/train.jsonl" in result.stderr
        assert "write configmap://NAME/train.jsonl, or upload it and write s3://..." in result.stderr
        assert "spec.storage: required on a cluster" in result.stderr
    assert cluster.requests == []


def test_a_manifest_for_a_cluster_needs_no_files_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    path = write(manifest(data={"train": {"uri": "file:///data/train.jsonl"}, "inputs": ["question"]}))
    result = tandem("validate", "-f", path, "--cluster")
    assert result.exit_code == 0
    assert result.stdout == "run.yaml is valid on a cluster: small, p -> w\n"
    assert tandem("validate", "-f", path).exit_code == 2
    path.write_text("apiVersion: tandem.dev/v1alpha1\nkind: OptimizationRun\nmetadata: {name: small}\nspec: {}\n")
    assert "run.yaml:4: spec.model: required" in tandem("validate", "-f", path, "--cluster").stderr


def test_the_same_run_again_is_no_error_and_is_watched(cluster: FakeCluster) -> None:
    path = write(manifest())
    # The API server has filled in defaults; the text differs, the spec does not.
    cluster.put(with_status(manifest(seed=0, attempts=3), ended()))
    result = tandem("submit", "-f", path)
    assert result.exit_code == 0
    assert "small exists already, with the same spec, in namespace default" in result.stdout
    result = tandem("run", "-f", path)
    assert result.exit_code == 0
    assert "outcome     Succeeded: Completed: that is why" in result.stdout


def test_another_run_of_that_name_is_not_touched(cluster: FakeCluster) -> None:
    cluster.put(manifest(seed=1, strategy="p"))
    result = tandem("submit", "-f", write(manifest()))
    assert result.exit_code == 2
    assert "exists already in namespace default, and its spec differs in spec.seed, spec.strategy; " in result.stderr
    assert "tandem cancel small -n default first, or choose another name" in result.stderr


def test_commands_to_copy_name_the_same_cluster(cluster: FakeCluster, tmp_path: Path) -> None:
    given = ("-n", "team", "--context", "test", "--kubeconfig", tmp_path / "kubeconfig")
    here = " ".join(map(str, given))
    write(manifest(budget={"tokens": 9}))
    assert f"tandem watch small {here}\n" in tandem("submit", "-f", "run.yaml", *given).stdout
    write(manifest(budget={"tokens": 5}))
    again = tandem("submit", "-f", "run.yaml", *given).stderr
    assert f"kubectl apply -f run.yaml {here} changes that" in again
    assert f"tandem cancel small {here} first" in again
    assert f"tandem resume small {here}\n" in tandem("suspend", "small", *given).stdout
    assert f"tandem watch small {here}\n" in tandem("resume", "small", *given).stdout


def test_a_change_that_is_allowed_is_pointed_to_kubectl(cluster: FakeCluster) -> None:
    cluster.put(manifest(budget={"tokens": 5}))
    result = tandem("submit", "-f", write(manifest(budget={"tokens": 9})))
    assert result.exit_code == 2
    assert "differs in spec.budget (kubectl apply -f run.yaml -n default changes that); tandem cancel" in result.stderr


def test_a_run_that_is_being_deleted_is_waited_for(cluster: FakeCluster) -> None:
    going = manifest()
    going["metadata"]["deletionTimestamp"] = "2026-11-21T12:00:00Z"
    cluster.put(going)
    result = tandem("submit", "-f", write(manifest()))
    assert result.exit_code == 2
    assert "is being deleted; try again when it is gone" in result.stderr


def test_the_api_servers_objections_are_one_a_line(cluster: FakeCluster) -> None:
    causes = [
        {"reason": "FieldValueInvalid", "field": "spec.data", "message": "Invalid value: too bad"},
        {"reason": "FieldValueRequired", "field": "spec.model", "message": "Required value"},
    ]
    cluster.refuse("POST", LIST, status_answer(422, "Invalid", "small is invalid: [...]", causes=causes))
    result = tandem("submit", "-f", write(manifest()))
    assert result.exit_code == 2
    assert result.stderr.splitlines() == [
        "error: the API server refuses to create small:",
        "  spec.data: Invalid value: too bad",
        "  spec.model: Required value",
    ]
    strict = 'strict decoding error: unknown field "spec.workers"'
    cluster.refuse("POST", LIST, status_answer(400, "BadRequest", strict))
    assert f"  {strict}" in tandem("submit", "-f", "run.yaml").stderr.splitlines()


def test_a_missing_namespace_is_told(cluster: FakeCluster) -> None:
    path = LIST.replace("default", "nowhere")
    answer = status_answer(404, "NotFound", 'namespaces "nowhere" not found', name="nowhere", kind="namespaces")
    cluster.refuse("POST", path, answer)
    result = tandem("submit", "-f", write(manifest()), "-n", "nowhere")
    assert result.exit_code == 2
    assert "there is no namespace 'nowhere': kubectl create namespace nowhere" in result.stderr


def test_options_of_the_other_place_are_refused() -> None:
    write(manifest())
    result = tandem("run", "-f", "run.yaml", "--workdir", "x")
    assert result.exit_code == 2
    assert "--workdir belongs to runs on this machine: drop --workdir or add --local" in result.stderr
    result = tandem("run", "-f", "run.yaml", "--local", "-n", "x")
    assert result.exit_code == 2
    assert "--namespace belongs to runs on a cluster: drop --namespace or --local" in result.stderr


@pytest.mark.parametrize(
    ("policy", "told", "fate"),
    [
        ("Retain", "is deleted", "Its objects in s3://bucket/team/default/small/uid-small/ are kept"),
        ("Delete", "is being deleted", "Its objects in s3://bucket/team/default/small/uid-small/ are removed with it"),
    ],
)
def test_cancel_asks_and_says_what_becomes_of_the_objects(
    cluster: FakeCluster, policy: str, told: str, fate: str
) -> None:
    storage = {"s3": {"bucket": "bucket", "prefix": "team"}, "deletionPolicy": policy}
    cluster.put(with_status(manifest(storage=storage), at_stage("optimize")))
    for answer in ("n\n", ""):
        result = tandem("cancel", "small", answer=answer)
        assert result.exit_code == 1
        assert f"small in namespace default is at Working. {fate}" in result.stderr
        assert "nothing was deleted (--yes deletes without a question)" in result.stderr
    assert cluster.runs
    result = tandem("cancel", "small", answer="y\n")
    assert result.exit_code == 0
    assert f"small in namespace default {told}. {fate}" in result.stdout
    assert not cluster.runs


def test_cancel_can_go_without_a_question(cluster: FakeCluster) -> None:
    cluster.put(manifest())
    assert tandem("cancel", "small", "--yes").exit_code == 0
    assert cluster.asked("DELETE")[0][2]["propagationPolicy"] == "Background"
    going = manifest()
    going["metadata"]["deletionTimestamp"] = "2026-11-21T12:00:00Z"
    cluster.put(going)
    assert "is being deleted already" in tandem("cancel", "small", "--yes").stdout
    assert len(cluster.asked("DELETE")) == 1


@pytest.mark.parametrize("spec", [{"strategy": "p -> x"}, {"novelty": True}])
def test_a_run_that_cannot_be_read_is_held_and_ended_all_the_same(cluster: FakeCluster, spec: dict[str, Any]) -> None:
    """The definition admits any strategy; the operator refuses it."""
    cluster.put(manifest(**spec))
    assert "to go on: tandem resume small" in tandem("suspend", "small").stdout
    assert "goes on" in tandem("resume", "small").stdout
    result = tandem("cancel", "small", answer="y\n")
    assert result.exit_code == 0
    assert "small in namespace default is at Pending. Its objects in s3://bucket/team/default/" in result.stderr
    assert not cluster.runs


def test_suspend_and_resume_change_one_field_once(cluster: FakeCluster) -> None:
    cluster.put(with_status(manifest(), at_stage("optimize")))
    result = tandem("suspend", "small")
    assert result.exit_code == 0
    assert "to go on: tandem resume small -n default" in result.stdout
    assert "is suspended already" in tandem("suspend", "small").stdout
    assert "goes on" in tandem("resume", "small").stdout
    assert "is not suspended" in tandem("resume", "small").stdout
    assert [body for _, _, body in cluster.asked("PATCH")] == [
        {"spec": {"suspend": True}},
        {"spec": {"suspend": False}},
    ]
    cluster.put(with_status(manifest(), ended()))
    result = tandem("suspend", "small")
    assert result.exit_code == 1
    assert "small has ended (Succeeded); there is nothing to suspend" in result.stdout
