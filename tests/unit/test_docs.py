"""The documentation is held against the code: what a cluster's user may meet is explained, and no link is broken."""

from __future__ import annotations

import ast
import gc
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import yaml

from tandem_api import conditions, errors
from tandem_api.v1alpha1.run import parse_run
from tandem_operator.decide.limits import REASONS
from tandem_operator.platforms.kubernetes.manifest import cluster_problems

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), ROOT / "charts/tandem/README.md")
PAGES += tuple(sorted(ROOT.glob("examples/*/README.md")))
CLUSTER = (ROOT / "docs/cluster.md").read_text(encoding="utf-8")
OPERATOR = ROOT / "operator/tandem_operator"
#: Where a cluster's run gets its conditions and events from; the local platform's own are in local.md.
SOURCES = [path for path in sorted(OPERATOR.rglob("*.py")) if "local" not in path.parts]
#: Reasons of events that are not written out in the code, and what they are there.
MADE = {
    "f'Step{step.state}'": {"StepSucceeded", "StepSkipped", "StepStopped"},
    "conditions.INVALID": {conditions.INVALID},
    "new.reason": conditions.WAITING,
}


def emitted() -> Iterator[str]:
    """The reason of every event that the code makes."""
    for path in SOURCES:
        for node in ast.walk(_parse(path)):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "EmitEvent":
                reason = node.args[1]
                yield from [str(reason.value)] if isinstance(reason, ast.Constant) else MADE[ast.unparse(reason)]


def observed() -> Iterator[str]:
    """The reasons that are written out where steps, pods, Jobs and ended attempts are judged."""
    for name in ("summary", "results", "engine", "limits"):
        for node in ast.walk(_parse(OPERATOR / f"decide/{name}.py")):
            match node:
                case ast.Constant(value=str(word)) if re.fullmatch(r"([A-Z][a-z]+){2,}", word):
                    yield word
                case ast.Tuple(elts=[ast.Constant(value="True" | "False" | "Unknown"), ast.Constant(value=word), *_]):
                    yield str(word)
    for name in ("pod_state", "task_state", "serving_state"):
        for node in ast.walk(_parse(OPERATOR / f"platforms/kubernetes/{name}.py")):
            match node:
                case ast.Call(func=ast.Name(id="Waiting" | "starting"), args=[ast.Constant(value=str(word)), *_]):
                    yield from [word] if word else []
                case ast.keyword(arg="reason", value=ast.Constant(value=str(word))):
                    yield word


def _parse(path: Path) -> ast.Module:
    # Python 3.11 fails ("recursion depth mismatch") when garbage that is collected meanwhile has a traceback to print:
    # printing it parses, too. Tests of failing tasks leave such garbage.
    gc.disable()
    try:
        return ast.parse(path.read_text(encoding="utf-8"))
    finally:
        gc.enable()


def error_codes() -> set[str]:
    found = {kind.code for kind in vars(errors).values() if isinstance(kind, type) and hasattr(kind, "code")}
    assert "BadConfiguration" in found
    return found


def explained(word: str) -> bool:
    return f"`{word}`" in CLUSTER


def test_every_reason_of_a_condition_is_explained() -> None:
    reasons = {*conditions.WAITING, conditions.INVALID, "OOMKilled", *REASONS, *observed(), *error_codes()}
    assert {"Unschedulable", "ResultLost", "LoadingAdapter", "PodLost", "TooManyErrors", "Finishing"} <= reasons
    assert {reason for reason in reasons if not explained(reason)} == set()


def test_every_event_is_in_the_table_of_events() -> None:
    table = CLUSTER.partition("### Events")[2].partition("\n## ")[0]
    reasons = set(emitted())
    assert {"StepStarted", "RunFailed", "StorageNotRemoved", "StepSkipped", "ServingFailed"} <= reasons
    assert {reason for reason in reasons if f"`{reason}`" not in table} == set()


def test_every_right_of_the_operator_is_explained() -> None:
    rules = yaml.safe_load((ROOT / "charts/tandem/files/operator-rules.yaml").read_text(encoding="utf-8"))
    table = CLUSTER.partition("## 7. Rights")[2].partition("\n## ")[0]
    assert {resource for rule in rules for resource in rule["resources"] if f"`{resource}`" not in table} == set()


def examples() -> list[Any]:
    """The examples of YAML that say that they are a part of a run."""
    blocks = re.findall(r"```yaml\n(.*?)```", CLUSTER, re.DOTALL)
    return [yaml.safe_load(block) for block in blocks if "# part of a run" in block]


@pytest.mark.parametrize("part", examples())
def test_the_examples_are_accepted_on_a_cluster(part: dict[str, Any]) -> None:
    run = yaml.safe_load((ROOT / "examples/reviews/cluster.yaml").read_text(encoding="utf-8"))
    assert cluster_problems(parse_run({**run, "spec": {**run["spec"], **part["spec"]}})) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    text = re.sub(r"```.*?```|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"[a-z]+:", link):
            continue
        path, _, anchor = unquote(link).partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


def anchors(page: Path) -> set[str]:
    """What a page's headings may be linked by, as GitHub names them."""
    text = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "docs/cluster.md", ROOT / "docs/security.md"], ids=lambda page: page.name
)
def test_lines_are_short(page: Path) -> None:
    lines = page.read_text(encoding="utf-8").splitlines()
    assert [number for number, line in enumerate(lines, start=1) if len(line) > 120] == []
