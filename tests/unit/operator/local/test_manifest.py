"""What a manifest means on one machine, and which changes a run that has begun takes over."""

from __future__ import annotations

import typing
from pathlib import Path
from typing import Any

import pytest
from tests.unit.operator.local.children import small_run

from tandem_api.errors import ConfigurationError
from tandem_api.v1alpha1 import OptimizationRun, Spec, Status
from tandem_api.v1alpha1.run import ManifestError
from tandem_api.v1alpha1.spec import MUTABLE_FIELDS
from tandem_operator.platforms.local.manifest import (
    adopt,
    cluster_only,
    local_path,
    missing_files,
    missing_keys,
    resolve,
)


def resolved(folder: Path, **spec: Any) -> OptimizationRun:
    return resolve(small_run(folder, **spec), folder)


@pytest.mark.parametrize(
    ("uri", "want"),
    [
        ("file:data/x.jsonl", "/m/data/x.jsonl"),
        ("file:../x.jsonl", "/x.jsonl"),
        ("file:/d/x.jsonl", "/d/x.jsonl"),
        ("file:///d/x.jsonl", "/d/x.jsonl"),
        ("file://localhost/d/x.jsonl", "/d/x.jsonl"),
        ("file:///d/a%20b.jsonl", "/d/a b.jsonl"),
    ],
)
def test_file_addresses_start_at_the_manifest_unless_they_are_absolute(uri: str, want: str) -> None:
    assert local_path(uri, Path("/m")) == Path(want)


def test_two_slashes_before_a_relative_path_are_explained(tmp_path: Path) -> None:
    data = {"train": {"uri": "file://data/x.jsonl"}, "inputs": ["question"]}
    with pytest.raises(ManifestError, match=r"spec\.data\.train\.uri: .* host 'data'; write file:data/x\.jsonl"):
        resolved(tmp_path, data=data)


def test_a_resolved_run_reads_the_same_files_from_anywhere(tmp_path: Path) -> None:
    folder = tmp_path / "a folder"
    folder.mkdir()
    run = resolved(folder, model={"uri": "file:model"})
    assert run.spec.data.train.uri == (folder / "train.jsonl").as_uri()
    assert run.spec.model.uri == (folder / "model").as_uri()
    assert resolve(run, Path("/elsewhere")) == run
    assert [str(problem) for problem in missing_files(run)] == [f"spec.model.uri: {folder / 'model'} does not exist"]


def test_code_is_the_manifests_folder_where_there_are_entry_points(tmp_path: Path) -> None:
    assert resolved(tmp_path).spec.program.code is None
    program = {"entrypoint": "program:build"}
    for given, want in ((program, tmp_path), ({**program, "code": {"uri": "file:src"}}, tmp_path / "src")):
        code = resolved(tmp_path, program=given).spec.program.code
        assert code is not None
        assert code.uri == want.as_uri()
    for other in (
        {"metric": {"entrypoint": "metric:score"}},
        {"promptOptimizer": {"teacher": {"entrypoint": "program:strong"}}},
        {"strategy": [{"kind": "p", "promptOptimizer": {"type": "dspy", "class": "own:Optimizer"}}]},
    ):
        assert resolved(tmp_path, **other).spec.program.code is not None
    for other in (
        {"promptOptimizer": {"type": "dspy", "class": "SIMBA"}},
        {"strategy": "w", "promptOptimizer": {"teacher": {"entrypoint": "program:strong"}}},
    ):
        assert resolved(tmp_path, **other).spec.program.code is None


def test_every_missing_file_is_reported_with_its_field(tmp_path: Path) -> None:
    (tmp_path / "rows.txt").write_text("")
    data = {
        "train": {"uri": "file:nothing.jsonl"},
        "validation": {"uri": "file:."},
        "test": {"uri": "file:rows.txt"},
        "inputs": ["question"],
    }
    program = {"entrypoint": "program:build", "code": {"uri": "file:src"}}
    problems = missing_files(resolved(tmp_path, data=data, program=program))
    assert [(problem.path, problem.message.split(str(tmp_path))[-1].split(";")[0]) for problem in problems] == [
        ("spec.data.train.uri", "/nothing.jsonl does not exist"),
        ("spec.data.validation.uri", " is a folder"),
        ("spec.data.test.uri", "found 'rows.txt'"),
        ("spec.program.code.uri", "/src is not a folder"),
    ]


def test_what_only_a_cluster_has_is_refused(tmp_path: Path) -> None:
    run = resolved(tmp_path, model={"uri": "pvc://claim/model"})
    assert [problem.path for problem in cluster_only(run)] == ["spec.model.uri"]
    assert cluster_only(resolved(tmp_path)) == []


def test_a_missing_key_of_another_model_is_named_with_its_variable(tmp_path: Path) -> None:
    model = {"url": "https://api.example.com/v1", "model": "large", "keySecret": "writer"}
    steps = [{"kind": "p", "promptOptimizer": {"type": "gepa", "proposer": model}}, {"kind": "p"}, {"kind": "p"}]
    run = resolved(tmp_path, strategy=steps, promptOptimizer={"teacher": model})
    found = missing_keys(run, {"TANDEM_TEACHER_API_KEY": ""})
    assert [problem.path for problem in found] == [
        "spec.strategy[0].promptOptimizer.proposer.keySecret",
        "spec.promptOptimizer.teacher.keySecret",
    ]
    assert "TANDEM_PROPOSER_API_KEY is not set" in found[0].message
    assert missing_keys(run, {"TANDEM_TEACHER_API_KEY": "k", "TANDEM_PROPOSER_API_KEY": "k"}) == []
    # Settings that no step uses ask nobody.
    assert missing_keys(resolved(tmp_path, strategy="w", promptOptimizer={"teacher": model}), {}) == []


@pytest.mark.parametrize(
    ("environment", "is_missing"),
    [
        ({}, True),
        ({"MLFLOW_TRACKING_USERNAME": "me"}, True),
        ({"MLFLOW_TRACKING_USERNAME": "me", "MLFLOW_TRACKING_PASSWORD": "p"}, False),
        ({"MLFLOW_TRACKING_TOKEN": "t"}, False),
    ],
)
def test_a_missing_account_at_mlflow_is_named_with_its_variables(
    tmp_path: Path, environment: dict[str, str], is_missing: bool
) -> None:
    mlflow = {"uri": "http://mlflow", "experiment": "e"}
    named = resolved(tmp_path, tracking={"mlflow": {**mlflow, "credentialsSecret": "s"}})
    found = [problem.path for problem in missing_keys(named, environment)]
    assert found == ["spec.tracking.mlflow.credentialsSecret"] * is_missing
    assert missing_keys(resolved(tmp_path, tracking={"mlflow": mlflow}), environment) == []


@pytest.mark.parametrize("role", ["proposer", "teacher"])
def test_two_keys_of_one_role_are_refused_because_both_come_from_one_variable(tmp_path: Path, role: str) -> None:
    def step(host: str, secret: str | None) -> dict[str, Any]:
        model = {"url": f"https://{host}/v1", "model": "m", **({"keySecret": secret} if secret else {})}
        return {"kind": "p", "promptOptimizer": {"type": "mipro", role: model}}

    def found(*steps: dict[str, Any]) -> list[str]:
        return [str(problem) for problem in missing_keys(resolved(tmp_path, strategy=list(steps)), {variable: "k"})]

    variable = f"TANDEM_{role.upper()}_API_KEY"
    assert found(step("a", "one"), step("b", None), step("b", "two"), step("a", "one")) == [
        f"spec.strategy[2].promptOptimizer.{role}.keySecret: on one machine all {role}s share {variable}; found "
        f"https://b/v1 with keySecret 'two', and at spec.strategy[0].promptOptimizer.{role} https://a/v1 with "
        "keySecret 'one'; use one address and one key, or a cluster"
    ]
    assert len(found(step("a", "one"), step("b", "one"))) == 1
    assert len(found(step("a", "one"), step("a", "two"))) == 1
    assert found(step("a", "one"), step("a", "one"), step("b", None)) == []


def test_a_proposer_and_a_teacher_have_keys_of_their_own(tmp_path: Path) -> None:
    models = {role: {"url": f"https://{role}/v1", "model": "m", "keySecret": role} for role in ("proposer", "teacher")}
    run = resolved(tmp_path, promptOptimizer={"type": "mipro", **models})
    assert missing_keys(run, {"TANDEM_PROPOSER_API_KEY": "k", "TANDEM_TEACHER_API_KEY": "k"}) == []


def test_a_new_run_gets_a_uid_and_generation_1(tmp_path: Path) -> None:
    wanted = resolved(tmp_path).model_copy(update={"status": Status(phase="Succeeded")})
    run = adopt(None, wanted, "new-uid")
    assert (run.metadata.uid, run.metadata.generation, run.status) == ("new-uid", 1, Status())


def test_a_run_that_goes_on_keeps_its_uid_and_status(tmp_path: Path) -> None:
    begun = adopt(None, resolved(tmp_path), "uid").model_copy(update={"status": Status(phase="Evaluating")})
    assert adopt(begun, resolved(tmp_path), "another") == begun


def test_changes_of_how_far_a_run_goes_are_taken_over_as_a_new_generation(tmp_path: Path) -> None:
    begun = adopt(None, resolved(tmp_path), "uid")
    changes = {"suspend": True, "budget": {"tokens": 5}, "ttlSecondsAfterFinished": 60}
    run = adopt(begun, resolved(tmp_path, **changes), "")
    assert (run.metadata.uid, run.metadata.generation) == ("uid", 2)
    assert run.spec.suspend
    assert run.spec.budget.tokens == 5


def test_other_changes_are_refused_with_each_field_and_both_values(tmp_path: Path) -> None:
    begun = adopt(None, resolved(tmp_path), "uid")
    changed = resolved(tmp_path, seed=1, promptOptimizer={"candidates": 3}, model={"uri": "hf://a/b"})
    with pytest.raises(ConfigurationError) as caught:
        adopt(begun, changed, "uid")
    message = str(caught.value)
    assert "spec.seed: the run began with 0, the manifest says 1" in message
    assert "spec.promptOptimizer.candidates: the run began with 12, the manifest says 3" in message
    assert "spec.model.uri: the run began with 'hf://nobody/nothing', the manifest says 'hf://a/b'" in message
    assert "another --workdir" in message


def test_a_folder_of_another_run_is_refused(tmp_path: Path) -> None:
    begun = adopt(None, resolved(tmp_path), "uid")
    other = begun.model_copy(update={"metadata": begun.metadata.model_copy(update={"name": "other"})})
    with pytest.raises(ConfigurationError, match=r"metadata\.name: the run began with 'small'"):
        adopt(begun, other, "uid")


def test_what_a_cluster_refuses_to_change_is_refused_here_too() -> None:
    rules = typing.cast("dict[str, Any]", Spec.model_config["json_schema_extra"])["x-kubernetes-validations"]
    immutable = {rule["message"].split()[0] for rule in rules if "immutable" in rule["message"]}
    assert immutable
    assert immutable.isdisjoint(MUTABLE_FIELDS)
