"""A small client for the tests themselves: one call, one request, straight to the API server, as administrator."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Final
from urllib.parse import quote, urlencode

import urllib3

from tandem_api.v1alpha1.crd import PLURAL
from tandem_api.v1alpha1.run import GROUP, KIND, VERSION

Object = dict[str, Any]

#: (group and version, plural, whether it lies in a namespace) by kind.
KINDS: Final[dict[str, tuple[str, str, bool]]] = {
    KIND: (f"{GROUP}/{VERSION}", PLURAL, True),
    "ConfigMap": ("v1", "configmaps", True),
    "Event": ("v1", "events", True),
    "Namespace": ("v1", "namespaces", False),
    "Node": ("v1", "nodes", False),
    "Pod": ("v1", "pods", True),
    "ResourceQuota": ("v1", "resourcequotas", True),
    "Secret": ("v1", "secrets", True),
    "Service": ("v1", "services", True),
    "ServiceAccount": ("v1", "serviceaccounts", True),
    "Deployment": ("apps/v1", "deployments", True),
    "ReplicaSet": ("apps/v1", "replicasets", True),
    "Job": ("batch/v1", "jobs", True),
    "Lease": ("coordination.k8s.io/v1", "leases", True),
    "NetworkPolicy": ("networking.k8s.io/v1", "networkpolicies", True),
    "ClusterRole": ("rbac.authorization.k8s.io/v1", "clusterroles", False),
    "ClusterRoleBinding": ("rbac.authorization.k8s.io/v1", "clusterrolebindings", False),
    "Role": ("rbac.authorization.k8s.io/v1", "roles", True),
    "RoleBinding": ("rbac.authorization.k8s.io/v1", "rolebindings", True),
    "CustomResourceDefinition": ("apiextensions.k8s.io/v1", "customresourcedefinitions", False),
}
MERGE, APPLY = "application/merge-patch+json", "application/apply-patch+yaml"


class ApiError(Exception):
    """The API server's refusal."""

    def __init__(self, status: int, body: str) -> None:
        self.status = status
        self.body = body
        super().__init__(f"{status}: {body[:500]}")


def path_of(kind: str, namespace: str = "", name: str = "", subresource: str = "") -> str:
    """Where a kind, or one object, lies."""
    version, plural, is_namespaced = KINDS[kind]
    parts = ["api" if "/" not in version else "apis", version]
    parts += ["namespaces", namespace] if is_namespaced and namespace else []
    return "/" + "/".join([*parts, plural, *filter(None, (name, subresource))])


class Api:
    """Calls to one API server with a bearer token. Safe to use from several threads."""

    def __init__(self, url: str, token: str) -> None:
        self.url = url
        self.token = token
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
        # The server's certificate is one of its own making.
        self._pool = urllib3.PoolManager(maxsize=16, cert_reqs="CERT_NONE", retries=False, timeout=30)

    def call(self, method: str, path: str, body: Any = None, *, content: str = "application/json") -> Any:
        """One request; its answer as JSON. Raises ApiError, or urllib3's errors."""
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": content, "User-Agent": "tests"}
        data = json.dumps(body).encode() if body is not None else None
        answer = self._pool.request(method, self.url + path, body=data, headers=headers)
        text = answer.data.decode()
        if answer.status >= 400:
            raise ApiError(answer.status, text)
        return json.loads(text) if text.startswith("{") else text

    def get(self, kind: str, namespace: str, name: str) -> Object | None:
        """An object, or None."""
        try:
            found: Object = self.call("GET", path_of(kind, namespace, name))
        except ApiError as error:
            if error.status == 404:
                return None
            raise
        return found

    def list(self, kind: str, namespace: str = "", labels: str = "") -> list[Object]:
        """All objects of a kind, of all namespaces without one, with these labels."""
        query = f"?{urlencode({'labelSelector': labels})}" if labels else ""
        items: list[Object] = self.call("GET", path_of(kind, namespace) + query)["items"]
        return [{"kind": kind, **item} for item in items]

    def create(self, *bodies: Object) -> Object:
        """Create objects; the last one as it is stored."""
        created: Object = {}
        for body in bodies:
            created = self.call("POST", path_of(body["kind"], body["metadata"].get("namespace", "")), body)
        return created

    def create_all(self, bodies: Iterable[Object]) -> None:
        """Create what is not there yet."""
        for body in bodies:
            try:
                self.create(body)
            except ApiError as error:
                if error.status != 409:
                    raise

    def patch(self, kind: str, namespace: str, name: str, patch: Any, *, subresource: str = "") -> Object:
        """A JSON merge patch."""
        changed: Object = self.call("PATCH", path_of(kind, namespace, name, subresource), patch, content=MERGE)
        return changed

    def apply(self, body: Object, manager: str = "tests") -> Object:
        """Server-side apply, by force."""
        metadata = body["metadata"]
        path = path_of(body["kind"], metadata.get("namespace", ""), metadata["name"])
        applied: Object = self.call("PATCH", f"{path}?fieldManager={quote(manager)}&force=true", body, content=APPLY)
        return applied

    def replace(self, body: Object, *, subresource: str = "") -> Object:
        """Store an object as it is given; refused when its resourceVersion is not the stored one."""
        metadata = body["metadata"]
        path = path_of(body["kind"], metadata.get("namespace", ""), metadata["name"], subresource)
        stored: Object = self.call("PUT", path, body)
        return stored

    def delete(self, kind: str, namespace: str, name: str, **options: Any) -> bool:
        """Delete an object; `options` are those of DeleteOptions. Whether it was there."""
        try:
            self.call("DELETE", path_of(kind, namespace, name), options or None)
        except ApiError as error:
            if error.status == 404:
                return False
            raise
        return True
