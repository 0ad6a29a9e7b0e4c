"""NetworkPolicies of a run: its model server talks to its own workers and to the operator, and to nobody else,
but for those who may read metrics. Pure."""

from __future__ import annotations

import re
from typing import Any, Final
from urllib.parse import urlsplit

from tandem_api.v1alpha1 import OptimizationRun
from tandem_operator.platforms.kubernetes import names
from tandem_operator.platforms.other_models import other_models
from tandem_operator.settings import OperatorSettings

Object = dict[str, Any]


#: DNS as pods see it: behind the Service's port 53 some clusters (OpenShift) listen on 5353.
DNS_PORTS = (53, 5353)
#: Everywhere but where clouds tell a node its keys (169.254.169.254 and its like), so that no run gets at them. Some
#: network plugins do not count pods among addresses: they are named beside them.
_NOT_METADATA: Final[tuple[Object, ...]] = (
    {"ipBlock": {"cidr": "0.0.0.0/0", "except": ["169.254.0.0/16"]}},
    {"ipBlock": {"cidr": "::/0", "except": ["fe80::/10", "fd00:ec2::254/128"]}},
    {"namespaceSelector": {}},
)
#: SERVICE, SERVICE.NAMESPACE and SERVICE.NAMESPACE.svc, the last with or without the cluster's domain.
_SERVICE: Final = re.compile(r"[a-z][a-z0-9-]*(\.(?P<namespace>[a-z0-9-]+)(\.svc(\..*)?)?)?")


def network_policies(
    run: OptimizationRun, settings: OperatorSettings, operator_namespace: str, owner: Object
) -> list[Object]:
    """Both policies. vLLM's own key protects neither its adapters nor all ways to ask it, so the network has to."""
    metadata = run.metadata
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": operator_namespace}},
        "podSelector": {"matchLabels": {names.APP_NAME: "tandem", names.COMPONENT: "operator"}},
    }
    # Who reads metrics gets at all that a port answers: vLLM's holds calls, too.
    watching = list(settings.network_policy.metrics_from)
    workers = {"podSelector": {"matchLabels": names.selector(metadata.name, metadata.uid, names.WORKER)}}
    servers = {"podSelector": {"matchLabels": names.selector(metadata.name, metadata.uid, names.SERVING)}}
    # The cleanup runs in the run's image, too, and wants no more than a worker may.
    kinds = {"key": names.COMPONENT, "operator": "In", "values": [names.WORKER, names.CLEANUP]}
    working = {"matchLabels": {names.RUN: metadata.name, names.RUN_UID: metadata.uid}, "matchExpressions": [kinds]}
    # Machines that train together choose their ports as they go.
    peers = [workers] if run.spec.training.backend == "jobset" else []
    outside = _outside(run, settings)
    asked = [rule for url in _asked_urls(run) for rule in _reaching(url, settings)]
    return [
        _policy(
            run,
            owner,
            names.serving_name(metadata.name),
            names.SERVING,
            servers["podSelector"],
            ingress=[
                {"from": [workers, operator, *watching], "ports": _tcp(names.VLLM_PORT)},
                {"from": [operator, *watching], "ports": _tcp(names.ADAPTERS_PORT)},
            ],
            egress=outside,
        ),
        _policy(
            run,
            owner,
            names.workers_name(metadata.name),
            names.WORKER,
            working,
            ingress=[
                {"from": [operator, *watching], "ports": _tcp(names.PROGRESS_PORT)},
                *({"from": [peer]} for peer in peers),
            ],
            egress=[
                *outside,
                *asked,
                {"to": [servers], "ports": _tcp(names.VLLM_PORT)},
                *({"to": [peer]} for peer in peers),
            ],
        ),
    ]


def _policy(
    run: OptimizationRun,
    owner: Object,
    name: str,
    component: str,
    pods: Object,
    *,
    ingress: list[Object],
    egress: list[Object],
) -> Object:
    return {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": names.child(run, name, component, owner),
        "spec": {"podSelector": pods, "policyTypes": ["Ingress", "Egress"], "ingress": ingress, "egress": egress},
    }


def _tcp(*ports: int) -> list[Object]:
    return [{"port": port, "protocol": "TCP"} for port in ports]


def _outside(run: OptimizationRun, settings: OperatorSettings) -> list[Object]:
    """What both may reach beside each other: DNS, the Hub and the like, the object store."""
    endpoint = run.spec.storage.s3.endpoint if run.spec.storage is not None else None
    return [
        {"ports": [{"port": port, "protocol": kind} for port in DNS_PORTS for kind in ("UDP", "TCP")]},
        *_reaching(endpoint or "https://", settings, *settings.network_policy.worker_egress_ports),
    ]


def _asked_urls(run: OptimizationRun) -> list[str]:
    """Whom the run's workers ask beside its servers: the APIs of other models, and MLflow."""
    mlflow = run.spec.mlflow
    urls = [model.url for model in other_models(run.spec)] + ([mlflow.uri] if mlflow is not None else [])
    return list(dict.fromkeys(urls))


def _reaching(url: str, settings: OperatorSettings, *ports: int) -> list[Object]:
    """What lets a pod reach that address, and those ports beside its own."""
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    anywhere: Object = {"ports": _tcp(*sorted({*ports, port}))}
    if not settings.network_policy.worker_metadata_access:
        anywhere["to"] = list(_NOT_METADATA)
    # A Service's port need not be that of its pods, and it is the pods' that a policy sees.
    return [anywhere, *({"to": [pods]} for pods in _pods_behind(parts.hostname or ""))]


def _pods_behind(host: str) -> list[Object]:
    """The pods among which a Service's are, which are all of its namespace; none if the host is no Service."""
    service = _SERVICE.fullmatch(host)
    if service is None or host == "localhost":
        return []
    if service["namespace"] is None:
        return [{"podSelector": {}}]
    return [{"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": service["namespace"]}}}]
