"""The whole resource, and how a manifest is read with all its errors at once."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import ConfigDict, Field, ValidationError

from tandem_api.errors import ConfigurationError
from tandem_api.v1alpha1.base import MAX_NAME, Model, cut, shown
from tandem_api.v1alpha1.bounds import bounds_problem
from tandem_api.v1alpha1.prompt_optimizers import TYPES
from tandem_api.v1alpha1.spec import MUTABLE_FIELDS, Spec
from tandem_api.v1alpha1.status import Status

GROUP = "tandem.dev"
VERSION = "v1alpha1"
API_VERSION: Literal["tandem.dev/v1alpha1"] = "tandem.dev/v1alpha1"
KIND: Literal["OptimizationRun"] = "OptimizationRun"


#: The fields of Kubernetes' object metadata.
OBJECT_META = frozenset(
    {
        *("name", "namespace", "labels", "annotations", "uid", "generation", "resourceVersion", "creationTimestamp"),
        *("deletionTimestamp", "deletionGracePeriodSeconds", "finalizers", "ownerReferences", "managedFields"),
        *("generateName", "selfLink"),
    }
)


class Metadata(Model):
    """The part of Kubernetes' object metadata that we read; the rest is kept as it is."""

    model_config = ConfigDict(extra="allow")

    name: str = Field(min_length=1, max_length=52, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")
    """At most 52 characters, so that the names of Jobs made from it stay within 63."""
    namespace: str = Field("default", max_length=63, pattern=r"^[a-z0-9]([a-z0-9-]*[a-z0-9])?$")
    """Where the run lives; also a part of its keys in S3."""
    uid: str = Field("", max_length=64)
    """Given by the API server, or by the local platform: a run that is made anew under its old name is another."""
    generation: int = 1
    """Counts the changes of the spec."""
    labels: dict[str, str] = Field(default_factory=dict)
    """The user's own."""
    annotations: dict[str, str] = Field(default_factory=dict)
    """The user's own."""


class OptimizationRun(Model):
    """One optimization of one program."""

    api_version: Literal["tandem.dev/v1alpha1"] = API_VERSION
    kind: Literal["OptimizationRun"] = KIND
    metadata: Metadata
    spec: Spec
    status: Status = Status()


#: What else pydantic adds to the path of a union's errors.
_BRANCHES = frozenset({"text", "list", "str", "literal['all-linear']"})
#: What pydantic's errors of type want, in words.
_WANTED = {"tuple_type": "a list", "model_type": "a mapping", "dict_type": "a mapping", "bool_type": "true or false"}
#: No more problems of a manifest, and characters of one, are told.
MAX_PROBLEMS, MAX_PROBLEM = 20, 1200
#: A mapping for fields where another form suggests itself.
_EXAMPLES = {"promptOptimizer": "{type: mipro}", "strategy": "{kind: p}"}


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong in a manifest."""

    path: str
    """For example `spec.promptOptimizer.candidates`."""
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


class ManifestError(ConfigurationError):
    """A manifest that cannot be accepted, with everything that is wrong in it."""

    code = "InvalidManifest"

    def __init__(self, problems: list[Problem], unsaid: int = 0) -> None:
        """`unsaid`: how many more there are."""
        left = max(len(problems) - MAX_PROBLEMS, 0) + unsaid
        self.problems = problems[:MAX_PROBLEMS] + ([Problem("(more)", f"{left} more problems")] if left > 0 else [])
        super().__init__("\n".join(str(problem) for problem in self.problems))


def forbidden_changes(old: Spec, new: Spec) -> list[Problem]:
    """What a stored spec may not become: every immutable field that differs. The API server says the same through CEL,
    but for `strategy`, which CEL cannot see."""
    before, after = old.to_json(), new.to_json()
    return [
        Problem(f"spec.{name}", f"{name} is immutable: create a new run instead")
        for name in (field.alias for field in Spec.model_fields.values())
        if name is not None and name not in MUTABLE_FIELDS and before.get(name) != after.get(name)
    ]


def parse_run(document: Any) -> OptimizationRun:
    """Read a manifest (already parsed from YAML). Raises ManifestError with every problem and its field path."""
    if not isinstance(document, dict):
        raise ManifestError([Problem("(manifest)", f"found {shown(document)}; an OptimizationRun is a mapping")])
    beyond = bounds_problem(document.get("spec"))
    if beyond is not None:
        raise ManifestError([Problem(*beyond)])
    metadata = document.get("metadata")
    metadata = metadata if isinstance(metadata, dict) else {}
    unknown = [
        Problem(f"metadata.{cut(str(name), MAX_NAME)}", _suggest(str(name), sorted(OBJECT_META)))
        for name in metadata
        if name not in OBJECT_META
    ]
    missing = unknown + [
        Problem(name, f"found {shown(document.get(name))}; allowed: {wanted!r}")
        for name, wanted in (("apiVersion", API_VERSION), ("kind", KIND))
        if document.get(name) != wanted
    ]
    try:
        run = OptimizationRun.model_validate(document, by_alias=True, by_name=False)
    except ValidationError as error:
        told = {problem.path for problem in missing}
        found = error.errors()
        # Each takes a while to put into words, and a manifest may have very many.
        worded = [p for p in map(_problem, found[:MAX_PROBLEMS]) if p.path not in told]
        raise ManifestError(missing + worded, unsaid=max(len(found) - MAX_PROBLEMS, 0)) from error
    if missing:
        raise ManifestError(missing)
    return run


def _problem(error: Any) -> Problem:
    kind, found = error["type"], error.get("input")
    message = error["msg"].removeprefix("Value error, ").replace("Tuple should", "List should")
    # What is unknown or missing is a field, whatever its name.
    *above, last = error["loc"] or ("",)
    is_field = kind in ("extra_forbidden", "missing")
    location = [part for part in above if not _is_union_branch(part)]
    location += [last] if is_field or not _is_union_branch(last) else []
    if kind == "extra_forbidden":
        message = _unknown_field(above, str(last))
    elif kind == "missing":
        message = "required, but not given"
    elif kind == "union_tag_invalid":
        location.append("type")
        message = f"found {shown(found.get('type'))}; allowed: {', '.join(map(repr, TYPES))}"
    elif kind in _WANTED:
        field = next((part for part in reversed(location) if isinstance(part, str)), "")
        example = f" such as {_EXAMPLES[field]}" if field in _EXAMPLES else ""
        message = f"found {shown(found)}; allowed: {_WANTED[kind]}{example}"
    elif kind != "value_error":
        message = f"found {shown(found)}; {message[0].lower()}{message[1:]}"
    named = (f"[{part}]" if isinstance(part, int) else f".{cut(part, MAX_NAME)}" for part in location)
    return Problem("".join(named).lstrip(".") or "(manifest)", cut(message, MAX_PROBLEM))


def _is_union_branch(part: int | str) -> bool:
    """pydantic adds the tried type to the path of a union's errors ("tuple[Step, ...]", "str", "mipro")."""
    return isinstance(part, str) and (part in {*_BRANCHES, *TYPES} or "[" in part)


def _unknown_field(above: list[int | str], name: str) -> str:
    """What to say of `name`, which the object at the path `above` does not have."""
    model: Any = OptimizationRun
    for part in above:
        if part in TYPES:
            model = TYPES[str(part)]
        elif not isinstance(part, int) and not _is_union_branch(part):
            model = _field_model(model, part)
        if model is None:
            return "unknown field"
    allowed = _names(model)
    owners = [kind for kind, other in TYPES.items() if name in _names(other)]
    if owners and model in TYPES.values():
        chosen = next(kind for kind, other in TYPES.items() if other is model)
        here = f"{chosen} (the default)" if chosen == next(iter(TYPES)) else chosen
        *more, last = owners
        named = f"{', '.join(more)} or {last}" if more else last
        return f"belongs to type {named}; the type here is {here}: write type: {owners[0]}, or remove it"
    return _suggest(name, allowed)


def _names(model: Any) -> list[str]:
    return sorted(field.alias or name for name, field in model.model_fields.items())


def _suggest(name: str, allowed: list[str]) -> str:
    close = difflib.get_close_matches(name, allowed, n=1)
    hint = f"did you mean {close[0]}? " if close else ""
    return f"unknown field; {hint}allowed: {', '.join(allowed)}"


def _field_model(model: Any, part: str) -> Any:
    for name, field in model.model_fields.items():
        if part in (name, field.alias):
            return _model_in(field.annotation)
    return None


def _model_in(annotation: Any) -> Any:
    if isinstance(annotation, type) and issubclass(annotation, Model):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        found = _model_in(argument)
        if found is not None:
            return found
    return None
