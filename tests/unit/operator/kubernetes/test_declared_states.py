"""Thousands of manifests that are almost right, made from the CRD's schema: each is read, or refused in words.

The same generator drives the real API server and operator in tests/faults.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from tests.faults.manifests import OPTIMIZERS, SCHEMA, Case, Change, cases, changes, manifest, whole
from tests.unit.operator.kubernetes.world import World

from tandem_api.v1alpha1.crd import with_defaults
from tandem_api.v1alpha1.run import MAX_PROBLEM, MAX_PROBLEMS, ManifestError, OptimizationRun, Problem, parse_run
from tandem_operator.app.passes import MAX_REFUSAL
from tandem_operator.platforms.kubernetes.manifest import cluster_problems

VALID = [manifest(), *(whole(kind) for kind in OPTIMIZERS)]
CHANGES = list(changes())
VALIDATOR = Draft202012Validator(SCHEMA)
#: One of these says what to do instead.
FIXES = re.compile(
    r"allowed|write|remove|required|must|should|may not|use |give|belongs?|goes? with|together"
    r"|exactly one of|at most|takes|needs|or both|does not divide|did you mean|more problems|keep|make it|set ",
    re.IGNORECASE,
)
#: What only a program's author understands.
INTERNALS = re.compile(
    r"Traceback|Error\(|<class|object at 0x|Value error|pydantic|\btuple\b|NoneType|KeyError|Exception"
)


def refusals(document: Any) -> list[Problem]:
    """What is told of a manifest; nothing if it is accepted. Any other exception than ManifestError is a bug."""
    try:
        run = parse_run(document)
    except ManifestError as error:
        return error.problems
    return cluster_problems(run)


def stored(document: dict[str, Any]) -> dict[str, Any]:
    """The manifest as the API server keeps it: unknown fields and nulls dropped, defaults filled in."""
    pruned: dict[str, Any] = with_defaults(SCHEMA, _pruned(SCHEMA, document))
    return pruned


def _pruned(schema: dict[str, Any], value: Any) -> Any:
    if "items" in schema and isinstance(value, list):
        return [_pruned(schema["items"], item) for item in value]
    fields = schema.get("properties")
    if fields is None or not isinstance(value, dict) or schema.get("x-kubernetes-preserve-unknown-fields"):
        return value
    # Of the metadata, the schema only says what the name may be.
    known = value.keys() if fields.keys() == {"name"} else fields.keys() & value.keys()
    return {key: _pruned(fields.get(key, {}), value[key]) for key in known if value[key] is not None}


def names_a_field(problem: Problem, made: tuple[Change, ...]) -> bool:
    """Whether the problem is about something that was changed."""
    path = re.sub(r"\[\d+\]", "", problem.path)
    above = path.rpartition(".")[0]
    return any(
        (path != "spec" and (f"{path}.".startswith(f"{change.path}.") or f"{change.path}.".startswith(f"{path}.")))
        or change.keys[-1] in f"{problem.path} {problem.message}"
        # What an object needs beside the field that made it.
        or ("required" in problem.message and above.count(".") > 0 and change.path.startswith(f"{above}."))
        for change in made
    )


def complaints(problems: list[Problem], made: tuple[Change, ...]) -> Iterator[str]:
    """What is wrong with what is told."""
    text = "\n".join(map(str, problems))
    if len(problems) > MAX_PROBLEMS + 1 or len(text) > MAX_REFUSAL:
        yield f"{len(problems)} problems in {len(text)} characters"
    if INTERNALS.search(re.sub(r"found '.*?'", "", text)):
        yield f"tells of the program's inside: {text}"
    if made and not any(names_a_field(problem, made) for problem in problems):
        yield f"names none of the changed fields: {text}"
    for problem in problems:
        if len(problem.message) > MAX_PROBLEM or not FIXES.search(problem.message):
            yield f"does not say what to do: {problem}"


def check(case: Case) -> str | None:
    """What is wrong with how this manifest is met; None when nothing is."""
    document = case.document
    try:
        problems = refusals(document)
        found = list(complaints(problems, case.changes)) if problems else []
        as_stored = stored(document)
        # What the API server drops may be all that was wrong.
        then = refusals(as_stored)
        if not problems and not VALIDATOR.is_valid(as_stored):
            found.append("the API server refuses it, the models do not")
        if not problems and then:
            found.append(f"is refused once it is stored: {then}")
        found += complaints(then, ()) if then else []
    except Exception as error:
        return f"{case}: {type(error).__name__}: {str(error)[:200]}"
    return f"{case}: {'; '.join(found)[:600]}" if found else None


def test_the_manifests_that_cases_are_made_of_are_valid():
    for document in VALID:
        assert refusals(document) == []
        assert VALIDATOR.is_valid(stored(document))


def test_there_are_changes_of_every_field():
    changed = {change.path for change in CHANGES}
    fields: list[str] = []

    def walk(schema: dict[str, Any], path: str) -> None:
        for name, field in schema.get("properties", {}).items():
            fields.append(f"{path}.{name}")
            walk(field, f"{path}.{name}")

    walk(SCHEMA["properties"]["spec"], "spec")
    assert len(CHANGES) > 3000
    assert set(fields) <= changed


def test_the_same_seed_gives_the_same_cases():
    assert [str(case) for case in cases(VALID, 50, 3)] == [str(case) for case in cases(VALID, 50, 3)]
    assert cases(VALID, 50, 3)[7].document == cases(VALID, 50, 3)[7].document


@pytest.mark.parametrize("at", range(len(VALID)), ids=["small", *OPTIMIZERS])
def test_every_change_of_a_valid_manifest_is_accepted_or_refused_in_words(at: int):
    """Changes of the prompt optimizer are made in every manifest, others in one each."""
    made = [c for n, c in enumerate(CHANGES) if n % len(VALID) == at or c.keys[1] == "promptOptimizer"]
    wrong = [text for n, change in enumerate(made) if (text := check(Case(n, VALID[at], (change,))))]
    assert not wrong, f"{len(wrong)} of {len(made)}:\n" + "\n".join(wrong[:20])


def test_several_changes_at_once_are_accepted_or_refused_in_words():
    wrong = [text for case in cases(VALID, 2000, seed=1) if (text := check(case))]
    assert not wrong, f"{len(wrong)}:\n" + "\n".join(wrong[:20])


_SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=True) | st.text(max_size=30)
_ANYTHING = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=12), inner, max_size=3)
)


@settings(max_examples=400, derandomize=True, deadline=None)
@given(st.sampled_from(sorted({change.keys for change in CHANGES})), _ANYTHING, st.sampled_from(range(len(VALID))))
def test_whatever_stands_in_a_field_is_accepted_or_refused_in_words(keys: tuple[str, ...], value: Any, at: int):
    wrong = check(Case(0, VALID[at], (Change(keys, value, "anything"),)))
    assert wrong is None, wrong


def test_what_is_accepted_runs_to_its_end():
    """The operator's own code, on an API server in memory: no accepted manifest makes a pass raise."""
    accepted = [case for case in cases(VALID, 400, seed=2) if not refusals(case.document)][:20]
    assert len(accepted) == 20
    for case in accepted:
        document = case.document
        document["metadata"]["namespace"] = "team"
        document["spec"]["strategy"] = "w"
        document["spec"].pop("suspend", None)
        document["spec"].pop("ttlSecondsAfterFinished", None)
        try:
            world = World(document).finish()
        except Exception as error:
            raise AssertionError(f"{case}: {error}") from error
        assert world.succeeded[0] in ("True", "False"), case


def test_what_a_run_becomes_is_the_same_for_the_manifest_and_for_what_is_stored():
    for case in cases(VALID, 300, seed=4):
        document = case.document
        if not refusals(document):
            assert parse_run(document).spec == parse_run(stored(document)).spec, case


def test_the_resource_can_be_made_of_what_was_read():
    """What is read is written into a ConfigMap and read again by later passes."""
    for case in cases(VALID, 300, seed=5):
        document = case.document
        if not refusals(document):
            run = parse_run(document)
            assert isinstance(run, OptimizationRun)
            assert parse_run({**document, "spec": run.spec.to_json()}).spec == run.spec, case
