"""The few calls that the operator makes to the API server, on plain values, over the official dynamic client.

Reads are never served from a cache, but for lists that may be: what a pass decides on is what etcd holds. Errors are
the library's ApiException (`status`, `reason`), but for the answers that mean "it is so already".
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from typing import Any, Final

import kubernetes
from kubernetes.client import ApiException
from kubernetes.dynamic import DynamicClient
from kubernetes.dynamic.resource import Resource

from tandem_api.v1alpha1.crd import PLURAL
from tandem_api.v1alpha1.run import GROUP, KIND, VERSION
from tandem_operator.platforms.kubernetes.calls import Hear, HeardRest
from tandem_operator.platforms.kubernetes.names import FIELD_MANAGER, JOBSET

Object = dict[str, Any]

#: (group, version, plural) by kind. Said here, so that nothing has to be discovered and no file is cached.
_KINDS: Final = {
    KIND: (GROUP, VERSION, PLURAL),
    "Deployment": ("apps", "v1", "deployments"),
    "Job": ("batch", "v1", "jobs"),
    "NetworkPolicy": ("networking.k8s.io", "v1", "networkpolicies"),
    "Pod": ("", "v1", "pods"),
    "Service": ("", "v1", "services"),
    "ConfigMap": ("", "v1", "configmaps"),
    "Event": ("", "v1", "events"),
    JOBSET: ("jobset.x-k8s.io", "v1alpha2", "jobsets"),
}
_CONNECT_SECONDS, _READ_SECONDS = 5, 30
FORBIDDEN, NOT_FOUND, CONFLICT = 403, 404, 409


class NotLeadingError(Exception):
    """This process may not write any more: another one leads."""


class Client:
    """Calls to one API server. Safe to use from several threads."""

    def __init__(self, api: kubernetes.client.ApiClient, may_write: Callable[[], bool] = lambda: True) -> None:
        """`may_write` is asked right before each write: a process that was paused must not go on where it was."""
        self._api = api
        self._may_write = may_write
        self._dynamic = DynamicClient(api, discoverer=lambda client, cache_file: None)
        self._resources = {kind: self._resource(kind, *where) for kind, where in _KINDS.items()}

    def get(self, kind: str, namespace: str, name: str, *, may_be_late: bool = False) -> Object | None:
        """The object as it is stored now, or None when there is none. With `may_be_late` as the API server has seen it
        last, which is as a rule the same, and costs no look at what is stored."""
        version = "0" if may_be_late else None
        try:
            return self._plain(
                self._dynamic.get(self._resources[kind], name, namespace, resource_version=version, **_OPTIONS)
            )
        except ApiException as error:
            if error.status == NOT_FOUND:
                return None
            raise

    def list(
        self,
        kind: str,
        namespace: str,
        *,
        labels: dict[str, str] | None = None,
        fields: str | None = None,
        none_if: Collection[int] = (),
        may_be_late: bool = False,
    ) -> list[Object]:
        """All objects of a kind with these labels; none where the server answers with one of the statuses `none_if`.

        Without `may_be_late` an API server before 1.31 reads all objects of the namespace for it, those of other runs,
        too. With it the answer comes out of what the server has watched, as what other operators decide on does.
        """
        selector = ",".join(f"{key}={value}" for key, value in (labels or {}).items()) or None
        try:
            answer = self._dynamic.get(
                self._resources[kind],
                namespace=namespace,
                label_selector=selector,
                field_selector=fields,
                resource_version="0" if may_be_late else None,
                **_OPTIONS,
            )
        except ApiException as error:
            if error.status in none_if:
                return []
            raise
        found = self._plain(answer)
        return [{"apiVersion": found["apiVersion"], "kind": kind, **item} for item in found.get("items") or []]

    def create(self, body: Object) -> bool:
        """Create an object; whether it was not there yet."""
        self._check_lead()
        try:
            self._dynamic.create(
                self._resources[body["kind"]], body, _namespace(body), field_manager=FIELD_MANAGER, **_OPTIONS
            )
        except ApiException as error:
            if error.status == CONFLICT and "AlreadyExists" in str(error.body):
                return False
            raise
        return True

    def apply(self, body: Object) -> Object:
        """Server-side apply under our field manager; our fields are taken back from whoever changed them."""
        self._check_lead()
        answer = self._dynamic.server_side_apply(
            self._resources[body["kind"]],
            body,
            namespace=_namespace(body),
            field_manager=FIELD_MANAGER,
            force_conflicts=True,
            **_OPTIONS,
        )
        return self._plain(answer)

    def patch(self, kind: str, namespace: str, name: str, patch: Object) -> bool:
        """A JSON merge patch; whether there was such an object."""
        self._check_lead()
        try:
            self._dynamic.patch(
                self._resources[kind],
                patch,
                name,
                namespace,
                content_type="application/merge-patch+json",
                field_manager=FIELD_MANAGER,
                **_OPTIONS,
            )
        except ApiException as error:
            if error.status == NOT_FOUND:
                return False
            raise
        return True

    def replace_status(self, body: Object) -> Object:
        """Store an object's status, without its empty texts, which some API servers (1.20) take for null.

        Raises ApiException 409 when its `resourceVersion` is not the stored one.
        """
        self._check_lead()
        body = {**body, "status": _without_empty_texts(body["status"])}
        path = f"{self._resources[body['kind']].path(body['metadata']['name'], _namespace(body))}/status"
        return self._plain(self._dynamic.request("put", path, body=body, **_OPTIONS))

    def delete(
        self, kind: str, namespace: str, name: str, *, uid: str | None = None, propagation: str = "Background"
    ) -> bool:
        """Delete an object, with `uid` that very one; whether there was one."""
        self._check_lead()
        options: Object = {"propagationPolicy": propagation}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        try:
            self._dynamic.delete(self._resources[kind], name, namespace, body=options, **_OPTIONS)
        except ApiException as error:
            is_another = error.status == CONFLICT and uid is not None and "UID" in what_it_says(error)
            if error.status == NOT_FOUND or is_another:
                return False
            raise
        return True

    def serves(self, kind: str) -> bool:
        """Whether the server knows the kind: only what the cluster's owner has installed may be missing."""
        group, version, _ = _KINDS[kind]
        try:
            self._dynamic.request("get", f"/apis/{group}/{version}", **_OPTIONS)
        except ApiException as error:
            if error.status == NOT_FOUND:
                return False
            raise
        return True

    def version(self) -> tuple[int, int]:
        """The server's version: (1, 27)."""
        found = kubernetes.client.VersionApi(self._api).get_code(_request_timeout=(_CONNECT_SECONDS, _READ_SECONDS))
        minor = re.match(r"\d+", found.minor or "0")
        return int(found.major), int(minor[0]) if minor else 0

    def _check_lead(self) -> None:
        if not self._may_write():
            raise NotLeadingError("this process does not lead any more; nothing was written")

    def _resource(self, kind: str, group: str, version: str, plural: str) -> Resource:
        return Resource(
            prefix="apis" if group else "api",
            group=group,
            api_version=version,
            kind=kind,
            namespaced=True,
            verbs=[],
            name=plural,
            client=self._dynamic,
        )

    @staticmethod
    def _plain(answer: Any) -> Object:
        if not isinstance(answer, dict):
            raise ValueError(f"the API server answered with what is no object: {str(answer)[:200]!r}")
        return answer


def _as_it_is(_: DynamicClient, document: Any) -> Any:
    return document


#: Of every call. By default each answer is wrapped into objects, field by field, which takes as long as all the rest.
_OPTIONS: Final[dict[str, Any]] = {
    "_request_timeout": (_CONNECT_SECONDS, _READ_SECONDS),
    "serializer": _as_it_is,
}


def api_client(hear: Hear | None = None) -> kubernetes.client.ApiClient:
    """A client as the pod's service account, or else as the kubeconfig says. The token file is read again by itself.
    `hear` is told of each call, in the thread that makes it."""
    configuration = kubernetes.client.Configuration()
    try:
        kubernetes.config.load_incluster_config(client_configuration=configuration)
    except kubernetes.config.ConfigException:
        kubernetes.config.load_kube_config(client_configuration=configuration)
    # Whoever asks repeats: a call that repeats itself would last longer than its timeout.
    configuration.retries = False
    configuration.connection_pool_maxsize = 32
    client = kubernetes.client.ApiClient(configuration)
    if hear is not None:
        client.rest_client = HeardRest(configuration, hear)
    return client


def what_it_says(error: ApiException) -> str:
    """The API server's own words: no headers, no body; empty when there are none."""
    try:
        return str(json.loads(error.body or "")["message"])
    except (ValueError, TypeError, KeyError):
        return ""


def _without_empty_texts(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_empty_texts(item) for key, item in value.items() if item != ""}
    return [_without_empty_texts(item) for item in value] if isinstance(value, list) else value


def _namespace(body: Object) -> str:
    return str(body["metadata"]["namespace"])
