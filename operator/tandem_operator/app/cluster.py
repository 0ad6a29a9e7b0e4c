"""The API calls of the process itself, beside those of passes: the runs' versions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import kubernetes
from kubernetes.client import ApiException

from tandem_api.v1alpha1.crd import PLURAL
from tandem_api.v1alpha1.run import GROUP, VERSION
from tandem_operator.app.queue import Key

_PAGE = 500
_TIMEOUT = (5, 30)
# The API server then leaves out spec and status, which are most of a run.
_METADATA_ONLY = {"Accept": "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1"}


class RunLister:
    """Lists the runs that this operator looks after."""

    def __init__(self, api: kubernetes.client.ApiClient, namespaces: tuple[str, ...]) -> None:
        self._api = kubernetes.client.CustomObjectsApi(api)
        self._namespaces = namespaces

    def versions(self) -> dict[Key, str]:
        """The resourceVersion of every run, as etcd holds it now. Raises ApiException, or urllib3's HTTPError."""
        found: dict[Key, str] = {}
        for namespace in self._namespaces or (None,):
            for page in self._pages(namespace):
                for item in page["items"] or ():  # null, of a list of nothing
                    meta = item["metadata"]
                    found[meta["namespace"], meta["name"]] = meta["resourceVersion"]
        return found

    def what_is_missing(self) -> str | None:
        """Why the runs cannot be listed, in words; None when they can. Raises when the API server cannot be asked."""
        for namespace in self._namespaces or (None,):
            where = f"in the namespace {namespace!r}" if namespace else "in the whole cluster"
            try:
                self._page(namespace, 1, None)
            except ApiException as error:
                if error.status == 404:
                    return f"the cluster has no CustomResourceDefinition {PLURAL}.{GROUP} {VERSION}: install it"
                if error.status == 403:
                    return (
                        f"the service account may not list {PLURAL}.{GROUP} {where}: grant it, or name the "
                        "namespaces it may work in as `namespaces` in the settings"
                    )
                raise
        return None

    def _pages(self, namespace: str | None) -> Iterator[dict[str, Any]]:
        token: str | None = None
        while True:
            page = self._page(namespace, _PAGE, token)
            yield page
            token = page["metadata"].get("continue")
            if not token:
                return

    def _page(self, namespace: str | None, limit: int, token: str | None) -> dict[str, Any]:
        options: dict[str, Any] = {"limit": limit, "_headers": dict(_METADATA_ONLY), "_request_timeout": _TIMEOUT}
        if token:
            options["_continue"] = token
        if namespace is None:
            page: Any = self._api.list_cluster_custom_object(GROUP, VERSION, PLURAL, **options)
        else:
            page = self._api.list_namespaced_custom_object(GROUP, VERSION, namespace, PLURAL, **options)
        found: dict[str, Any] = page
        return found
