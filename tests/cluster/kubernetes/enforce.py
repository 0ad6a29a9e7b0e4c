"""Enforces the test cluster's NetworkPolicies: watches them, pods and namespaces, and keeps iptables rules for them.

All nodes share the host's network namespace and every pod has one of its own (CNI `ptp`), so what goes from one pod to
another, or out of the machine, crosses the host's FORWARD once, with the pods' own addresses: kube-proxy has put pods
in the place of Services before, and what hides pods from the world comes after. The rules stand there and nowhere else.
What a pod and its node say to each other does not cross FORWARD: the kubelet's probes are let in, as everywhere, and
**a pod's way to the node itself (here: the API server and DNS) stays open**, whatever its policy says.

What a policy forbids is answered with an ICMP error, so that a test can tell it (`No route to host`) from a port on
which nobody listens. A policy with a field that is not known here ends this program, and its last rules stay.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Network, ip_network
from pathlib import Path
from typing import Any

from tests.cluster.kubernetes.watch import Api, Mirror

Object = dict[str, Any]
Labels = Mapping[str, str]

#: The first chain, and what `cluster down` knows all three by.
MARK = "tandem-cluster"
_HOOK = f"FORWARD -m comment --comment {MARK} -j {MARK}"
_PATHS = ("/api/v1/pods", "/api/v1/namespaces", "/apis/networking.k8s.io/v1/networkpolicies")


class UnsupportedError(ValueError):
    """A policy has something that is not enforced here."""


@dataclass(frozen=True)
class _Direction:
    name: str
    rules: str
    peers: str
    chain: str
    own: str
    other: str


_DIRECTIONS = (
    _Direction("Egress", "egress", "to", f"{MARK}-egress", "-s", "-d"),
    _Direction("Ingress", "ingress", "from", f"{MARK}-ingress", "-d", "-s"),
)
_START = (
    f"-A {MARK} -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN",
    *(f"-A {MARK} -j {direction.chain}" for direction in _DIRECTIONS),
)


def rules(pods: Iterable[Object], namespaces: Iterable[Object], policies: Iterable[Object]) -> list[str]:
    """The rules of all three chains, as iptables-restore reads them. Pure. Raises UnsupportedError."""
    there = sorted((pod for pod in pods if _is_there(pod)), key=lambda pod: str(pod["status"]["podIP"]))
    labels = {namespace["metadata"]["name"]: _labels(namespace) for namespace in namespaces}
    given, lines = list(policies), [*_START]
    for direction in _DIRECTIONS:
        for pod in there:
            chosen = [policy for policy in given if _selects(policy, direction, pod)]
            start = f"-A {direction.chain} {direction.own} {pod['status']['podIP']}"
            open_to = {start + match for policy in chosen for match in _matches(policy, direction, there, labels)}
            lines += [f"{line} -j RETURN" for line in sorted(open_to)]
            # A pod that no policy names is open.
            lines += [f"{start} -j REJECT --reject-with icmp-admin-prohibited"] if chosen else []
    return lines


def _is_there(pod: Object) -> bool:
    """Whether the pod has an address that is its own. Those of finished pods are given to others."""
    status = pod.get("status") or {}
    is_over = status.get("phase") in ("Succeeded", "Failed")
    return bool(status.get("podIP")) and not is_over and not pod["spec"].get("hostNetwork")


def _labels(thing: Object) -> Labels:
    return thing["metadata"].get("labels") or {}


def _selects(policy: Object, direction: _Direction, pod: Object) -> bool:
    spec = _known(policy["spec"], "podSelector", "policyTypes", "ingress", "egress")
    is_here = policy["metadata"]["namespace"] == pod["metadata"]["namespace"]
    return is_here and direction.name in spec["policyTypes"] and _fits(spec["podSelector"], _labels(pod))


def _matches(policy: Object, direction: _Direction, pods: list[Object], labels: Mapping[str, Labels]) -> Iterator[str]:
    """What the policy allows, as the rest of an iptables match."""
    for rule in policy["spec"].get(direction.rules) or []:
        _known(rule, "ports", direction.peers)
        peers = rule.get(direction.peers)
        addresses = [address for peer in peers or [] for address in _addresses(peer, policy, pods, labels)]
        ends = [f" {direction.other} {address}" for address in addresses] if peers else [""]
        ports = [_port(port) for port in rule.get("ports") or []] or [""]
        yield from (end + port for end in ends for port in ports)


def _addresses(peer: Object, policy: Object, pods: list[Object], labels: Mapping[str, Labels]) -> Iterator[str]:
    if "ipBlock" in peer:
        yield from map(str, _block(_known(_known(peer, "ipBlock")["ipBlock"], "cidr", "except")))
        return
    _known(peer, "podSelector", "namespaceSelector")
    own = policy["metadata"]["namespace"]
    spaces = peer.get("namespaceSelector")
    for pod in pods:
        namespace = pod["metadata"]["namespace"]
        is_near = namespace == own if spaces is None else _fits(spaces, labels.get(namespace, {}))
        if is_near and _fits(peer.get("podSelector") or {}, _labels(pod)):
            yield pod["status"]["podIP"]


def _block(block: Object) -> list[IPv4Network]:
    """The networks of a block without its exceptions. Pods here have no IPv6 addresses."""
    whole = ip_network(block["cidr"])
    left = [whole] if isinstance(whole, IPv4Network) else []
    for part in map(IPv4Network, block.get("except") or [] if left else []):
        left = [piece for network in left for piece in _without(network, part)]
    return left


def _without(network: IPv4Network, part: IPv4Network) -> Iterable[IPv4Network]:
    if not network.overlaps(part):
        return [network]
    return [] if network.subnet_of(part) else network.address_exclude(part)


def _port(port: Object) -> str:
    protocol, number = _known(port, "protocol", "port").get("protocol", "TCP"), port.get("port")
    if protocol not in ("TCP", "UDP") or not isinstance(number, int | None):
        raise UnsupportedError(f"a port is {port}: only numbers of TCP and UDP are enforced here")
    return f" -p {protocol.lower()}" + (f" --dport {number}" if number is not None else "")


def _fits(selector: Object, labels: Labels) -> bool:
    _known(selector, "matchLabels", "matchExpressions")
    wanted = (selector.get("matchLabels") or {}).items() <= labels.items()
    return wanted and all(_holds(one, labels) for one in selector.get("matchExpressions") or [])


def _holds(expression: Object, labels: Labels) -> bool:
    value, values = labels.get(expression["key"]), expression.get("values") or []
    in_values, is_there = value in values, value is not None
    holds = {"In": in_values, "NotIn": not in_values, "Exists": is_there, "DoesNotExist": not is_there}
    return holds[expression["operator"]]


def _known(part: Object, *fields: str) -> Object:
    if unknown := part.keys() - {*fields}:
        raise UnsupportedError(f"a NetworkPolicy has {', '.join(sorted(unknown))}: not enforced here")
    return part


def _hooks() -> list[str]:
    """The rules of FORWARD, in their order."""
    said = subprocess.run(["iptables", "-S", "FORWARD"], stdout=subprocess.PIPE, text=True, check=True).stdout
    return [line.removeprefix("-A ") for line in said.splitlines() if line.startswith("-A ")]


def _replace(lines: list[str], hooks: list[str]) -> None:
    """Put the rules in force, all at once, and the hook in front of kube-proxy's, which accept some for good."""
    chains = [f":{name} - [0:0]" for name in (MARK, *(direction.chain for direction in _DIRECTIONS))]
    hook = [f"-D {_HOOK}"] * hooks.count(_HOOK) + [f"-I {_HOOK}"]
    text = "\n".join(["*filter", *chains, *hook, *lines, "COMMIT", ""])
    subprocess.run(["iptables-restore", "--noflush"], input=text, text=True, check=True)


def main() -> None:
    """Enforce until SIGTERM."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kubeconfig", required=True, type=Path)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # an exit ends the command that runs, too
    changed = threading.Event()
    api = Api(parser.parse_args().kubeconfig)
    mirrors = [Mirror(api, path, changed) for path in _PATHS]
    in_force: list[str] = []
    while True:
        changed.wait(1)
        changed.clear()
        if not all(mirror.is_listed for mirror in mirrors):
            continue
        try:
            wanted, hooks = rules(*(mirror.objects.values() for mirror in mirrors)), _hooks()
            if wanted != in_force or hooks[:1] != [_HOOK]:
                _replace(wanted, hooks)
                in_force = wanted
        except UnsupportedError as error:
            raise SystemExit(f"enforce.py: {error}") from error
        except subprocess.CalledProcessError as error:
            print(f"enforce.py: {error}; tried again", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
