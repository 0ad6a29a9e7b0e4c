"""Runs on a Kubernetes cluster, with the rights of the user's kubeconfig."""

from __future__ import annotations

import shutil
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tandem.bundle import Bundle
from tandem.errors import RunGoneError
from tandem.handle import Deadline, Run, result_of
from tandem.state import State
from tandem_api.errors import ConfigurationError, TandemError
from tandem_api.v1alpha1 import OptimizationRun
from tandem_api.v1alpha1.run import ManifestError, parse_run

if TYPE_CHECKING:
    from tandem_operator.cli.cluster.client import Cluster as Api
    from tandem_operator.cli.cluster.client import Resource
    from tandem_operator.cli.cluster.resource import Outline

#: Between two looks at the clock while nothing comes.
_LOOK_SECONDS = 1.0


class Cluster:
    """A cluster and a namespace, as one user.

    Every method raises ConfigurationError for what the user must change (no kubeconfig, no right, an unknown name, a
    field that the API server refuses), and UnreachableError when the cluster does not answer.
    """

    def __init__(
        self, namespace: str | None = None, *, context: str | None = None, kubeconfig: str | Path | None = None
    ) -> None:
        """As kubectl: the kubeconfig's current context and its namespace unless said otherwise. Nothing is sent."""
        from tandem_operator.cli.cluster.access import Access, connect

        access = Access(namespace, context, Path(kubeconfig) if kubeconfig is not None else None)
        self._access = access
        self._api = connect(access.kubeconfig, access.context)
        self.namespace = namespace or self._api.namespace
        self._is_chosen = namespace is not None

    def submit(self, run: OptimizationRun) -> ClusterRun:
        """Create the run; the same again finds it. Raises ManifestError with everything that cannot work on a cluster,
        AlreadyExistsError when another run has its name."""
        from tandem_operator.cli.cluster.submit import create, without_given
        from tandem_operator.platforms.kubernetes.manifest import cluster_problems

        document = run.to_json()
        del document["status"]
        problems = cluster_problems(parse_run(document))
        if problems:
            raise ManifestError(problems)
        namespace = self._namespace_of(run)
        options = self._access.at(namespace).arguments
        created, _ = create(self._api, namespace, without_given(document, namespace), run, options)
        return ClusterRun(self._api, namespace, run.metadata.name, created["metadata"]["uid"])

    def get(self, name: str) -> ClusterRun:
        """The run of that name. Raises NoSuchObjectError, which tells similar names."""
        resource = self._api.get(self.namespace, name)
        return ClusterRun(self._api, self.namespace, name, resource["metadata"]["uid"])

    def list(self) -> tuple[State, ...]:
        """All runs of the namespace as they are now, by name. One that this version does not understand is left out,
        with a warning: it does not hide all others."""
        from tandem_operator.cli.cluster.resource import read

        found = []
        for resource in self._api.runs(self.namespace):
            try:
                found.append(State(read(resource)))
            except TandemError as error:
                warnings.warn(f"left out: {error}", stacklevel=2)
        return tuple(sorted(found, key=lambda state: state.run.metadata.name))

    def _namespace_of(self, run: OptimizationRun) -> str:
        named = run.metadata.namespace if "namespace" in run.metadata.model_fields_set else None
        if named is not None and self._is_chosen and named != self.namespace:
            raise ConfigurationError(
                f"metadata.namespace: found {named!r}, but this Cluster is of the namespace {self.namespace!r}; leave "
                "one of them out"
            )
        return named or self.namespace


class ClusterRun(Run):
    """A run on a cluster: this one, not another that is made under its name later."""

    def __init__(self, api: Api, namespace: str, name: str, uid: str) -> None:
        self._api = api
        self.namespace, self.name, self.uid = namespace, name, uid

    def state(self) -> State:
        return self._read(self._resource())

    def watch(self, timeout: float | None = None) -> Iterator[State]:
        """As of every run. A watch that the server ends, or has forgotten, is begun anew. Raises RunGoneError when the
        run is deleted, UnreachableError when the cluster does not answer for ten minutes."""
        from tandem_operator.cli.cluster.feed import Feed, Gone, Lost, Restored

        deadline = Deadline(self.name, timeout)
        state = self.state()
        yield state
        if state.has_ended:
            return
        with Feed(self._api, self.namespace, self.name) as feed:
            while not state.has_ended:
                match feed.next(deadline.step(_LOOK_SECONDS)):
                    case None | Lost() | Restored():
                        continue
                    case Gone():
                        raise self._gone()
                    case resource:
                        before, state = state, self._read(resource)
                # Each watch begins with the run as it is.
                if state != before:
                    yield state

    def suspend(self) -> None:
        self._set_suspend(True)

    def resume(self) -> None:
        self._set_suspend(False)

    def cancel(self) -> None:
        """Delete the run if it goes on. Its objects in S3 are kept or removed as spec.storage.deletionPolicy says."""
        if not self._outline().has_ended:
            self.delete()

    def delete(self) -> None:
        """Delete the resource, and with it all that runs for it. Its objects in S3 are kept or removed as
        spec.storage.deletionPolicy says."""
        from tandem_operator.cli.cluster.failures import NoSuchObjectError

        try:
            self._resource()
            self._api.delete(self.namespace, self.name, self.uid)
        except (NoSuchObjectError, RunGoneError):
            return

    def result(self, folder: str | Path | None = None, *, endpoint: str | None = None) -> Bundle:
        """The result bundle, fetched from the run's bucket with the AWS credentials of this process (the environment,
        ~/.aws, or what else boto3 finds) and verified.

        `folder`: where to put it; default results/NAME-UID. This run's own result is written anew there, and other
        files beside it stay. `endpoint`: the S3 server's address, where the one in the spec is known inside the cluster
        only. Raises ConfigurationError for a folder with anything else, and the store's errors beside those of every
        run.
        """
        from tandem_api.store import S3Store

        state = self.state()
        artifact = result_of(state)
        storage = state.run.spec.storage
        assert storage is not None  # a run on a cluster has one
        target = Path(folder) if folder is not None else Path("results") / f"{self.name}-{self.uid[:8]}"
        target = target.expanduser().absolute()
        is_there = target.exists() and (target.is_file() or any(target.iterdir()))
        if is_there and not self._is_result(target):
            raise ConfigurationError(
                f"{target} holds something else than the result of {self.name} (uid {self.uid}); choose another "
                "folder, or move that one away"
            )
        store = S3Store(urlsplit(artifact.uri).netloc, endpoint or storage.s3.endpoint, storage.s3.region)
        if not is_there:
            store.fetch_folder(artifact, target)
            return Bundle.open(target)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as fresh:
            store.fetch_folder(artifact, Path(fresh) / "result")
            shutil.copytree(Path(fresh) / "result", target, dirs_exist_ok=True)
        return Bundle.open(target)

    def _is_result(self, folder: Path) -> bool:
        """Whether that is this run's result, fetched before."""
        try:
            return Bundle.open(folder).run.metadata.uid == self.uid
        except TandemError:
            return False

    def _set_suspend(self, suspend: bool) -> None:
        run = self._outline()
        if run.has_ended:
            verb = "suspend" if suspend else "resume"
            raise ConfigurationError(f"{self.name} has ended ({run.phase}); there is nothing to {verb}")
        if run.is_suspended != suspend:
            # The uid is a condition: the API server refuses to change another run of this name.
            changes: dict[str, Any] = {"metadata": {"uid": self.uid}, "spec": {"suspend": suspend}}
            self._api.patch(self.namespace, self.name, changes)

    def _resource(self) -> Resource:
        """The run as the API server has it. Raises RunGoneError."""
        from tandem_operator.cli.cluster.failures import NoSuchObjectError

        try:
            return self._own(self._api.get(self.namespace, self.name))
        except NoSuchObjectError as error:
            raise self._gone() from error

    def _outline(self) -> Outline:
        from tandem_operator.cli.cluster.resource import outline

        return outline(self._resource())

    def _read(self, resource: Resource) -> State:
        from tandem_operator.cli.cluster.resource import read

        return State(read(self._own(resource)))

    def _own(self, resource: Resource) -> Resource:
        if resource["metadata"]["uid"] != self.uid:
            raise self._gone()
        return resource

    def _gone(self) -> RunGoneError:
        return RunGoneError(f"the run {self.name!r} in namespace {self.namespace} was deleted")
