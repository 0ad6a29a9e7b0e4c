"""The spec that counts: the one with which a run began, kept in a ConfigMap, and what may be changed of it since."""

from __future__ import annotations

import json
from typing import Any

from tandem_api.canonical import canonical_json
from tandem_api.v1alpha1 import OptimizationRun, Spec
from tandem_api.v1alpha1.run import ManifestError, Problem, forbidden_changes, parse_run
from tandem_api.v1alpha1.spec import MUTABLE_FIELDS
from tandem_operator.platforms.kubernetes import jobsets, names
from tandem_operator.platforms.kubernetes.children import Children, RefusedError, refusals
from tandem_operator.platforms.kubernetes.manifest import cluster_problems

_OTHER_VERSION = Problem("spec", "another version of the operator has accepted this run, and this one cannot read it")
_NO_JOBSET = Problem(
    "spec.training.backend",
    f"found 'jobset', but the cluster does not serve {jobsets.API_VERSION}; install JobSet "
    "(https://jobset.sigs.k8s.io) and create the run again, or write backend: job and nodes: 1",
)


class InvalidRunError(Exception):
    """The stored resource cannot be carried out: everything that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(map(str, problems)))


def load(children: Children, training_default: dict[str, Any]) -> tuple[OptimizationRun, list[Problem]]:
    """The run with the spec that counts, and the changes of it that came too late.

    The first look accepts the spec. `training_default`: the resources of a training that names none. Raises
    InvalidRunError, and RefusedError where the accepted spec cannot be kept.
    """
    raw, accepted = children.raw, _accepted(children)
    problems: list[Problem] = []
    try:
        run = parse_run(raw)
        problems = cluster_problems(run, training_default)
    except ManifestError as error:
        run, problems = None, error.problems
    if accepted is None:
        if run is None or problems:
            raise InvalidRunError(problems)
        if run.spec.training.backend == "jobset" and not children.client.serves(names.JOBSET):
            raise InvalidRunError([_NO_JOBSET])
        _accept(children, run)
        return run, []
    if run is None:
        # What was accepted goes on; what has become of the manifest since is told, and changes nothing.
        # Whether it is held is heeded all the same: a suspended run must not go on because of a mistake elsewhere.
        suspend = raw["spec"].get("suspend", False)
        held = {"suspend": suspend} if isinstance(suspend, bool) else {}
        try:
            return parse_run({**raw, "spec": {**accepted.to_json(), **held}}), problems
        except ManifestError as error:  # then it is the status that cannot be read
            raise InvalidRunError([_OTHER_VERSION, *error.problems]) from error
    kept = {alias: value for alias, value in accepted.to_json().items() if alias not in MUTABLE_FIELDS}
    new = {alias: value for alias, value in run.spec.to_json().items() if alias in MUTABLE_FIELDS}
    counts = run.model_copy(update={"spec": Spec.model_validate({**kept, **new})})
    return counts, forbidden_changes(accepted, run.spec)


def _accepted(children: Children) -> Spec | None:
    """The spec with which the run began; None before that."""
    stored = children.get("ConfigMap", names.spec_name(children.name), may_be_late=True)  # it never changes
    if stored is None:
        return None
    try:
        return parse_run({**children.raw, "spec": json.loads(stored["data"]["spec.json"]), "status": {}}).spec
    except ManifestError as error:
        raise InvalidRunError([_OTHER_VERSION, *error.problems]) from error


def _accept(children: Children, run: OptimizationRun) -> None:
    name = names.spec_name(children.name)
    body = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": names.child(run, name, "run", children.owner()),
        "immutable": True,
        "data": {"spec.json": canonical_json(run.spec.to_json())},
    }
    try:
        with refusals("SpecRefused", f"the ConfigMap {name} with the spec that was accepted"):
            children.create(body)
    except RefusedError as error:
        if error.blocked.reason != "NameTaken":
            raise
        raise InvalidRunError([Problem("metadata.name", error.blocked.message)]) from error
