"""Every CEL rule of the CRD beside the validator that says the same: one manifest that both accept, one that both
refuse. The rules are run by cel-cpp, the reference implementation, on the manifest with its defaults filled in."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from cel_expr_python import cel
from tests.unit.api.manifests import document, names_of, optimizer, value_of

from tandem_api.v1alpha1 import Spec
from tandem_api.v1alpha1.crd import render_schema, with_defaults
from tandem_api.v1alpha1.prompt_optimizers import TYPES
from tandem_api.v1alpha1.run import ManifestError, forbidden_changes, parse_run
from tandem_api.v1alpha1.spec import MUTABLE_FIELDS

SCHEMA = render_schema()
RULES = "x-kubernetes-validations"
ENVIRONMENT = cel.NewEnv(variables={"self": cel.Type.DYN, "oldSelf": cel.Type.DYN})
SHA = "0" * 64
INLINE = {"signature": "review -> sentiment"}


@dataclass(frozen=True)
class Pair:
    """Replacements in a valid spec: one that the rule accepts, one that it refuses."""

    path: str
    """Where the rule stands."""
    rule: str
    """The beginning of its message."""
    accepted: dict[str, Any]
    refused: dict[str, Any]


def s3(**fields: Any) -> dict[str, Any]:
    return {"storage": {"s3": {"bucket": "runs", **fields}}}


def mipro(**fields: Any) -> dict[str, Any]:
    return {"promptOptimizer": {"type": "mipro", **fields}}


def belongings() -> Iterator[Pair]:
    """Every field of a prompt optimizer that not all types have, in a type that has it and in one that has not."""
    for name in dict.fromkeys(name for model in TYPES.values() for name in names_of(model)):
        owner = next(kind for kind, model in TYPES.items() if name in names_of(model))
        for other in (kind for kind, model in TYPES.items() if name not in names_of(model)):
            refused = {**optimizer(other), name: value_of(name)}
            accepted = {"promptOptimizer": optimizer(owner, name)}
            yield Pair("spec.promptOptimizer", f"{name} belongs", accepted, {"promptOptimizer": refused})


OTHER = {"url": "https://host/v1", "model": "large"}
PAIRS = [
    *belongings(),
    Pair(
        "spec.promptOptimizer",
        "dspy needs",
        {"promptOptimizer": optimizer("dspy")},
        {"promptOptimizer": {"type": "dspy"}},
    ),
    *(
        Pair(f"spec.promptOptimizer.{name}", "url and model", mipro(**{name: OTHER}), mipro(**{name: refused}))
        for name in ("proposer", "teacher")
        for refused in ({"url": "https://host/v1"}, {"model": "large"}, {"keySecret": "key"})
    ),
    Pair("spec.promptOptimizer.teacher", "a teacher is", mipro(teacher={"entrypoint": "a:b"}), mipro(teacher={})),
    Pair(
        "spec.promptOptimizer.teacher",
        "arguments belong",
        mipro(teacher={"entrypoint": "a:b", "arguments": {"n": 1}}),
        mipro(teacher={**OTHER, "arguments": {"n": 1}}),
    ),
    Pair("spec.program", "exactly one of", {"program": {"inline": INLINE}}, {"program": {}}),
    Pair(
        "spec.program",
        "exactly one of",
        {"program": {"entrypoint": "a:b"}},
        {"program": {"entrypoint": "a:b", "inline": INLINE}},
    ),
    Pair(
        "spec.program",
        "adapter and arguments belong",
        {"program": {"entrypoint": "a:b", "adapter": "json", "arguments": {"x": 1}}},
        {"program": {"inline": INLINE, "adapter": "json"}},
    ),
    Pair(
        "spec.program",
        "adapter and arguments belong",
        {"program": {"inline": {**INLINE, "adapter": "json"}}},
        {"program": {"inline": INLINE, "arguments": {"x": 1}}},
    ),
    Pair(
        "spec.program.code",
        "code from s3://",
        {"program": {"entrypoint": "a:b", "code": {"uri": "s3://b/c.tar.gz", "sha256": SHA}}},
        {"program": {"entrypoint": "a:b", "code": {"uri": "s3://b/c.tar.gz"}}},
    ),
    Pair(
        "spec.metric",
        "exactly one of",
        {"metric": {"entrypoint": "a:b"}},
        {"metric": {"entrypoint": "a:b", "builtin": "f1", "field": "x"}},
    ),
    Pair("spec.metric", "exactly one of", {"metric": {"builtin": "f1", "field": "x"}}, {"metric": {}}),
    Pair("spec.metric", "field goes", {"metric": {"builtin": "f1", "field": "x"}}, {"metric": {"builtin": "f1"}}),
    Pair(
        "spec.metric", "field goes", {"metric": {"entrypoint": "a:b"}}, {"metric": {"entrypoint": "a:b", "field": "x"}}
    ),
    Pair(
        "spec.weightOptimizer",
        "microBatchSize must divide",
        {"weightOptimizer": {"batchSize": 8, "microBatchSize": 4}},
        {"weightOptimizer": {"batchSize": 8, "microBatchSize": 3}},
    ),
    Pair(
        "spec.weightOptimizer",
        "with adapters: per-predictor",
        {"weightOptimizer": {"adapters": "per-predictor"}},
        {"weightOptimizer": {"adapters": "per-predictor", "checkpoint": "best"}},
    ),
    Pair(
        "spec",
        "serving.adapters: merged",
        {"weightOptimizer": {"adapters": "per-predictor"}, "serving": {"adapters": "rollout"}},
        {"weightOptimizer": {"adapters": "per-predictor"}, "serving": {"adapters": "merged"}},
    ),
    Pair(
        "spec",
        "weightOptimizer.adapters: per-predictor trains",
        {"weightOptimizer": {"adapters": "per-predictor"}, "training": {"nodes": 1}},
        {"weightOptimizer": {"adapters": "per-predictor"}, "training": {"nodes": 2}},
    ),
    Pair(
        "spec.serving",
        "extraArgs: write",
        {"serving": {"extraArgs": ["--seed=1", "-q"]}},
        {"serving": {"extraArgs": ["--seed", "1"]}},
    ),
    *(
        Pair("spec.serving", "extraArgs holds", {"serving": {"extraArgs": [good]}}, {"serving": {"extraArgs": [bad]}})
        for good, bad in (
            ("--model-impl=auto", "--model=other"),
            ("--hosts=x", "--host"),
            ("--enable-lora-bias", "--enable_lora"),
            ("--served=x", "--served_model-name=x"),
        )
    ),
    Pair(
        "spec.storage.s3",
        "at most one of credentialsSecret",
        s3(credentialsSecret="keys"),
        s3(credentialsSecret="keys", serviceAccount="runner"),
    ),
    *(
        Pair("spec.storage.s3", "a prefix may not", s3(prefix=good), s3(prefix=bad))
        for good, bad in (("", ".."), ("a/b", "a/../b"), ("a..b/.c", "a/."))
    ),
]

#: Immutable fields: what each may be changed to in a run that has the other value, and is refused.
CHANGES: dict[str, Any] = {
    "program": {"inline": {"signature": "question -> answer"}},
    "metric": {"entrypoint": "a:b"},
    "data": {"train": {"uri": "file:other.jsonl"}, "inputs": ["review"]},
    "model": {"uri": "hf://org/other"},
    "promptOptimizer": {"candidates": 3},
    "weightOptimizer": {"targetModules": ["q_proj"]},
    "evaluation": {"concurrency": 1},
    "serving": {"podTemplate": {"spec": {"nodeSelector": {"gpu": "yes"}}}},
    "training": {"nodes": 2},
    "workers": {"resources": {"requests": {"cpu": "2"}}},
    "seed": 1,
    "storage": {"s3": {"bucket": "runs"}},
    "tracking": {"mlflow": {"uri": "http://mlflow", "experiment": "e"}},
    "queue": "gpus",
    "priorityClass": "high",
    "attempts": 1,
    "stageTimeoutSeconds": 60,
    "stop": {"patience": 1},
}


def broken(schema: dict[str, Any], value: Any, old: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """(path, message) of every rule that `value` breaks; transition rules run where there is an `old`."""
    for rule in schema.get(RULES, ()):
        if "oldSelf" in rule["rule"] and old is None:
            continue
        held = ENVIRONMENT.compile(rule["rule"]).eval(data={"self": value, "oldSelf": old}).value()
        assert isinstance(held, bool), f"{rule['rule']} gives {held}"
        if not held:
            yield path.lstrip("."), rule["message"]
    if isinstance(value, dict):
        for name, field in schema.get("properties", {}).items():
            if name in value:
                yield from broken(field, value[name], (old or {}).get(name), f"{path}.{name}")


def broken_rules(new: dict[str, Any], old: dict[str, Any] | None = None) -> list[tuple[str, str]]:
    """What the API server would say to `new`, stored over `old`."""
    return list(broken(SCHEMA, with_defaults(SCHEMA, new), with_defaults(SCHEMA, old) if old else None))


def all_rules(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, str]]]:
    for rule in schema.get(RULES, ()):
        yield path.lstrip("."), rule
    for name, field in schema.get("properties", {}).items():
        yield from all_rules(field, f"{path}.{name}")


ALL_RULES = list(all_rules(SCHEMA))


@pytest.mark.parametrize("pair", PAIRS, ids=lambda pair: f"{pair.path}: {pair.rule}")
def test_the_rule_and_the_validator_accept_and_refuse_the_same(pair):
    accepted, refused = document(**pair.accepted), document(**pair.refused)
    assert broken_rules(accepted) == []
    parse_run(accepted)
    assert any(path == pair.path and message.startswith(pair.rule) for path, message in broken_rules(refused))
    with pytest.raises(ManifestError) as caught:
        parse_run(refused)
    assert all(problem.path.startswith(pair.path) for problem in caught.value.problems)


@pytest.mark.parametrize("name", CHANGES)
def test_an_immutable_field_cannot_be_changed_added_or_removed(name):
    plain, other = document(), document(**{name: CHANGES[name]})
    for old, new in ((plain, other), (other, plain)):
        assert broken_rules(new, old) == [("spec", f"{name} is immutable: create a new run instead")]
        found = forbidden_changes(parse_run(old).spec, parse_run(new).spec)
        assert [problem.path for problem in found] == [f"spec.{name}"]
    assert broken_rules(other, other) == []


def test_how_far_a_run_goes_can_be_changed():
    new = document(suspend=True, ttlSecondsAfterFinished=60, budget={"tokens": 10})
    assert new["spec"].keys() >= MUTABLE_FIELDS
    assert broken_rules(new, document()) == broken_rules(document(), new) == []


def test_every_rule_has_its_pair():
    paired = {(pair.path, pair.rule) for pair in PAIRS} | {("spec", f"{name} is immutable") for name in CHANGES}
    for path, rule in ALL_RULES:
        assert any(path == where and rule["message"].startswith(begin) for where, begin in paired), rule


def test_every_field_of_the_spec_is_mutable_or_guarded():
    fields = {field.alias for field in Spec.model_fields.values()}
    # `strategy` may be a text or a list: such a field is not visible to CEL, and `forbidden_changes` guards it.
    assert fields == MUTABLE_FIELDS | CHANGES.keys() | {"strategy"}


def test_no_rule_looks_at_a_field_that_the_api_server_does_not_show_to_cel():
    for _, rule in ALL_RULES:
        assert not re.search(r"elf\.(strategy|targetModules)\b", rule["rule"]), rule


def test_every_rule_has_a_message_without_line_breaks():
    for _, rule in ALL_RULES:
        assert rule["message"].strip() == rule["message"] != ""
        assert "\n" not in rule["message"] + rule["rule"]
