"""docs/manifest.md is generated: it is current, whole, its links lead somewhere and its examples are valid."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import yaml
from tests.unit.api.manifests import document

from tandem_api.v1alpha1.crd import render_schema
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
        missing.extend(rule for rule in rules if f"- {rule}\n" not in PAGE and "is immutable" not in rule)

    for part in ("spec", "status"):
        look(render_schema()["properties"][part])
    assert missing == []


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
