"""Reading a manifest: every problem at once, each with its path, what was found and what is allowed."""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from tests.unit.api.manifests import BASE, document

from tandem_api.errors import EXIT_CONFIGURATION
from tandem_api.v1alpha1 import Spec
from tandem_api.v1alpha1.base import Fraction, PositiveDecimal, decimal
from tandem_api.v1alpha1.run import ManifestError, forbidden_changes, parse_run
from tandem_api.v1alpha1.spec import MUTABLE_FIELDS


def problems(manifest: object) -> dict[str, str]:
    with pytest.raises(ManifestError) as caught:
        parse_run(manifest)
    return {problem.path: problem.message for problem in caught.value.problems}


def test_the_smallest_manifest_has_defaults_for_a_first_run():
    spec = parse_run(document()).spec
    assert spec.strategy_text == "p -> w -> p"
    assert [step.kind for step in spec.steps] == ["p", "w", "p"]
    assert spec.program.adapter_name == "chat"
    assert (spec.data.holdout.fraction, spec.model.sampling.temperature, spec.suspend) == ("0.2", "0", False)


def test_all_problems_are_told_at_once_with_their_paths():
    manifest = document(strategy="p -> q", model=None, seed=-1)
    manifest["spec"]["promptOptimizer"] = {"candidate": 3, "candidates": 0}
    manifest["kind"] = "Run"
    found = problems(manifest)
    assert found["kind"] == "found 'Run'; allowed: 'OptimizationRun'"
    assert found["spec.model"] == "required, but not given"
    assert found["spec.seed"].startswith("found -1; input should be greater than or equal to 0")
    assert "unexpected 'q' at character 6" in found["spec.strategy"]
    assert found["spec.promptOptimizer.candidates"].startswith("found 0;")
    assert "did you mean candidates?" in found["spec.promptOptimizer.candidate"]
    assert len(found) == 6


@pytest.mark.parametrize(
    ("spec", "path", "message"),
    [
        ({"modle": {}}, "spec.modle", "unknown field; did you mean model? allowed: attempts, budget"),
        ({"strategy": ""}, "spec.strategy", "the strategy is empty"),
        ({"strategy": []}, "spec.strategy", "the list has 0 steps; allowed: 1 to 32"),
        ({"strategy": 3}, "spec.strategy", "found 3; allowed: a text such as 'p -> w -> p', or a list of steps"),
        ({"strategy": [{"kind": "x"}]}, "spec.strategy[0].kind", "found 'x'; input should be 'p' or 'w'"),
        (
            {"strategy": [{"kind": "p", "weightOptimizer": {}}]},
            "spec.strategy[0]",
            "a p step takes promptOptimizer, not weightOptimizer",
        ),
        (
            {"strategy": [{"kind": "w", "promptOptimizer": {}}]},
            "spec.strategy[0]",
            "a w step takes weightOptimizer, not promptOptimizer",
        ),
        (
            {"strategy": [{"kind": "w"}, {"kind": "w", "weightOptimizer": {"rank": 8}}]},
            "spec",
            "strategy step 2 continues the adapter of step 1 but changes rank, alpha or targetModules",
        ),
        (
            {"promptOptimizer": {"type": "mipro", "trials": 0}},
            "spec.promptOptimizer.trials",
            "found 0; input should be",
        ),
        (
            {"promptOptimizer": {"type": "mipro", "candidates": 3}},
            "spec.promptOptimizer.candidates",
            "belongs to the type bootstrap-random-search; mipro has auto, demoSets, exhaustive",
        ),
        (
            {"promptOptimizer": {"trials": 3}},
            "spec.promptOptimizer.trials",
            "belongs to the type mipro; bootstrap-random-search has candidates",
        ),
        (
            {"promptOptimizer": {"type": "gepa", "merg": True}},
            "spec.promptOptimizer.merg",
            "did you mean merge? allowed:",
        ),
        ({"promptOptimizer": {"mipro": {}}}, "spec.promptOptimizer.mipro", "unknown field; allowed: candidates"),
        ({"text": "p"}, "spec.text", "unknown field; "),
        ({"promptOptimizer": 5}, "spec.promptOptimizer", "found 5; "),
        ({"promptOptimizer": {"type": "dspy"}}, "spec.promptOptimizer.class", "required, but not given"),
        (
            {"promptOptimizer": {"type": "MIPRO"}},
            "spec.promptOptimizer.type",
            "found 'MIPRO'; allowed: 'bootstrap-random-search', 'mipro', 'gepa', 'dspy'",
        ),
        (
            {"promptOptimizer": {"type": "gepa", "proposer": {"url": "ftp://host"}}},
            "spec.promptOptimizer.proposer.url",
            "found 'ftp://host';",
        ),
        *(
            (
                {"promptOptimizer": {"teacher": {"url": url, "model": "m"}}},
                "spec.promptOptimizer.teacher.url",
                f"found '{url}'",
            )
            for url in ("https://host:99999/v1", "https://key@host/v1", "https://host/v1?key=x")
        ),
        (
            {"strategy": [{"kind": "w"}, {"kind": "p", "promptOptimizer": {"type": "gepa", "auto": "max"}}]},
            "spec.strategy[1].promptOptimizer.auto",
            "found 'max'; input should be 'light'",
        ),
        ({"metric": {"builtin": "bleu", "field": "a"}}, "spec.metric.builtin", "found 'bleu'; input should be"),
        ({"metric": {"builtin": "f1"}}, "spec.metric", "field goes with builtin"),
        ({"metric": {"entrypoint": "no colon"}}, "spec.metric.entrypoint", "found 'no colon';"),
        ({"model": {"uri": "SmolLM2"}}, "spec.model.uri", "found 'SmolLM2';"),
        ({"data": {**BASE["data"], "inputs": []}}, "spec.data.inputs", "found a list;"),
        ({"data": {"train": {"uri": "file:x", "limt": 3}, "inputs": ["a"]}}, "spec.data.train.limt", "limit"),
        ({"evaluation": {"maxErrorRate": 0.5}}, "spec.evaluation.maxErrorRate", 'write "0.5" in quotes'),
        ({"evaluation": {"maxErrorRate": "1.5"}}, "spec.evaluation.maxErrorRate", "found '1.5';"),
        ({"evaluation": {"concurrency": 513}}, "spec.evaluation.concurrency", "found 513;"),
        ({"weightOptimizer": {"rank": 1024}}, "spec.weightOptimizer.rank", "found 1024; input should be less than"),
        ({"weightOptimizer": {"targetModules": "q_proj"}}, "spec.weightOptimizer.targetModules", '"all-linear" or a'),
        ({"weightOptimizer": {"learningRate": "-1"}}, "spec.weightOptimizer.learningRate", "found '-1';"),
        ({"serving": {"extraArgs": ["--port=1"]}}, "spec.serving.extraArgs", "found --port, which Tandem sets itself"),
        ({"serving": {"extraArgs": ["8"]}}, "spec.serving.extraArgs", "write each argument as one item"),
        ({"storage": {"s3": {"bucket": "b"}}}, "spec.storage.s3.bucket", "found 'b';"),
        ({"storage": {"s3": {"bucket": "abc", "prefix": "a/../b"}}}, "spec.storage.s3.prefix", "'.' or '..' parts"),
    ],
)
def test_a_wrong_field_is_told_with_its_path_and_what_is_allowed(spec, path, message):
    found = problems(document(**spec))
    assert list(found) == [path]
    assert message in found[path]


@pytest.mark.parametrize(("manifest", "found"), [(None, "nothing"), ([], "a list"), ("x", "a str")])
def test_what_is_no_mapping_is_told_as_such(manifest, found):
    assert problems(manifest) == {"(manifest)": f"found {found}; an OptimizationRun is a mapping"}


def test_a_manifest_error_is_a_bad_configuration_that_no_retry_helps():
    with pytest.raises(ManifestError) as caught:
        parse_run({})
    assert caught.value.exit_code == EXIT_CONFIGURATION
    assert str(caught.value).splitlines()[0].startswith("apiVersion: found None; allowed: 'tandem.dev/v1alpha1'")


@pytest.mark.parametrize("name", ["Reviews", "-reviews", "reviews-", "a" * 53, "", "a.b"])
def test_a_name_that_no_job_could_carry_is_refused(name):
    manifest = document()
    manifest["metadata"]["name"] = name
    assert list(problems(manifest)) == ["metadata.name"]


def test_metadata_of_others_is_kept():
    manifest = document()
    manifest["metadata"] |= {"resourceVersion": "7", "finalizers": ["x"]}
    assert parse_run(manifest).metadata.to_json()["finalizers"] == ["x"]


STEPS = [
    {"kind": "p", "promptOptimizer": {"candidates": 4}},
    {"kind": "w", "weightOptimizer": {"targetModules": ["q_proj"], "rank": 8}},
    {"kind": "p", "startFrom": "previous"},
]


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"strategy": "(p -> w){2}"},
        {"strategy": STEPS},
        {"program": {"entrypoint": "hotpot.program:build", "arguments": {"hops": 2, "deep": {"a": [1]}}}},
        {"serving": {"resources": {"limits": {"nvidia.com/gpu": 1}}, "extraArgs": ["--max-model-len=1024"]}},
        {"storage": {"s3": {"bucket": "runs", "prefix": "/team/a/"}}, "stop": {"targetScore": "0.9"}},
    ],
)
def test_a_spec_survives_being_stored(spec):
    first = parse_run(document(**spec)).spec
    assert Spec.model_validate(first.to_json()) == first
    assert Spec.model_validate_json(first.model_dump_json()) == first


def test_steps_of_a_list_have_their_own_settings_and_the_runs_where_they_say_nothing():
    spec = parse_run(document(strategy=STEPS, promptOptimizer={"candidates": 9})).spec
    assert (spec.prompts_of(1).candidates, spec.prompts_of(3).candidates) == (4, 9)
    assert spec.weights_of(2).target_modules == ("q_proj",)
    assert spec.strategy_text == "p -> w -> p"


def test_a_changed_strategy_is_forbidden_though_cel_cannot_see_it():
    old = parse_run(document(strategy="p -> w")).spec
    changed = parse_run(document(strategy="p")).spec
    assert [problem.path for problem in forbidden_changes(old, changed)] == ["spec.strategy"]


def test_mutable_fields_may_change():
    old = parse_run(document()).spec
    new = parse_run(document(suspend=True, ttlSecondsAfterFinished=1, budget={"tokens": 5})).spec
    assert forbidden_changes(old, new) == []
    assert {field.alias for field in Spec.model_fields.values()} >= MUTABLE_FIELDS


@given(st.floats(0, 1, allow_nan=False))
def test_a_score_is_written_with_four_places_and_within_half_of_the_last(score):
    text = decimal(score)
    assert len(text) == 6
    assert abs(Decimal(text) - Decimal(score)) <= Decimal("0.00005")


@given(st.text("0123456789.eE-+", max_size=10))
def test_an_accepted_decimal_is_a_number_that_every_language_reads(text):
    for kind, low, high in ((PositiveDecimal, 0.0, float("inf")), (Fraction, 0.0, 1.0)):
        adapter = TypeAdapter(Annotated[kind, "as a field"])
        try:
            adapter.validate_python(text)
        except ValidationError:
            continue
        assert low <= float(text) <= high


@pytest.mark.parametrize(
    ("change", "path", "says"),
    [
        ({"data": {"train": {"uri": "https://x/d.jsonl"}, "inputs": ["q"]}}, "spec.data.train.uri", "file:, s3:"),
        ({"model": {"uri": "https://hub/org/name"}}, "spec.model.uri", "hf:, s3:, pvc:, file:, pypi:"),
        ({"evaluation": {"concurrency": "8"}}, "spec.evaluation.concurrency", "integer"),
        ({"evaluation": {"concurrency": True}}, "spec.evaluation.concurrency", "integer"),
        ({"weightOptimizer": {"rank": 16.0}}, "spec.weightOptimizer.rank", "integer"),
        ({"prompt_optimizer": {}}, "spec.prompt_optimizer", "did you mean promptOptimizer"),
    ],
    ids=["data address", "model address", "text for a number", "true for a number", "decimal", "snake case"],
)
def test_what_the_api_server_would_refuse_is_refused_here(change, path, says):
    with pytest.raises(ManifestError) as caught:
        parse_run(document(**change))
    problem = next(problem for problem in caught.value.problems if problem.path == path)
    assert says in problem.message


def test_a_misspelt_metadata_field_is_named():
    manifest = document()
    manifest["metadata"]["namspace"] = "team"
    with pytest.raises(ManifestError, match=r"metadata\.namspace: unknown field; did you mean namespace"):
        parse_run(manifest)
