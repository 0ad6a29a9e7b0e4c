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


OWN = {"adapters": "per-predictor"}


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
            "strategy step 2 continues the adapter of step 1 but changes rank, alpha, targetModules or adapters",
        ),
        (
            {"strategy": [{"kind": "w"}, {"kind": "w", "weightOptimizer": OWN}]},
            "spec",
            "strategy step 2 continues the adapter of step 1 but changes rank, alpha, targetModules or adapters",
        ),
        (
            {"strategy": [{"kind": "w", "weightOptimizer": OWN}], "serving": {"adapters": "merged"}},
            "spec",
            "serving.adapters: merged puts one adapter into the weights, but weightOptimizer.adapters: per-predictor",
        ),
        (
            {"strategy": [{"kind": "w", "weightOptimizer": OWN}], "training": {"nodes": 2, "backend": "jobset"}},
            "spec",
            "weightOptimizer.adapters: per-predictor trains on one machine; set training.nodes: 1, or adapters: shared",
        ),
        (
            {
                "strategy": [{"kind": "w", "weightOptimizer": OWN}, {"kind": "p"}],
                "promptOptimizer": {"type": "dspy", "class": "SIMBA"},
            },
            "spec",
            "strategy step 2: promptOptimizer type dspy runs the program under one name, but step 1 gives each",
        ),
        (
            {"weightOptimizer": {**OWN, "checkpoint": "best"}},
            "spec.weightOptimizer",
            "checkpoint: best chooses among the epochs of one adapter; with adapters: per-predictor set checkpoint:",
        ),
        (
            {"promptOptimizer": {"type": "mipro", "trials": 0}},
            "spec.promptOptimizer.trials",
            "found 0; input should be",
        ),
        (
            {"promptOptimizer": {"type": "mipro", "candidates": 3}},
            "spec.promptOptimizer.candidates",
            "belongs to type bootstrap-random-search; the type here is mipro: write type: bootstrap-random-search",
        ),
        (
            {"promptOptimizer": {"trials": 3}},
            "spec.promptOptimizer.trials",
            "belongs to type mipro; the type here is bootstrap-random-search (the default): write type: mipro, or",
        ),
        (
            {"promptOptimizer": {"auto": "light"}},
            "spec.promptOptimizer.auto",
            "belongs to type mipro or gepa; the type here is bootstrap-random-search (the default): write type: mipro,",
        ),
        (
            {"promptOptimizer": {"proposer": {}}},
            "spec.promptOptimizer.proposer",
            "belongs to type mipro, gepa or dspy; ",
        ),
        (
            {"promptOptimizer": {"type": "gepa", "merg": True}},
            "spec.promptOptimizer.merg",
            "did you mean merge? allowed:",
        ),
        ({"promptOptimizer": {"mipro": {}}}, "spec.promptOptimizer.mipro", "unknown field; allowed: candidates"),
        ({"text": "p"}, "spec.text", "unknown field; "),
        *(
            (
                {"promptOptimizer": value},
                "spec.promptOptimizer",
                f"found {found}; allowed: a mapping such as {{type: mipro}}",
            )
            for value, found in ((5, "5"), ("mipro", "'mipro'"), (["mipro"], "a list"))
        ),
        ({"strategy": [{"kind": "p"}, "w"]}, "spec.strategy[1]", "found 'w'; allowed: a mapping such as {kind: p}"),
        (
            {"strategy": [{"kind": "p", "promptOptimizer": "gepa"}]},
            "spec.strategy[0].promptOptimizer",
            "found 'gepa'; allowed: a mapping such as {type: mipro}",
        ),
        *(
            (
                {"strategy": steps},
                "spec.strategy",
                "found 'vanilla' in a list; it stands alone: write strategy: vanilla",
            )
            for steps in (["vanilla"], [{"kind": "p"}, {"kind": "vanilla"}])
        ),
        ({"evaluation": [1]}, "spec.evaluation", "found a list; allowed: a mapping"),
        ({"seed": {"a": 1}}, "spec.seed", "found a mapping; "),
        ({"promptOptimizer": {"type": None}}, "spec.promptOptimizer.type", "found nothing; allowed: 'bootstrap"),
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
                f"found '{shown}'; allowed: an address such as https://host/v1 or https://host:8000/v1, without a user",
            )
            for url, shown in (
                ("https://host:99999/v1", "https://host:99999/v1"),
                ("https://key@host/v1", "https://...@host/v1"),
                ("https://host/v1?key=x", "https://host/v1?..."),
                ("https://host/v1#key", "https://host/v1#..."),
                # Passwords that no parser of addresses would take for one.
                ("https://me:secret/x@host/v1", "https://...@host/v1"),
                ("https://me:secret?x@host/v1", "https://...@host/v1"),
                ("me:secret@host/v1", "...@host/v1"),
            )
        ),
        *(
            (
                {"promptOptimizer": {"type": "dspy", "class": name}},
                "spec.promptOptimizer.class",
                f'found {name!r}; allowed: a class of dspy such as "SIMBA", or one of yours as "package.module:Class"',
            )
            for name in ("dspy.SIMBA", "my module:Class", "module:a:b", "module:Outer.Inner")
        ),
        (
            {"strategy": [{"kind": "w"}, {"kind": "p", "promptOptimizer": {"type": "gepa", "auto": "max"}}]},
            "spec.strategy[1].promptOptimizer.auto",
            "found 'max'; input should be 'light'",
        ),
        ({"metric": {"builtin": "bleu", "field": "a"}}, "spec.metric.builtin", "found 'bleu'; input should be"),
        ({"metric": {"builtin": "f1"}}, "spec.metric", "field goes with builtin"),
        (
            {"metric": {"entrypoint": "no colon"}},
            "spec.metric.entrypoint",
            "found 'no colon'; allowed: a Python object as \"package.module:name\"",
        ),
        ({"model": {"uri": "SmolLM2"}}, "spec.model.uri", "found 'SmolLM2';"),
        ({"data": {**BASE["data"], "inputs": []}}, "spec.data.inputs", "found a list;"),
        ({"data": {"train": {"uri": "file:x", "limt": 3}, "inputs": ["a"]}}, "spec.data.train.limt", "limit"),
        ({"evaluation": {"maxErrorRate": 0.5}}, "spec.evaluation.maxErrorRate", 'write "0.5" in quotes'),
        (
            {"evaluation": {"maxErrorRate": "1.5"}},
            "spec.evaluation.maxErrorRate",
            "found '1.5'; allowed: a decimal from 0 to 1 in quotes, such as \"0.25\"",
        ),
        ({"evaluation": {"concurrency": 513}}, "spec.evaluation.concurrency", "found 513;"),
        ({"weightOptimizer": {"rank": 1024}}, "spec.weightOptimizer.rank", "found 1024; input should be less than"),
        ({"weightOptimizer": {"targetModules": "q_proj"}}, "spec.weightOptimizer.targetModules", '"all-linear" or a'),
        (
            {"weightOptimizer": {"learningRate": "-1"}},
            "spec.weightOptimizer.learningRate",
            'found \'-1\'; allowed: a decimal of at least 0 in quotes, such as "0.5" or "5e-4"',
        ),
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


@pytest.mark.parametrize(("manifest", "found"), [(None, "nothing"), ([], "a list"), ("x", "'x'")])
def test_what_is_no_mapping_is_told_as_such(manifest, found):
    assert problems(manifest) == {"(manifest)": f"found {found}; an OptimizationRun is a mapping"}


@pytest.mark.parametrize("field", ["promptOptimizer", "strategy", "evaluation"])
def test_a_field_without_a_value_is_told_as_nothing(field):
    manifest = document()
    manifest["spec"][field] = None
    assert problems(manifest)[f"spec.{field}"].startswith("found nothing; allowed: a ")


def test_no_message_shows_a_password_that_stands_in_an_address():
    for url in ("https://me:secret@host/v1", "https://me:secret/x@host:1/v1", "https://host/v1?key=secret"):
        for chosen in (
            {"type": "gepa", "proposer": {"url": url, "model": "m"}},
            {"teacher": {"url": url, "model": "m"}},
        ):
            with pytest.raises(ManifestError) as caught:
                parse_run(document(promptOptimizer=chosen))
            assert "secret" not in str(caught.value)


@pytest.mark.parametrize("name", ["SIMBA", "module:Class", "package.module:Class", "_own:_Class"])
def test_an_optimizer_of_dspy_is_named_alone_and_an_own_one_with_its_module(name):
    settings = parse_run(document(promptOptimizer={"type": "dspy", "class": name})).spec.prompts_of(1)
    assert settings.class_name == name


def test_a_manifest_error_is_a_bad_configuration_that_no_retry_helps():
    with pytest.raises(ManifestError) as caught:
        parse_run({})
    assert caught.value.exit_code == EXIT_CONFIGURATION
    assert str(caught.value).splitlines()[0].startswith("apiVersion: found nothing; allowed: 'tandem.dev/v1alpha1'")


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
        ({"suspend": "yes"}, "spec.suspend", "found 'yes'; allowed: true or false"),
        ({"weightOptimizer": {"packing": 1}}, "spec.weightOptimizer.packing", "found 1; allowed: true or false"),
        (
            {"promptOptimizer": {"mixLabeled": 1, "exhaustive": "yes"}},
            "spec.promptOptimizer.exhaustive",
            "found 'yes'; allowed: true or false",
        ),
        (
            {"promptOptimizer": {"type": "mipro", "grounding": {"tips": "no"}}},
            "spec.promptOptimizer.grounding.tips",
            "found 'no'; allowed: true or false",
        ),
        ({"promptOptimizer": {"type": "gepa", "merge": 0}}, "spec.promptOptimizer.merge", "allowed: true or false"),
    ],
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
