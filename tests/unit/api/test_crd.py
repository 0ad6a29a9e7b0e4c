"""The generated CRD: current, structural, bounded, and what the models accept it accepts."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from pydantic import Discriminator, Field, Tag
from tests.unit.api.manifests import document, names_of, optimizer
from tests.unit.operator.decide.world import World, finish, manifest

from tandem_api.v1alpha1 import OptimizationRun, Status, crd
from tandem_api.v1alpha1.base import Model
from tandem_api.v1alpha1.crd_union import RULES, merged
from tandem_api.v1alpha1.prompt_optimizers import TYPES
from tandem_api.v1alpha1.run import parse_run

ROOT = Path(__file__).parents[3]
SCHEMA = crd.render_schema()
PRESERVE, UNION = "x-kubernetes-preserve-unknown-fields", "x-kubernetes-int-or-string"
STRUCTURAL = {
    *("description", "type", "format", "enum", "pattern", "minLength", "maxLength", "minimum", "maximum", "minItems"),
    *("maxItems", "maxProperties", "required", "properties", "items", "additionalProperties", "default"),
    *("x-kubernetes-list-type", "x-kubernetes-list-map-keys", "x-kubernetes-validations", PRESERVE),
}


def nodes(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node of a structural schema with its path."""
    yield path.lstrip("."), schema
    for name, field in schema.get("properties", {}).items():
        yield from nodes(field, f"{path}.{name}")
    for key, mark in (("items", "[]"), ("additionalProperties", ".*")):
        if isinstance(schema.get(key), dict):
            yield from nodes(schema[key], path + mark)


OURS = [(path, node) for path, node in nodes(SCHEMA) if path.startswith(("spec", "status"))]


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema with everything refused that the API server would drop."""
    closed = dict(schema)
    if "properties" in schema:
        closed["properties"] = {name: strict(field) for name, field in schema["properties"].items()}
        if PRESERVE not in schema and "name" not in schema["properties"]:
            closed["additionalProperties"] = False
    if "items" in schema:
        closed["items"] = strict(schema["items"])
    return closed


def complaints(resource: dict[str, Any]) -> list[str]:
    return [
        f"{error.json_path}: {error.message}" for error in Draft202012Validator(strict(SCHEMA)).iter_errors(resource)
    ]


def test_the_committed_crd_is_what_the_models_say(capsys):
    assert crd.main(["--check", str(ROOT / "crds")]) == 0, capsys.readouterr().err


def test_an_outdated_crd_is_found_and_written_anew(tmp_path, capsys):
    assert crd.main(["--check", str(tmp_path)]) == 1
    assert "is not what the models say; run: python -m tandem_api.v1alpha1.crd" in capsys.readouterr().err
    assert crd.main([str(tmp_path)]) == 0
    assert crd.main(["--check", str(tmp_path)]) == 0
    assert yaml.safe_load((tmp_path / crd.FILE_NAME).read_text()) == crd.render_crd()


def test_names_scope_status_subresource_and_columns():
    spec = crd.render_crd()["spec"]
    assert spec["names"]["shortNames"] == ["optrun"]
    assert spec["names"]["categories"] == ["tandem"]
    assert spec["scope"] == "Namespaced"
    (version,) = spec["versions"]
    assert version["subresources"] == {"status": {}}
    shown = [column["name"] for column in version["additionalPrinterColumns"] if "priority" not in column]
    assert shown == ["Strategy", "Step", "Stage", "Best", "Succeeded", "Age"]


def test_every_column_names_a_field_that_is_a_scalar():
    paths = dict(nodes(SCHEMA))
    for column in crd.render_crd()["spec"]["versions"][0]["additionalPrinterColumns"]:
        path = column["jsonPath"].lstrip(".")
        if path == "metadata.creationTimestamp":
            continue
        kind, _, rest = path.partition("[?")
        node = paths[kind + ("[]." + rest.rpartition(".")[2] if rest else "")]
        assert node["type"] == column["type"]


@pytest.mark.parametrize(("path", "node"), OURS, ids=[path for path, _ in OURS])
def test_every_node_is_structural_described_and_bounded(path, node):
    if node.get(UNION):
        assert node.keys() <= {"anyOf", UNION, "description", "maxLength"}
        assert node["anyOf"] == [{"type": "integer"}, {"type": "string"}]
        return
    assert node.keys() <= STRUCTURAL
    assert node.get("description") or path.endswith(("[]", ".*")), "an undescribed field"
    if "type" not in node:
        assert node[PRESERVE] is True
        return
    assert node["type"] in ("object", "array", "string", "integer", "boolean"), "decimals travel as strings"
    if node["type"] == "string":
        assert {"maxLength", "enum", "format"} & node.keys(), "an unbounded text"
    if node["type"] == "array":
        assert "maxItems" in node, "an unbounded list"
    if node["type"] == "integer":
        assert node["format"] in ("int32", "int64")
    if node["type"] == "object":
        assert "properties" in node or PRESERVE in node or "maxProperties" in node
        assert not {"properties", "additionalProperties"} <= node.keys(), "Kubernetes allows one of the two"
    assert set(node.get("required", ())) <= node.get("properties", {}).keys()


def test_only_the_name_is_narrowed_in_the_metadata():
    assert SCHEMA["properties"]["metadata"]["properties"].keys() == {"name"}


def test_conditions_are_a_map_by_type():
    conditions = SCHEMA["properties"]["status"]["properties"]["conditions"]
    assert conditions["x-kubernetes-list-type"] == "map"
    assert conditions["x-kubernetes-list-map-keys"] == ["type"]


def test_the_status_has_no_defaults_and_the_spec_those_of_the_models():
    assert not [path for path, node in OURS if path.startswith("status") and "default" in node]
    filled = crd.with_defaults(SCHEMA, document())["spec"]
    stored = parse_run(document()).spec.to_json()
    # What differs from type to type is no default of the schema.
    assert filled.pop("promptOptimizer") == {"type": "bootstrap-random-search"}
    del stored["promptOptimizer"]
    assert filled == {name: value for name, value in without_empty_lists(stored).items() if value is not None}


@pytest.mark.parametrize("whole", [False, True], ids=["minimal", "every field"])
@pytest.mark.parametrize("kind", TYPES)
def test_a_prompt_optimizer_survives_the_api_server(kind: str, whole: bool):
    """What the API server fills in of one type must not be what another type's object is refused for."""
    given = optimizer(kind, *(name for name in names_of(TYPES[kind]) if whole and name not in ("type", "class")))
    stored = crd.with_defaults(SCHEMA, document(promptOptimizer=given))
    assert complaints(stored) == []
    run = parse_run(stored)
    assert type(run.spec.prompt_optimizer) is TYPES[kind]
    assert run == parse_run(document(promptOptimizer=given))
    again = document(promptOptimizer=run.to_json()["spec"]["promptOptimizer"])
    assert complaints(again) == []
    assert crd.with_defaults(SCHEMA, again)["spec"]["promptOptimizer"] == again["spec"]["promptOptimizer"]
    assert parse_run(again).spec == run.spec


def test_a_field_of_some_types_says_so_with_the_defaults_that_the_schema_cannot_hold():
    fields = SCHEMA["properties"]["spec"]["properties"]["promptOptimizer"]["properties"]
    assert fields["type"]["enum"] == list(TYPES)
    assert fields["candidates"]["description"].startswith("[bootstrap-random-search] Candidate programs")
    assert fields["candidates"]["description"].endswith("Default: 12.")
    assert fields["mixLabeled"]["description"].endswith("Default: false.")
    assert re.match(r"\[mipro\] How much .* Default: light\. \[gepa\] How many", fields["auto"]["description"])
    assert not fields["trainSize"]["description"].startswith("[")
    assert [name for name, field in fields.items() if "default" in field] == ["type"]


class TestUnion:
    """How objects of several types become one."""

    @staticmethod
    def of(**fields: Any) -> dict[str, Any]:
        kind = {"description": "A kind.", "type": "string"}
        return {"type": "object", "properties": {"type": kind, **fields}}

    def test_limits_that_differ_are_widened(self):
        small = {"description": "n", "type": "integer", "minimum": 1, "maximum": 5, "enum": [1, 2]}
        large = {"description": "n", "type": "integer", "minimum": 0, "enum": [2, 3]}
        field = merged({"a": self.of(n=small), "b": self.of(n=large)})["properties"]["n"]
        assert field == {"description": "n", "type": "integer", "minimum": 0, "enum": [1, 2, 3]}

    def test_a_default_stays_only_where_it_is_the_same_for_all(self):
        def made(*defaults: int) -> dict[str, Any]:
            types = zip("abc", defaults, strict=False)
            nodes = {kind: self.of(n={"description": "N.", "type": "integer", "default": n}) for kind, n in types}
            field: dict[str, Any] = merged(nodes)["properties"]["n"]
            return field

        assert made(3, 3) == {"description": "N.", "type": "integer", "default": 3}
        assert made(3, 4, 3) == {"description": "[a, c] N. Default: 3. [b] N. Default: 4.", "type": "integer"}

    def test_rules_of_one_type_hold_for_that_type_only(self):
        rules = [{"rule": "self.x > 0", "message": "x"}]
        both = {"a": {**self.of(), RULES: rules}, "b": {**self.of(), RULES: rules}}
        assert merged(both)[RULES] == rules
        assert merged({**both, "b": self.of()})[RULES] == [{"rule": "self.type != 'a' || (self.x > 0)", "message": "x"}]

    def test_what_is_required_of_all_types_is_required_and_of_one_by_a_rule(self):
        text = {"description": "t", "type": "string"}
        one, two = self.of(all=text, some=text), self.of(all=text, some=text)
        made = merged({"a": {**one, "required": ["all", "some"]}, "b": {**two, "required": ["all"]}})
        assert made["required"] == ["all"]
        assert made[RULES] == [{"rule": "self.type != 'a' || has(self.some)", "message": "a needs some"}]

    def test_fields_that_no_schema_can_hold_at_once_are_an_error(self):
        text, number = ({"description": "t", "type": kind} for kind in ("string", "integer"))
        with pytest.raises(TypeError, match="n: a, b have different values of 'type'"):
            merged({"a": self.of(n=text), "b": self.of(n=number)})

    def test_a_union_of_what_no_type_tells_apart_is_an_error(self):
        class One(Model):
            x: str = Field("", max_length=1)

        class Two(Model):
            y: str = Field("", max_length=1)

        class Holder(Model):
            either: Annotated[
                Annotated[One, Tag("one")] | Annotated[Two, Tag("two")], Discriminator(lambda value: "one")
            ]

        with pytest.raises(TypeError, match=r"Holder\.either: no structural schema for a union"):
            crd.schema_of(Holder)


def without_empty_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: without_empty_lists(item) for key, item in value.items() if item != []}
    return value


@pytest.mark.parametrize("path", sorted(ROOT.glob("examples/*/run.yaml")), ids=lambda path: path.parent.name)
def test_the_examples_are_valid_for_the_models_and_for_the_api_server(path):
    manifest = yaml.safe_load(path.read_text())
    assert complaints(manifest) == []
    run = parse_run(manifest)
    assert complaints({**manifest, "spec": run.spec.to_json()}) == []


def test_both_forms_of_the_unions_are_kept():
    steps = [{"kind": "w", "weightOptimizer": {"targetModules": ["q_proj"]}}]
    for spec in ({"strategy": "p"}, {"strategy": steps}, {"weightOptimizer": {"targetModules": ["q_proj"]}}):
        assert complaints(document(**spec)) == []


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        ({"weightOptimizer": {"rank": 1024}}, "1024 is greater than the maximum of 512"),
        ({"modle": {}}, "'modle' was unexpected"),
        ({"evaluation": {"maxErrorRate": 0.5}}, "0.5 is not of type 'string'"),
        ({"data": {"train": {"uri": "file:x"}, "inputs": []}}, "inputs"),
        ({"model": None}, "'model' is a required property"),
    ],
)
def test_what_the_models_refuse_the_schema_refuses(spec, complaint):
    assert any(complaint in found for found in complaints(document(**spec)))


class Recording(World):
    """Keeps every status that the engine stores."""

    @cached_property
    def saved(self) -> list[Status]:
        return []

    def save(self, run: OptimizationRun, status: Status) -> None:
        super().save(run, status)
        self.saved.append(status)


def test_every_status_of_a_whole_run_is_valid():
    assert complaints({**document(), "status": Status().to_json()}) == []
    world = finish(Recording(manifest(strategy="p -> w -> p")))
    assert len(world.saved) > 10
    for status in world.saved:
        assert complaints({**document(), "status": status.to_json()}) == []


def test_a_model_that_no_structural_schema_can_say_is_an_error():
    class Odd(Model):
        share: float = Field(0.5, multiple_of=0.5)

    with pytest.raises(TypeError, match=r"share: no structural schema for \['multipleOf'\]"):
        crd._structural(Odd.model_json_schema(by_alias=True), {}, "spec")
