"""Looks at a cluster. Nothing is created or changed; what cannot be seen is noted with the reason."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.parse import quote

import yaml

from tandem_api.errors import TandemError
from tandem_operator.cli.cluster.client import RUNS_API, Cluster, Resource
from tandem_operator.cli.cluster.doctor.needs import Needed, Needs, needs_of
from tandem_operator.cli.cluster.failures import AlreadyExistsError
from tandem_operator.platforms.kubernetes.names import APP_NAME, COMPONENT, MANAGED_BY

#: At once: an API server limits what one user may ask, and a laptop is far from it.
_THREADS = 8
_LEASE = "tandem-operator"
_OPERATOR = f"{APP_NAME}=tandem,{COMPONENT}=operator"
_CRD = "optimizationruns.tandem.dev"
_K = TypeVar("_K")
_T = TypeVar("_T")


@dataclass(frozen=True)
class Unseen:
    """What could not be looked at."""

    why: str


@dataclass(frozen=True)
class Right:
    """Something that a command of ours does."""

    verb: str
    resource: str
    group: str = ""

    def __str__(self) -> str:
        return f"{self.verb} {self.resource}{f'.{self.group}' if self.group else ''}"


READ = (
    *(Right(verb, "optimizationruns", "tandem.dev") for verb in ("get", "list", "watch")),
    *(Right(verb, resource) for resource, verb in (("pods", "get"), ("pods", "list"), ("pods/log", "get"))),
    *(Right(verb, "events") for verb in ("list", "watch")),
)
WRITE = tuple(Right(verb, "optimizationruns", "tandem.dev") for verb in ("create", "patch", "delete"))


@dataclass(frozen=True)
class Operators:
    """The operator as far as it can be seen."""

    namespace: str | None = None
    """Where it is; None: it was found nowhere."""
    pods: list[Resource] | Unseen = field(default_factory=list)
    settings: dict[str, Any] = field(default_factory=dict)
    """Empty: not seen."""
    lease: Resource | Unseen | None = None


@dataclass(frozen=True)
class Facts:
    """Everything that the checks read. Of an object None says that there is none."""

    server: str
    namespace: str
    now: datetime
    version: Resource
    answer_seconds: float
    place: Resource | Unseen | None
    """The namespace."""
    rights: dict[Right, bool | Unseen]
    served: Resource | Unseen | None
    """Of tandem.dev/v1alpha1."""
    definition: Resource | Unseen | None
    operators: Operators
    nodes: list[Resource] | Unseen
    pods: list[Resource] | Unseen
    """Tandem's own in the namespace."""
    dns: list[Resource] | Unseen
    """The endpoints of the cluster's DNS."""
    groups: frozenset[str]
    quotas: list[Resource] | Unseen
    needs: Needs | None = None
    """Of the manifest; None: none was given."""
    objects: dict[Needed, Resource | Unseen | None] = field(default_factory=dict)
    accepted: str | None = None
    """Why the API server would not take the manifest; empty: it would. None: not asked."""


def gather(cluster: Cluster, namespace: str, operator_namespace: str | None, manifest: Resource | None) -> Facts:
    """Look at everything. Raises TandemError when the API server cannot be asked at all."""
    began = time.monotonic()
    with cluster.asking("get", "version", None):
        version: Resource = cluster.api.get("/version")
    seconds = time.monotonic() - began
    look = Looker(cluster)
    groups = look.get("/apis")
    place = f"/api/v1/namespaces/{quote(namespace)}"
    operators = look.operators(operator_namespace)
    needs = needs_of(manifest["spec"], operators.settings) if manifest is not None else None
    objects = needs.objects if needs is not None else ()
    ours = f"{MANAGED_BY}=tandem-operator,{APP_NAME}=tandem"
    with ThreadPoolExecutor(_THREADS) as pool:
        rights = each(pool, (*READ, *WRITE), lambda right: look.may(namespace, right))
        found = each(pool, objects, lambda one: look.get(f"{place}/{one.kind}/{quote(one.name)}"))
        return Facts(
            server=cluster.server,
            namespace=namespace,
            now=datetime.now(UTC),
            version=version,
            answer_seconds=seconds,
            place=look.get(place),
            rights=rights,
            served=look.get(RUNS_API),
            definition=look.get(f"/apis/apiextensions.k8s.io/v1/customresourcedefinitions/{_CRD}"),
            operators=operators,
            nodes=look.list("/api/v1/nodes"),
            pods=look.list(f"{place}/pods", labelSelector=ours),
            dns=look.list("/api/v1/namespaces/kube-system/endpoints", labelSelector="k8s-app=kube-dns"),
            groups=frozenset(g["name"] for g in groups.get("groups") or [])
            if isinstance(groups, dict)
            else frozenset(),
            quotas=look.list(f"{place}/resourcequotas"),
            needs=needs,
            objects=found,
            accepted=look.dry_run(namespace, manifest) if manifest is not None else None,
        )


class Looker:
    """Asks, and takes a refusal for an answer."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    def get(self, path: str, **query: Any) -> Resource | Unseen | None:
        """What is there; None: nothing."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        try:
            found: Resource = self._cluster.api.get(path, query)
        except ApiException as error:
            if error.status == 404:
                return None
            return Unseen("you may not" if error.status == 403 else f"the API server answers {error.status}")
        except (HTTPError, ValueError) as error:
            return Unseen(str(error)[:200])
        return found

    def list(self, path: str, **query: Any) -> list[Resource] | Unseen:
        """All that is there."""
        found = self.get(path, **query)
        if isinstance(found, Unseen):
            return found
        return [] if found is None else found.get("items") or []

    def may(self, namespace: str, right: Right) -> bool | Unseen:
        """Whether the user may do that."""
        from kubernetes.client import ApiException
        from urllib3.exceptions import HTTPError

        resource, _, sub = right.resource.partition("/")
        attributes = {"namespace": namespace, "verb": right.verb, "group": right.group, "resource": resource}
        body = {
            "apiVersion": "authorization.k8s.io/v1",
            "kind": "SelfSubjectAccessReview",
            "spec": {"resourceAttributes": {**attributes, **({"subresource": sub} if sub else {})}},
        }
        path = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
        try:
            return bool(self._cluster.api.send("POST", path, body)["status"].get("allowed"))
        except (ApiException, HTTPError, ValueError, KeyError) as error:
            return Unseen(str(getattr(error, "reason", None) or error)[:200])

    def operators(self, namespace: str | None) -> Operators:
        """The operator in that namespace, or wherever one is."""
        place = f"/api/v1/namespaces/{quote(namespace)}" if namespace is not None else "/api/v1"
        pods = self.list(f"{place}/pods", labelSelector=_OPERATOR)
        configured = self.list(f"{place}/configmaps", labelSelector=_OPERATOR)
        seen = [*(configured if isinstance(configured, list) else []), *(pods if isinstance(pods, list) else [])]
        where = namespace or next((str(thing["metadata"]["namespace"]) for thing in seen), None)
        settings: dict[str, Any] = {}
        if isinstance(configured, list) and configured:
            settings = _settings(configured[0])
        lease: Resource | Unseen | None = None
        if where is not None:
            name = (settings.get("lease") or {}).get("name") or _LEASE
            lease = self.get(f"/apis/coordination.k8s.io/v1/namespaces/{quote(where)}/leases/{quote(name)}")
        return Operators(where, pods, settings, lease)

    def dry_run(self, namespace: str, manifest: Resource) -> str:
        """Why the API server would not take the manifest; empty: it would, or has it already."""
        try:
            self._cluster.create(namespace, manifest, dry_run=True)
        except AlreadyExistsError:
            return ""
        except TandemError as error:
            return str(error)
        return ""


def each(pool: Executor, keys: Iterable[_K], look: Callable[[_K], _T]) -> dict[_K, _T]:
    """What `look` finds for each key."""
    keys = list(keys)
    return dict(zip(keys, pool.map(look, keys), strict=True))


def _settings(configured: Resource) -> dict[str, Any]:
    try:
        found = yaml.safe_load((configured.get("data") or {}).get("settings.yaml") or "")
    except yaml.YAMLError:
        return {}
    return found if isinstance(found, dict) else {}
