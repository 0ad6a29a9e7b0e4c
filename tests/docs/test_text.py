"""What the pages tell people to type, write and look for, held against the code."""

from __future__ import annotations

import ast
import itertools
import re
import shlex
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
import typer
import yaml
from tests.docs.environment import ROOT
from tests.docs.pages import Piece, blocks, command_lines, spans
from tests.unit.test_docs import emitted, error_codes, observed
from typer.core import TyperGroup

from tandem_api import conditions
from tandem_api.v1alpha1.run import parse_run
from tandem_api.v1alpha1.spec import Spec
from tandem_operator.cli.main import app
from tandem_operator.decide.limits import REASONS

REVIEWS = yaml.safe_load((ROOT / "examples/reviews/run.yaml").read_text(encoding="utf-8"))
SPEC_FIELDS = {field.alias or name for name, field in Spec.model_fields.items()}
TROUBLE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")

# Commands.

TANDEM = re.compile(r"^(?:\.venv/bin/|kubectl )?tandem (?P<rest>[-a-z].*)$")
#: What follows is the shell's, or another choice.
OPERATOR = re.compile(r"[|&;<>()]+")


def commands() -> Iterator[Piece]:
    """Every command line of `tandem`."""
    for block in blocks():
        if block.language in ("", "bash", "sh", "shell", "console"):
            yield from (Piece(block.where, line) for line in command_lines(block.text) if TANDEM.match(line))
    yield from (span for span in spans() if TANDEM.match(span.text))


@pytest.mark.parametrize("command", list(commands()), ids=str)
def test_a_command_of_tandem_is_one_that_it_takes(command: Piece) -> None:
    match = TANDEM.match(command.text)
    assert match
    # Pages write what may be left out as [--what DIR].
    words = shlex.shlex(re.sub(r"[\[\]]", "", match["rest"]), posix=True, punctuation_chars=True)
    words.whitespace_split = True  # an address is one word
    given = itertools.takewhile(lambda word: not OPERATOR.fullmatch(word), words)
    # A sentence may name a command without all that it needs.
    allowed = {None, "MissingParameter", "BadOptionUsage"} if command in set(spans()) else {None}
    assert refused([word for word in given if word != "..."]) in allowed


def refused(words: list[str]) -> str | None:
    """Why the command line is not one of `tandem`'s: the name of the error; None: it is one. Nothing is carried out."""
    command = typer.main.get_command(app)
    while isinstance(command, TyperGroup):
        context = typer.Context(command)
        options = {option for parameter in command.get_params(context) for option in parameter.opts}
        while words and words[0].startswith("-"):
            if words.pop(0) not in options:
                return "NoSuchOption"
        if not words:
            return None
        found = command.get_command(context, words.pop(0))
        if found is None:
            return "NoSuchCommand"
        command = found
    try:
        command.make_context("tandem", words)
    except typer.Exit:  # --help
        return None
    except typer.BadParameter.__mro__[1] as error:  # the class of all that a command line can be wrong in
        return type(error).__name__
    return None


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("runn", "NoSuchCommand"),
        ("status x --no-such", "NoSuchOption"),
        ("logs x --stage no-such", "BadParameter"),
        ("run", "MissingParameter"),
        ("--no-such", "NoSuchOption"),
        ("--help", None),
        ("status x -n y", None),
    ],
)
def test_a_command_that_does_not_exist_is_found(line: str, error: str | None) -> None:
    assert refused(line.split()) == error


def test_every_target_of_make_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    lines = [Piece(block.where, line) for block in blocks() for line in command_lines(block.text)]
    made = [piece for piece in (*lines, *spans()) if re.match(r"make [a-z-]+$", piece.text)]
    named = {str(piece): piece.text.split()[1] for piece in made}
    assert {"demo", "docs", "test"} <= set(named.values())
    assert {where: name for where, name in named.items() if name not in targets} == {}


# Manifests.


def manifests() -> Iterator[tuple[Piece, dict[str, Any]]]:
    """Every example of YAML that is a run, or a part of one: its `spec`, or what is said there.

    Those of cluster.md that call themselves parts are tried elsewhere, as runs on a cluster.
    """
    for block in blocks():
        is_elsewhere = block.where.startswith("docs/cluster.md") and "# part of a run" in block.text
        if block.language not in ("yaml", "yml") or is_elsewhere:
            continue
        for document in yaml.safe_load_all(block.text):
            if not isinstance(document, dict):
                continue
            part = document["spec"] if document.keys() == {"spec"} else document
            if document.get("kind") == "OptimizationRun":
                yield block, document
            elif part.keys() <= SPEC_FIELDS and part.keys() != {"data"}:  # which ConfigMaps have, too
                yield block, {**REVIEWS, "spec": {**REVIEWS["spec"], **part}}


@pytest.mark.parametrize("manifest", [pytest.param(run, id=str(piece)) for piece, run in manifests()])
def test_a_manifest_is_valid(manifest: dict[str, Any]) -> None:
    assert parse_run(manifest).metadata.name


def test_the_pages_have_whole_manifests_and_parts() -> None:
    found = {piece.where.partition(":")[0] for piece, _ in manifests()}
    assert {"docs/index.md", "docs/quickstart-laptop.md", "docs/strategies.md", "docs/optimizers.md"} <= found


# What a user looks for.


#: Reasons that the kubelet or a worker gives.
OTHERS = {"OOMKilled", "OutOfMemory", "Evicted"}


@cache
def reasons() -> set[str]:
    """Every reason of a condition or an event, and every type of a condition."""
    written = {
        str(node.value)
        for folder in ("operator/tandem_operator/decide", "trainer/tandem_trainer/stages")
        for path in sorted((ROOT / folder).glob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and re.fullmatch(r"([A-Z][a-z]+)+", str(node.value))
    }
    types = {value for name, value in vars(conditions).items() if name.isupper() and isinstance(value, str)}
    return {*conditions.WAITING, *REASONS, *observed(), *error_codes(), *emitted(), *written, *types, *OTHERS}


@pytest.mark.parametrize("name", ["troubleshooting.md", "operations.md", "faq.md", "quickstart-cluster.md"])
def test_every_reason_that_a_page_names_exists(name: str) -> None:
    words = {piece.text for piece in spans() if piece.where.startswith(f"docs/{name}:")}
    words = {word for word in words if re.fullmatch(r"[A-Z][A-Za-z]+", word) and not word.isupper()}
    # Values of fields and a metric's label look the same.
    assert words - reasons() - {"Delete", "Retain", "ReadWriteMany", "Api409"} == set()


def test_every_metric_that_a_page_names_is_in_the_tables_of_metrics() -> None:
    tables = [ROOT / "docs/cluster.md", *(ROOT / "docs").glob("metrics.md")]
    explained = " ".join(page.read_text(encoding="utf-8") for page in tables)
    pages = ("docs/operations.md", "docs/troubleshooting.md")
    named = {piece.text for piece in spans() if piece.where.startswith(pages) and piece.text.startswith("tandem_")}
    named = {name.split()[0] for name in named}
    assert len(named) > 3
    assert {name for name in named if f"`{name}`" not in explained} == set()


def test_what_a_run_waits_for_and_fails_with_is_told_by_symptom() -> None:
    named = {*conditions.WAITING, conditions.INVALID, *error_codes()}
    # That one is no trouble.
    assert {reason for reason in named - {"Preempted"} if f"`{reason}`" not in TROUBLE} == set()


def texts() -> list[str]:
    """Every text of the code, with ... for what is put into it."""
    found = []
    for path in sorted(ROOT.glob("operator/**/*.py")) + sorted(ROOT.glob("trainer/**/*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.JoinedStr(values=values):
                    found.append("".join(str(v.value) if isinstance(v, ast.Constant) else "..." for v in values))
                case ast.Constant(value=str(text)):
                    found.append(text)
    return found


def test_every_message_that_it_quotes_is_one_of_the_codes() -> None:
    rows = [line.split(" | ")[0] for line in TROUBLE.splitlines() if line.startswith("| ")]
    quoted = {span for row in rows for span in re.findall(r"`([^`]+)`", row) if span.count(" ") > 1}
    assert len(quoted) > 10
    known = texts()
    assert {message for message in quoted if not any(is_like(message, text) for text in known)} == set()


def is_like(message: str, text: str) -> bool:
    """Whether all that is written out in `message` is in `text`, in that order."""
    return re.search(".*".join(map(re.escape, message.split("..."))), text, re.DOTALL) is not None


# Fields and values.

CRD = yaml.safe_load((ROOT / "crds/tandem.dev_optimizationruns.yaml").read_text(encoding="utf-8"))
SCHEMA = CRD["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
VALUES = yaml.safe_load((ROOT / "charts/tandem/values.yaml").read_text(encoding="utf-8"))
#: A path, and perhaps a value: serving.adapters: merged, settings.workers=4.
PATH = re.compile(r"(?P<path>[a-z][A-Za-z0-9]*(\.[a-z][A-Za-z0-9]*)+)(: .*|=.*)?")
FILES = ("json", "jsonl", "yaml", "py", "md", "svg", "html", "txt", "css")


def paths() -> Iterator[tuple[str, list[str]]]:
    """(where, path) of everything in a sentence that is written as a path of a field or a value."""
    for piece in spans():
        match = PATH.fullmatch(piece.text)
        if match is not None and not match["path"].endswith(tuple(f".{ending}" for ending in FILES)):
            yield str(piece), match["path"].split(".")


def has_field(schema: dict[str, Any], path: list[str]) -> bool:
    """Whether objects of that schema have a field at the path."""
    if not path or schema.get("x-kubernetes-preserve-unknown-fields"):
        return True
    fields = schema.get("items", schema)
    below = fields.get("properties", {}).get(path[0], fields.get("additionalProperties"))
    return isinstance(below, dict) and has_field(below, path[1:])


def has_value(values: Any, path: list[str]) -> bool:
    """Whether there is such a value, or an empty object that may hold one."""
    if not path or values == {}:
        return True
    return isinstance(values, dict) and path[0] in values and has_value(values[path[0]], path[1:])


def test_every_field_of_a_run_that_a_page_names_exists() -> None:
    tops = SCHEMA["spec"]["properties"].keys()
    named = {where: path if path[0] in SCHEMA else ["spec", *path] for where, path in paths()}
    named = {where: path for where, path in named.items() if path[0] == "status" or path[1] in tops}
    assert len(named) > 40
    assert {where for where, path in named.items() if not has_field({"properties": SCHEMA}, path)} == set()


def test_every_value_of_the_chart_that_a_page_names_exists() -> None:
    named = {where: path for where, path in paths() if path[0] in VALUES}
    assert len(named) > 15
    assert {where for where, path in named.items() if not has_value(VALUES, path)} == set()
