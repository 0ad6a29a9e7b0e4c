"""What a manifest means on one machine: where its files lie, and which changes a run that has begun can take over."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tandem_api.contract import ENV_MLFLOW
from tandem_api.errors import ConfigurationError
from tandem_api.v1alpha1 import OptimizationRun, Spec, Status
from tandem_api.v1alpha1.infrastructure import MLflow
from tandem_api.v1alpha1.prompt_optimizers import DemoSearch, DspyOptimizer
from tandem_api.v1alpha1.run import ManifestError, Problem
from tandem_api.v1alpha1.spec import MUTABLE_FIELDS
from tandem_api.v1alpha1.task import Code, Split
from tandem_operator.platforms.other_models import OtherModel, other_models, prompt_optimizers

_CLUSTER_SCHEMES = ("configmap:", "pvc:")
_FORMATS = (".jsonl", ".json", ".csv")


def resolve(run: OptimizationRun, folder: Path) -> OptimizationRun:
    """The run with every `file:` address absolute (relative ones start at the manifest's `folder`), and with that
    folder as its code where it has entry points and says nothing else. Raises ManifestError."""
    spec, problems = run.spec, list[Problem]()

    def absolute(path: str, uri: str) -> str:
        if not uri.startswith("file:"):
            return uri
        try:
            return local_path(uri, folder).as_uri()
        except ValueError as error:
            problems.append(Problem(path, str(error)))
            return uri

    splits: dict[str, Split] = {}
    for name, split in _splits(run):
        splits[name] = split.model_copy(update={"uri": absolute(f"spec.data.{name}.uri", split.uri)})
    program = spec.program
    if program.code is not None:
        code = program.code.model_copy(update={"uri": absolute("spec.program.code.uri", program.code.uri)})
        program = program.model_copy(update={"code": code})
    elif _has_entry_points(spec):
        program = program.model_copy(update={"code": Code(uri=folder.resolve().as_uri())})
    model = spec.model.model_copy(update={"uri": absolute("spec.model.uri", spec.model.uri)})
    if problems:
        raise ManifestError(problems)
    data = spec.data.model_copy(update=splits)
    return run.model_copy(update={"spec": spec.model_copy(update={"data": data, "program": program, "model": model})})


def _has_entry_points(spec: Spec) -> bool:
    """Whether anything of the run is code that the manifest names."""
    if spec.program.entrypoint is not None or spec.metric.entrypoint is not None:
        return True
    chosen = [settings for _, settings in prompt_optimizers(spec)]
    teachers = [settings.teacher for settings in chosen if isinstance(settings, DemoSearch)]
    classes = [settings.class_name for settings in chosen if isinstance(settings, DspyOptimizer)]
    has_teacher = any(teacher is not None and teacher.entrypoint is not None for teacher in teachers)
    return has_teacher or any(":" in name for name in classes)


def local_path(uri: str, folder: Path) -> Path:
    """The path that a `file:` address names; a relative one starts at `folder`. Raises ValueError."""
    path = uri.removeprefix("file:")
    if path.startswith("//"):
        host, slash, rest = path[2:].partition("/")
        if host not in ("", "localhost") or not slash:
            raise ValueError(
                f"found {uri!r}, which names the host {host!r}; write file:{path[2:]} for a path that starts at the "
                "manifest's folder, or file:///... for an absolute one"
            )
        path = f"/{rest}"
    return (folder / Path(unquote(path)).expanduser()).resolve()


def missing_files(run: OptimizationRun) -> list[Problem]:
    """What a resolved run names on this machine's disk that is not there."""
    problems = []
    for name, split in _splits(run):
        if not split.uri.startswith("file:"):
            continue
        path = local_path(split.uri, Path("/"))
        where = f"spec.data.{name}.uri"
        if not path.is_file():
            state = "is a folder" if path.is_dir() else "does not exist"
            problems.append(Problem(where, f"{path} {state}; a file is needed ({', '.join(_FORMATS)})"))
        elif path.suffix.lower() not in _FORMATS:
            problems.append(Problem(where, f"found {path.name!r}; allowed: a name that ends in {', '.join(_FORMATS)}"))
    code = run.spec.program.code
    if code is not None and code.uri.startswith("file:") and not local_path(code.uri, Path("/")).is_dir():
        where = f"{local_path(code.uri, Path('/'))} is not a folder"
        problems.append(Problem("spec.program.code.uri", f"{where}; the code's folder is needed"))
    model = run.spec.model.uri
    if model.startswith("file:") and not local_path(model, Path("/")).exists():
        problems.append(Problem("spec.model.uri", f"{local_path(model, Path('/'))} does not exist"))
    return problems


def cluster_only(run: OptimizationRun) -> list[Problem]:
    """What a run asks for that only a cluster has."""
    code = run.spec.program.code
    named = [(f"spec.data.{name}.uri", split.uri) for name, split in _splits(run)]
    named += [("spec.model.uri", run.spec.model.uri), *([("spec.program.code.uri", code.uri)] if code else [])]
    return [
        Problem(path, f"found {uri!r}, which only a cluster has; on one machine write file:PATH")
        for path, uri in named
        if uri.startswith(_CLUSTER_SCHEMES)
    ]


def missing_keys(run: OptimizationRun, environment: Mapping[str, str]) -> list[Problem]:
    """Keys of other models, and the account at MLflow, that the run needs and `environment` does not hold, or cannot
    hold: it has one for all proposers and one for all teachers, and none may go to a host that it is not meant for."""
    models = [model for model in other_models(run.spec) if model.key_secret is not None]
    problems = [
        Problem(
            f"{model.path}.keySecret",
            f"found {model.key_secret!r}, but {model.variable} is not set; on one machine the key comes from there: "
            f"export {model.variable}, or remove keySecret if {model.url} takes no key",
        )
        for model in models
        if not environment.get(model.variable)
    ]
    problems += _missing_account(run.spec.mlflow, environment)
    first: dict[str, OtherModel] = {}
    for model in models:
        other = first.setdefault(model.variable, model)
        if (other.url, other.key_secret) != (model.url, model.key_secret):
            role = model.path.rpartition(".")[2]
            text = (
                f"on one machine all {role}s share {model.variable}; found {model.url} with keySecret "
                f"{model.key_secret!r}, and at {other.path} {other.url} with keySecret {other.key_secret!r}; use one "
                "address and one key, or a cluster"
            )
            problems.append(Problem(f"{model.path}.keySecret", text))
    return problems


def _missing_account(mlflow: MLflow | None, environment: Mapping[str, str]) -> list[Problem]:
    """What is missing of the account at MLflow: a user and a password, or a token."""
    if mlflow is None or mlflow.credentials_secret is None:
        return []
    user, password, token = ENV_MLFLOW
    if environment.get(token) or (environment.get(user) and environment.get(password)):
        return []
    text = (
        f"found {mlflow.credentials_secret!r}, but neither {token} nor {user} and {password} are set; on one machine "
        f"the account comes from there: export them, or remove credentialsSecret if {mlflow.uri} asks for none"
    )
    return [Problem("spec.tracking.mlflow.credentialsSecret", text)]


def without_effect(run: OptimizationRun) -> list[str]:
    """Fields that are given and mean nothing on one machine."""
    spec = run.spec
    given = {
        "spec.queue": spec.queue is not None,
        "spec.priorityClass": spec.priority_class is not None,
        "spec.ttlSecondsAfterFinished": spec.ttl_seconds_after_finished is not None,
        "spec.serving.replicas": spec.serving.replicas > 1,
        "spec.training.nodes": spec.training.nodes > 1,
    }
    return [path for path, is_given in given.items() if is_given]


def adopt(stored: OptimizationRun | None, wanted: OptimizationRun, uid: str) -> OptimizationRun:
    """The resource to go on with: a new one with this `uid`, or the stored one with the changes that it can take over,
    as an API server would. Raises ConfigurationError that names each field that cannot be changed any more."""
    if stored is None:
        metadata = wanted.metadata.model_copy(update={"uid": uid, "generation": 1})
        return wanted.model_copy(update={"metadata": metadata, "status": Status()})
    old, new = stored.spec.to_json(), wanted.spec.to_json()
    fixed = [
        *_differences("metadata.name", stored.metadata.name, wanted.metadata.name),
        *_differences("metadata.namespace", stored.metadata.namespace, wanted.metadata.namespace),
    ]
    for field in sorted({*old, *new} - MUTABLE_FIELDS):
        fixed += _differences(f"spec.{field}", old.get(field), new.get(field))
    if fixed:
        raise ConfigurationError(
            "this folder holds a run that has begun, and a run's spec cannot be changed except for "
            f"{', '.join(sorted(MUTABLE_FIELDS))}:\n"
            + "\n".join(f"  {text}" for text in fixed[:10])
            + "\nUse another --workdir."
        )
    changed = old != new
    metadata = stored.metadata.model_copy(
        update={
            "generation": stored.metadata.generation + changed,
            "labels": wanted.metadata.labels,
            "annotations": wanted.metadata.annotations,
        }
    )
    return stored.model_copy(update={"metadata": metadata, "spec": wanted.spec})


def _splits(run: OptimizationRun) -> list[tuple[str, Split]]:
    data = run.spec.data
    splits = (("train", data.train), ("validation", data.validation), ("test", data.test))
    return [(name, split) for name, split in splits if split is not None]


def _differences(path: str, old: Any, new: Any) -> list[str]:
    """Each leaf that differs, with both values."""
    if old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            text for key in sorted({*old, *new}) for text in _differences(f"{path}.{key}", old.get(key), new.get(key))
        ]
    return [f"{path}: the run began with {_short(old)}, the manifest says {_short(new)}"]


def _short(value: Any) -> str:
    text = "nothing" if value is None else repr(value)
    return text if len(text) <= 120 else f"{text[:117]}..."
