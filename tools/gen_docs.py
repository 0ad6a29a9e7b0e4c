#!/usr/bin/env python3
"""Writes docs/manifest.md from the models of `tandem_api`: `python tools/gen_docs.py [--check]`.

Fields, types, defaults, limits and rules are those of the CRD's schema, the words those of the models' docstrings, so
that the page cannot tell anything else than what is validated.
"""

from __future__ import annotations

import argparse
import inspect
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel

from tandem_api.v1alpha1 import API_VERSION, KIND, OptimizationRun
from tandem_api.v1alpha1.crd import render_schema, schema_of
from tandem_api.v1alpha1.prompt_optimizers import TYPES
from tandem_api.v1alpha1.run import Metadata
from tandem_api.v1alpha1.spec import MUTABLE_FIELDS, Step

PAGE = Path(__file__).parents[1] / "docs" / "manifest.md"
PRESERVE, UNION = "x-kubernetes-preserve-unknown-fields", "x-kubernetes-int-or-string"
#: The same object stands in many places; it is described where the link leads.
SHARED = {
    "spec.data.validation": "spec.data.train",
    "spec.data.test": "spec.data.train",
    "status.steps[].stages[].usage": "status.usage",
    "status.baseline": "status.steps[].candidates[]",
    "status.best": "status.steps[].candidates[]",
}
ARTIFACT_FIELDS = {"uri", "sha256", "count"}

HEAD = f"""# The manifest

<!-- Written by `python tools/gen_docs.py` from api/tandem_api/v1alpha1. Do not edit. -->

One `{KIND}` (short name `optrun`) is one optimization of one program. The same manifest runs on one machine
(`tandem run -f run.yaml --local`) and on a cluster (`kubectl apply -f run.yaml`). `tandem validate -f run.yaml` tells
everything that is wrong in it at once, each problem with its field's path.

```yaml
apiVersion: {API_VERSION}
kind: {KIND}
metadata:
  name: reviews
spec:
  program:
    inline:
      signature: "review -> sentiment: Literal['positive', 'negative']"
      instructions: Decide whether the review is positive or negative.
      adapter: plain
  metric: {{builtin: exact-match, field: sentiment}}
  data:
    inputs: [review]
    train: {{uri: "file:data/train.jsonl"}}
    test: {{uri: "file:data/test.jsonl"}}
  model: {{uri: "hf://HuggingFaceTB/SmolLM2-135M-Instruct"}}
  strategy: p -> w -> p
```

Everything else has a default that is right for a first run.

- Unknown fields are refused, with the nearest known one in the message.
- **Decimals are strings** (`learningRate: "5e-4"`): Kubernetes objects hold no floating-point numbers.
- The spec is immutable, except for how far a run goes: {{mutable}}.
- *Rules* tie fields together. The API server checks them (CEL) when the manifest is applied, `tandem` always.
"""

STRATEGY = """
### The strategy

`strategy` is a text or a list. As a text it is `p` (optimize prompts) and `w` (tune weights) joined by `->`; a group in
parentheses may be repeated:

| text | steps |
|---|---|
| `p -> w -> p` | prompts, weights, prompts again: the default |
| `p` | prompts only |
| `(p -> w){3}` | p, w, p, w, p, w |

At most 32 steps, and groups at most 8 deep. As a list every step may have settings of its own; what it leaves out is
the run's:

```yaml
strategy:
  - kind: p
    promptOptimizer: {candidates: 24}
  - kind: w
    weightOptimizer: {rank: 32, alpha: 64}
  - kind: p
    startFrom: previous
```
"""

OPTIMIZERS = """
`type` says which optimizer it is, and so which fields it has; a field of another type is refused.

| type | what it is |
|---|---|
"""

STATUS = """
Written by Tandem. Small and bounded; the bulk lies in S3 ([concepts](concepts.md)). An *artifact* is an object or a
folder there: its `uri`, the `sha256` of its content, and the `count` of what it holds, where that means something.
"""


def render_page() -> str:
    """The whole page."""
    schema = render_schema()["properties"]
    mutable = ", ".join(f"`{name}`" for name in sorted(MUTABLE_FIELDS))
    parts = [HEAD.replace("{mutable}", mutable), "## Metadata\n", *_metadata(), "## Spec\n"]
    parts += _section("spec", schema["spec"], describe=False)
    parts += [STRATEGY, "#### `strategy[]`\n", *_step(), *_sections("spec", schema["spec"])]
    parts += ["## Status\n", STATUS]
    parts += _section("status", schema["status"], describe=False)
    parts += _sections("status", schema["status"])
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


def _metadata() -> Iterator[str]:
    fields = Metadata.model_json_schema()["properties"]
    yield _table([("name", fields["name"], True), ("namespace", fields["namespace"], False)], "metadata")


def _step() -> Iterator[str]:
    """The list form's items, which no schema of the CRD can hold."""
    described = Step.model_json_schema(by_alias=True)["properties"]
    rows = []
    for name in ("promptOptimizer", "weightOptimizer"):
        described[name] = {"type": "object", "description": described[name]["description"], "like": f"spec.{name}"}
    for name, field in described.items():
        branches = [b for b in field.get("anyOf", ()) if b.get("type") != "null"]
        merged = {**field, **(branches[0] if branches else {})}
        rows.append((name, {key: value for key, value in merged.items() if value is not None}, name == "kind"))
    yield _table(rows, "strategy[]")


def _sections(path: str, schema: dict[str, Any]) -> Iterator[str]:
    """A section for every object inside `schema`, depth first."""
    for name, field in schema.get("properties", {}).items():
        inner, inside = (field["items"], f"{path}.{name}[]") if "items" in field else (field, f"{path}.{name}")
        if inside in SHARED or set(inner.get("properties", {})) == ARTIFACT_FIELDS or "properties" not in inner:
            continue
        yield f"### `{inside}`\n"
        yield from _optimizers(inside) if inside == "spec.promptOptimizer" else _section(inside, inner)
        yield from _sections(inside, inner)


def _optimizers(path: str) -> Iterator[str]:
    """A table for each type of prompt optimizer: the CRD has one object for all of them, without their defaults."""
    headings = {kind: f"`{path}` of type `{kind}`" for kind in TYPES}
    models = {kind: schema_of(model) for kind, model in TYPES.items()}
    rows = (
        f"| [`{kind}`](#{_anchor(headings[kind])}){'' if index else ' (the default)'} | {_words(TYPES[kind])} |\n"
        for index, kind in enumerate(models)
    )
    yield OPTIMIZERS + "".join(rows)
    for index, (kind, schema) in enumerate(models.items()):
        yield f"#### {headings[kind]}\n"
        needed = {*schema.get("required", ()), *(["type"] if index else [])}
        properties = dict(sorted(schema["properties"].items(), key=lambda item: item[0] != "type"))
        yield from _fields_and_rules(path, {**schema, "properties": properties, "required": sorted(needed)})


def _section(path: str, schema: dict[str, Any], *, describe: bool = True) -> Iterator[str]:
    """One object: what it is, its fields, its rules."""
    if describe:
        yield f"{_words(_model_at(path))}\n"
    yield from _fields_and_rules(path, schema)


def _fields_and_rules(path: str, schema: dict[str, Any]) -> Iterator[str]:
    required = set(schema.get("required", ()))
    yield _table([(name, field, name in required) for name, field in schema["properties"].items()], path)
    rules = [rule for rule in schema.get("x-kubernetes-validations", ()) if "immutable" not in rule["message"]]
    if rules:
        yield "Rules:\n"
        yield "\n".join(f"- {rule['message']}" for rule in rules) + "\n"


def _words(model: type[BaseModel]) -> str:
    """What a model says of itself, in one line."""
    return " ".join((inspect.getdoc(model) or "").split())


def _model_at(path: str) -> type[BaseModel]:
    """The model of the object at a path such as `spec.data.train` or `status.steps[]`."""
    models: list[type[BaseModel]] = [OptimizationRun]
    for part in path.replace("[]", "").split("."):
        # Of a union's models, those that have the field agree on it.
        fields = (item for model in models for item in model.model_fields.items())
        models = list(_models_in(next(field.annotation for name, field in fields if part in (name, field.alias))))
    return models[0]


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def _table(rows: list[tuple[str, dict[str, Any], bool]], path: str) -> str:
    status = path.startswith("status")
    head = ["field", "type", "meaning"] if status else ["field", "type", "default", "meaning"]
    lines = [f"| {' | '.join(head)} |", f"|{'---|' * len(head)}"]
    for name, field, required in rows:
        cells = [f"`{name}`", _type(name, field, path)]
        if not status:
            cells.append("**required**" if required else _default(field))
        cells.append(_cell(field.get("description", "")))
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _type(name: str, field: dict[str, Any], path: str) -> str:
    """The type with what is allowed, in a few words."""
    inside = f"{path}.{name}"
    if "like" in field:
        return f"as [`{field['like']}`](#{_anchor(field['like'])})"
    if field.get(UNION):
        return "integer or text"
    if "type" not in field:
        return {"strategy": "text or [list](#the-strategy)", "targetModules": "text or list of texts"}[name]
    if "enum" in field:
        return _cell(", ".join(f"`{value}`" for value in field["enum"]))
    if field["type"] == "object":
        return _object(inside, field)
    if field["type"] == "array":
        items = field["items"]
        inner = _object(f"{inside}[]", items) if items["type"] == "object" else _scalar(items)
        return f"list of {_range(field.get('minItems', 0), field['maxItems'])}: {inner}"
    return _scalar(field)


def _object(path: str, field: dict[str, Any]) -> str:
    if "additionalProperties" in field:
        return f"mapping, at most {field['maxProperties']}"
    if set(field.get("properties", {})) == ARTIFACT_FIELDS:
        return "artifact: `uri`, `sha256`, `count`"
    if "properties" not in field:
        return "free-form object"
    target = SHARED.get(path, path)
    return f"[`{target}`](#{_anchor(target)})"


def _scalar(field: dict[str, Any]) -> str:
    if field["type"] == "boolean":
        return "true or false"
    if field["type"] == "integer":
        return f"integer, {_range(field['minimum'], field.get('maximum'))}" if "minimum" in field else "integer"
    if field.get("format") == "date-time":
        return "time"
    kinds = {
        r"^[0-9]+(\.[0-9]+)?([eE]-?[0-9]+)?$": "decimal as text",
        r"^(0(\.[0-9]+)?|1(\.0+)?)$": "decimal as text, 0 to 1",
        r"^[0-9]+\.[0-9]+$": "score as text",
        r"^[0-9a-f]{64}$": "sha256 in hex",
        r"^[a-z0-9+.-]+:.+$": "URI",
        r"^[A-Za-z_][A-Za-z0-9_.]*:[A-Za-z_][A-Za-z0-9_.]*$": "`package.module:name`",
        r"^[A-Za-z_][A-Za-z0-9_]*((\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*)?$": (
            "`Class` or `package.module:Class`"
        ),
        r"^https?://[^/?#@\s]+(/[^?#\s]*)?$": "`https://host/v1`",
    }
    pattern = field.get("pattern")
    if pattern in kinds:
        return kinds[pattern]
    longest = f", at most {field['maxLength']:,} characters" if "maxLength" in field else ""
    return f"text{longest}" + (f", matching `{_cell(pattern)}`" if pattern else "")


def _range(low: int, high: int | None) -> str:
    # A limit that only says "fits into 32 bits" is no news.
    return f"{low:,} or more" if high is None or high == 2**31 - 1 else f"{low:,} to {high:,}"


def _default(field: dict[str, Any]) -> str:
    if "default" not in field or field["default"] == {}:
        return "see there" if "default" in field and field.get("properties") else "–"
    value = field["default"]
    return f"`{str(value).lower() if isinstance(value, bool) else value}`" if value != "" else "empty"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _anchor(heading: str) -> str:
    """GitHub's anchor of a heading."""
    return "".join(c for c in heading.lower() if c.isalnum() or c in "-_ ").replace(" ", "-")


def main(arguments: list[str] | None = None) -> int:
    """Write the page, or check that it is current. Returns the exit code."""
    parser = argparse.ArgumentParser(description=main.__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; fail when the page is not current")
    if not parser.parse_args(arguments).check:
        PAGE.write_text(render_page(), encoding="utf-8")
        return 0
    if PAGE.is_file() and PAGE.read_text(encoding="utf-8") == render_page():
        return 0
    print("docs/manifest.md is not what the models say; run: python tools/gen_docs.py", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
