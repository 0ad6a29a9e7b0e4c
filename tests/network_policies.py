"""NetworkPolicies as a pure function: may this pod open that connection? For tests of what the operator and the chart
make; a policy with a field that is not known here is refused, not passed over."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address, ip_network
from typing import Any

Object = dict[str, Any]
NAMESPACE_LABEL = "kubernetes.io/metadata.name"


@dataclass(frozen=True)
class Pod:
    """One end of a connection; without a namespace it is somewhere on the network."""

    namespace: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    address: str = "10.0.0.7"

    @property
    def namespace_labels(self) -> dict[str, str]:
        return {NAMESPACE_LABEL: self.namespace}


def may_connect(policies: Iterable[Object], source: Pod, target: Pod, port: int, protocol: str = "TCP") -> bool:
    """Whether the policies let `source` out and into `target` at that port."""
    given = list(policies)
    leaves = _allows(given, source, "Egress", target, port, protocol)
    return leaves and _allows(given, target, "Ingress", source, port, protocol)


def _allows(policies: list[Object], pod: Pod, direction: str, peer: Pod, port: int, protocol: str) -> bool:
    rules, peers = {"Ingress": ("ingress", "from"), "Egress": ("egress", "to")}[direction]
    found = [policy for policy in policies if _selects(policy, pod) and direction in policy["spec"]["policyTypes"]]
    # A pod that no policy names is open.
    return not found or any(
        _matches_peer(rule.get(peers), policy, peer) and _matches_port(rule.get("ports"), port, protocol)
        for policy in found
        for rule in _known(policy["spec"].get(rules) or [], {"ports", peers})
    )


def _selects(policy: Object, pod: Pod) -> bool:
    (spec,) = _known([policy["spec"]], {"podSelector", "policyTypes", "ingress", "egress"})
    return policy["metadata"]["namespace"] == pod.namespace and _matches(spec["podSelector"], pod.labels)


def _matches(selector: Object, labels: Mapping[str, str]) -> bool:
    (selector,) = _known([selector], {"matchLabels", "matchExpressions"})
    wanted = (selector.get("matchLabels") or {}).items() <= dict(labels).items()
    return wanted and all(_expression(one, labels) for one in selector.get("matchExpressions") or [])


def _expression(one: Object, labels: Mapping[str, str]) -> bool:
    key, values = one["key"], one.get("values") or []
    match one["operator"]:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case "DoesNotExist":
            return key not in labels
    raise AssertionError(f"unknown operator: {one}")


def _matches_peer(peers: list[Object] | None, policy: Object, pod: Pod) -> bool:
    return not peers or any(_is_peer(peer, policy, pod) for peer in peers)


def _is_peer(peer: Object, policy: Object, pod: Pod) -> bool:
    (peer,) = _known([peer], {"podSelector", "namespaceSelector", "ipBlock"})
    if "ipBlock" in peer:
        assert peer.keys() == {"ipBlock"}, f"an address and a selector: {peer}"
        (block,) = _known([peer["ipBlock"]], {"cidr", "except"})
        address = ip_address(pod.address)
        return address in ip_network(block["cidr"]) and not any(
            address in ip_network(part) for part in block.get("except") or []
        )
    if not pod.namespace:
        return False
    if "namespaceSelector" in peer:
        is_there = _matches(peer["namespaceSelector"], pod.namespace_labels)
    else:
        is_there = pod.namespace == policy["metadata"]["namespace"]
    return is_there and _matches(peer.get("podSelector") or {}, pod.labels)


def _matches_port(ports: list[Object] | None, port: int, protocol: str) -> bool:
    return not ports or any(
        one.get("protocol", "TCP") == protocol and one.get("port", port) == port
        for one in _known(ports, {"port", "protocol"})
    )


def _known(parts: list[Object], fields: set[str]) -> list[Object]:
    for part in parts:
        assert part.keys() <= fields, f"fields that this evaluation does not know: {part.keys() - fields}"
    return parts
