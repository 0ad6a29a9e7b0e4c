"""`tandem submit`: a manifest becomes a run on a cluster."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tandem_api.errors import ConfigurationError
from tandem_api.v1alpha1 import OptimizationRun
from tandem_api.v1alpha1.spec import MUTABLE_FIELDS
from tandem_operator.cli.cluster.access import Access, connect
from tandem_operator.cli.cluster.client import Cluster, Resource
from tandem_operator.cli.cluster.failures import AlreadyExistsError
from tandem_operator.cli.cluster.resource import read
from tandem_operator.cli.invocation import program
from tandem_operator.cli.manifest import parse_for_cluster, read_manifest

#: Given by the API server; a manifest that was read from a cluster has them.
_GIVEN = frozenset(
    {"uid", "resourceVersion", "generation", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds"}
    | {"managedFields", "selfLink"}
)


@dataclass(frozen=True)
class Submitted:
    """The run on the cluster."""

    cluster: Cluster
    namespace: str
    name: str
    resource: Resource
    """As the API server has it."""
    is_new: bool
    """False: the same run was there already."""


def submit(file: Path, access: Access, *, dry_run: bool = False) -> Submitted:
    """Create the run, or find it there with the same spec; with `dry_run` only ask whether that would do.

    Raises ConfigurationError with everything that is wrong in the manifest before the cluster is asked, and with what
    the cluster says after.
    """
    manifest = read_manifest(file)
    run = parse_for_cluster(manifest)
    named = manifest.document["metadata"].get("namespace")
    if named is not None and access.namespace not in (None, named):
        raise ConfigurationError(
            f"{file} names the namespace {named!r} in metadata.namespace, and -n names {access.namespace!r}; "
            "leave one of them out"
        )
    cluster = connect(access.kubeconfig, access.context)
    namespace = access.namespace or named or cluster.namespace
    resource = without_given(manifest.document, namespace)
    options = access.at(namespace).arguments
    stored, is_new = create(cluster, namespace, resource, run, options, file, dry_run=dry_run)
    return Submitted(cluster, namespace, run.metadata.name, stored, is_new)


def create(
    cluster: Cluster,
    namespace: str,
    resource: Resource,
    run: OptimizationRun,
    options: str,
    file: Path | None = None,
    *,
    dry_run: bool = False,
) -> tuple[Resource, bool]:
    """Create the `run` that `resource` is, or find it there with the same spec: what is stored, and whether it is new.
    `options`: those that name the place, and `file`: what it was read from, for advice. With `dry_run` nothing is
    stored. Raises AlreadyExistsError when another one has its name."""
    name = run.metadata.name
    try:
        return cluster.create(namespace, resource, dry_run=dry_run), True
    except AlreadyExistsError:
        stored = cluster.get(namespace, name)
        _require_same(stored, run, namespace, options, file)
        return stored, False


def without_given(document: dict[str, Any], namespace: str) -> Resource:
    """What is sent: what the user wrote, without what only the cluster can know."""
    metadata = {key: value for key, value in document["metadata"].items() if key not in _GIVEN}
    return {
        "apiVersion": document["apiVersion"],
        "kind": document["kind"],
        "metadata": {**metadata, "namespace": namespace},
        "spec": document["spec"],
    }


def _require_same(stored: Resource, wanted: OptimizationRun, namespace: str, options: str, file: Path | None) -> None:
    """Raises AlreadyExistsError unless the stored run is the wanted one."""
    name = wanted.metadata.name
    if stored["metadata"].get("deletionTimestamp"):
        raise AlreadyExistsError(
            f"a run {name!r} in namespace {namespace} is being deleted; try again when it is gone "
            f"(kubectl wait --for=delete optimizationrun/{name}{options}), or choose another name"
        )
    before, after = read(stored).spec.to_json(), wanted.spec.to_json()
    changed = sorted(field for field in {*before, *after} if before.get(field) != after.get(field))
    if not changed:
        return
    can_change = file is not None and set(changed) <= MUTABLE_FIELDS
    hint = f" (kubectl apply -f {file}{options} changes that)" if can_change else ""
    raise AlreadyExistsError(
        f"a run {name!r} exists already in namespace {namespace}, and its spec differs in "
        f"{', '.join(f'spec.{field}' for field in changed)}{hint}; {program()} cancel {name}{options} first, "
        "or choose another name"
    )
