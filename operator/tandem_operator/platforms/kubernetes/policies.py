"""NetworkPolicies of a run: its model server talks to its own workers and to the operator, and to nobody else. Pure."""

from __future__ import annotations

from typing import Any
from urllib.parse import urlsplit

from tandem_api.v1alpha1 import OptimizationRun
from tandem_operator.platforms.kubernetes import names
from tandem_operator.settings import OperatorSettings

Object = dict[str, Any]


#: DNS as pods see it: behind the Service's port 53 some clusters (OpenShift) listen on 5353.
DNS_PORTS = (53, 5353)


def network_policies(
    run: OptimizationRun, settings: OperatorSettings, operator_namespace: str, owner: Object
) -> list[Object]:
    """Both policies. vLLM's own key protects neither its adapters nor all ways to ask it, so the network has to."""
    metadata = run.metadata
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": operator_namespace}},
        "podSelector": {"matchLabels": {names.APP_NAME: "tandem", names.COMPONENT: "operator"}},
    }
    workers = {"podSelector": {"matchLabels": names.selector(metadata.name, metadata.uid, names.WORKER)}}
    servers = {"podSelector": {"matchLabels": names.selector(metadata.name, metadata.uid, names.SERVING)}}
    egress = [
        {"ports": [{"port": port, "protocol": kind} for port in DNS_PORTS for kind in ("UDP", "TCP")]},
        {"to": [servers], "ports": _tcp(names.VLLM_PORT)},
        {"ports": _tcp(*sorted({*settings.network_policy.worker_egress_ports, *_storage_ports(run)}))},
    ]
    return [
        _policy(
            run,
            owner,
            names.serving_name(metadata.name),
            names.SERVING,
            {
                "policyTypes": ["Ingress"],
                "ingress": [
                    {"from": [workers, operator], "ports": _tcp(names.VLLM_PORT)},
                    {"from": [operator], "ports": _tcp(names.ADAPTERS_PORT)},
                ],
            },
        ),
        _policy(
            run,
            owner,
            names.workers_name(metadata.name),
            names.WORKER,
            {
                "policyTypes": ["Ingress", "Egress"],
                "ingress": [{"from": [operator], "ports": _tcp(names.PROGRESS_PORT)}],
                "egress": egress,
            },
        ),
    ]


def _policy(run: OptimizationRun, owner: Object, name: str, component: str, spec: Object) -> Object:
    metadata = run.metadata
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {
            "name": name,
            "namespace": metadata.namespace,
            "labels": names.labels(metadata.name, metadata.uid, component),
            "ownerReferences": [owner],
        },
        "spec": {
            "podSelector": {"matchLabels": names.selector(metadata.name, metadata.uid, component)},
            **spec,
        },
    }


def _tcp(*ports: int) -> list[Object]:
    return [{"port": port, "protocol": "TCP"} for port in ports]


def _storage_ports(run: OptimizationRun) -> set[int]:
    endpoint = run.spec.storage.s3.endpoint if run.spec.storage is not None else None
    if endpoint is None:
        return {443}
    parts = urlsplit(endpoint)
    return {parts.port or (443 if parts.scheme == "https" else 80)}
