"""docs/manifest.md is generated: it is current, whole, its links lead somewhere and its examples are valid."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import yaml
from tests.unit.api.manifests import document

from tandem_api.v1alpha1.crd import render_schema
from tandem_api.v1alpha1.prompt_optimizers import TYPES
from tandem_api.v1alpha1.run import parse_run
from tandem_api.v1alpha1.spec import MUTABLE_FIELDS

ROOT = Path(__file__).parents[3]


def load_generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gen_docs", ROOT / "tools" / "gen_docs.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


GENERATOR = load_generator()
#: Rules that the page tells in one sentence, or by a table for each type.
OTHERWISE = re.compile("is immutable|belongs to the type|^dspy needs class$")
PAGE: str = GENERATOR.render_page()


def test_the_committed_page_is_current(capsys):
    assert GENERATOR.main(["--check"]) == 0, capsys.readouterr().err


def test_an_outdated_page_is_found(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(GENERATOR, "PAGE", tmp_path / "manifest.md")
    assert GENERATOR.main(["--check"]) == 1
    assert "run: python tools/gen_docs.py" in capsys.readouterr().err
    assert GENERATOR.main([]) == 0
    assert GENERATOR.main(["--check"]) == 0


def test_every_field_and_every_rule_is_told():
    missing = []

    def look(schema: dict) -> None:
        for name, field in schema.get("properties", {}).items():
            if f"| `{name}` |" not in PAGE and schema["properties"].keys() != GENERATOR.ARTIFACT_FIELDS:
                missing.append(name)
            look(field)
            look(field.get("items", {}))
        rules = [rule["message"] for rule in schema.get("x-kubernetes-validations", ())]
        missing.extend(rule for rule in rules if f"- {rule}\n" not in PAGE and not OTHERWISE.search(rule))

    for part in ("spec", "status"):
        look(render_schema()["properties"][part])
    assert missing == []


def test_every_type_of_prompt_optimizer_has_a_table_of_its_own_fields_and_defaults():
    for kind, model in TYPES.items():
        section = PAGE.partition(f"#### `spec.promptOptimizer` of type `{kind}`\n")[2].partition("\n#")[0]
        rows = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
        assert sorted(rows) == sorted(field.alias for field in model.model_fields.values())
    assert "| `candidates` | integer, 1 to 256 | `12` |" in PAGE


def test_no_field_is_without_a_meaning():
    rows = [line for line in PAGE.splitlines() if line.startswith("| `")]
    assert [line for line in rows if re.search(r"\| +\|$", line)] == []


def test_every_link_leads_to_one_heading():
    headings = [GENERATOR._anchor(line.lstrip("# ")) for line in PAGE.splitlines() if line.startswith("#")]
    assert len(headings) == len(set(headings))
    links = re.findall(r"\]\(#([^)]+)\)", PAGE)
    assert len(links) > 20
    assert set(links) <= set(headings)


def test_the_manifest_on_the_page_is_valid():
    whole, steps = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert parse_run(yaml.safe_load(whole)).spec.strategy_text == "p -> w -> p"
    assert parse_run(document(**yaml.safe_load(steps))).spec.strategy_text == "p -> w -> p"


def test_the_mutable_fields_are_named_as_such():
    (line,) = [line for line in PAGE.splitlines() if line.startswith("- The spec is immutable")]
    assert set(re.findall(r"`(\w+)`", line)) == MUTABLE_FIELDS
