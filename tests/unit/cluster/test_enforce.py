"""What the test cluster's enforcer makes of NetworkPolicies. Its rules are carried out here as iptables does, and held
against the tests' own evaluation of policies, which knows nothing of rules."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.cluster.kubernetes.enforce import MARK, UnsupportedError, rules
from tests.network_policies import NAMESPACE_LABEL, Pod, may_connect
from tests.unit.operator.kubernetes.test_policies import METADATA, PEOPLE, WELCOME, pod, policies
from tests.unit.operator.kubernetes.world import NAMESPACE

Object = dict[str, Any]
WORLD = (METADATA, Pod(address="192.0.2.7"), Pod(address="172.17.1.1"), Pod(address="172.17.2.1"))
NAMESPACES = [
    {"metadata": {"name": name, "labels": {NAMESPACE_LABEL: name}}}
    for name in (NAMESPACE, "elsewhere", "tandem-system", "monitoring")
]


def stored(found: Pod, **status: Any) -> Object:
    """The pod as the API server has it."""
    metadata = {"name": "any", "namespace": found.namespace, "labels": dict(found.labels)}
    return {"metadata": metadata, "spec": {}, "status": {"podIP": found.address, "phase": "Running", **status}}


def policy(pods: Object, namespace: str = NAMESPACE, **spec: Any) -> Object:
    kinds = {"ingress": "Ingress", "egress": "Egress"}
    types = [kinds[field] for field in spec]
    return {"metadata": {"namespace": namespace}, "spec": {"podSelector": pods, "policyTypes": types, **spec}}


def passes(lines: list[str], source: Pod, target: Pod, port: int, protocol: str, chain: str = MARK) -> bool:
    """Whether a first packet comes through these rules."""
    for line in lines:
        words = line.split()
        match = dict(zip(words[::2], words[1::2], strict=True))
        if match["-A"] != chain or "--ctstate" in match:
            continue
        hits = (
            ip_address(source.address) in ip_network(match.get("-s", "0.0.0.0/0"))
            and ip_address(target.address) in ip_network(match.get("-d", "0.0.0.0/0"))
            and match.get("-p", protocol.lower()) == protocol.lower()
            and match.get("--dport", str(port)) == str(port)
        )
        if hits and match["-j"] == "RETURN":
            return True
        if hits and (match["-j"] == "REJECT" or not passes(lines, source, target, port, protocol, match["-j"])):
            return False
    return True


def test_a_policy_as_rules():
    server, friend = Pod(NAMESPACE, {"app": "server"}, "10.244.1.2"), Pod(NAMESPACE, {"app": "friend"}, "10.244.1.3")
    friends = {"podSelector": {"matchLabels": {"app": "friend"}}}
    let_in = {"from": [friends], "ports": [{"port": 8000, "protocol": "TCP"}]}
    closed = policy({"matchLabels": {"app": "server"}}, ingress=[let_in])
    assert rules([stored(server), stored(friend)], NAMESPACES, [closed]) == [
        "-A tandem-cluster -m conntrack --ctstate RELATED,ESTABLISHED -j RETURN",
        "-A tandem-cluster -j tandem-cluster-egress",
        "-A tandem-cluster -j tandem-cluster-ingress",
        "-A tandem-cluster-ingress -d 10.244.1.2 -s 10.244.1.3 -p tcp --dport 8000 -j RETURN",
        "-A tandem-cluster-ingress -d 10.244.1.2 -j REJECT --reject-with icmp-admin-prohibited",
    ]


def test_the_address_of_a_pod_that_is_over_is_not_that_pods_any_more():
    server, friend = Pod(NAMESPACE, {"app": "server"}, "10.244.1.2"), Pod(NAMESPACE, {"app": "friend"}, "10.244.1.3")
    given = [policy({}, ingress=[{"from": [{"podSelector": {"matchLabels": {"app": "friend"}}}]}])]
    over = [stored(friend, phase=phase) for phase in ("Succeeded", "Failed")]
    nowhere = [stored(friend, podIP=None), {**stored(friend), "spec": {"hostNetwork": True}}]
    for gone in over + nowhere:
        assert not passes(rules([stored(server), gone], NAMESPACES, given), friend, server, 80, "TCP")
    assert passes(rules([stored(server), stored(friend)], NAMESPACES, given), friend, server, 80, "TCP")


@pytest.mark.parametrize(
    "rule",
    [
        {"ports": [{"port": 8000, "endPort": 8010}]},
        {"ports": [{"port": "http"}]},
        {"ports": [{"port": 8000, "protocol": "SCTP"}]},
        {"from": [{"serviceSelector": {}}]},
        {"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "but": []}}]},
        {"from": [{"ipBlock": {"cidr": "10.0.0.0/8"}, "podSelector": {}}]},
        {"to": []},
    ],
)
def test_what_is_not_enforced_is_refused(rule):
    with pytest.raises(UnsupportedError):
        rules([stored(Pod(NAMESPACE))], NAMESPACES, [policy({}, ingress=[rule])])


@pytest.mark.parametrize(("component", "port"), WELCOME)
def test_a_run_is_as_closed_as_its_policies_say(component, port):
    """With the pods of the policies' own test, all at once."""
    given = [*policies(), *policies("2222", "other"), *policies(namespace="elsewhere")]
    people = {name: Pod(one.namespace, one.labels, f"10.244.1.{n}") for n, (name, one) in enumerate(PEOPLE.items(), 2)}
    target = Pod(NAMESPACE, pod(component).labels, "10.244.1.99")
    lines = rules([stored(one) for one in (*people.values(), target) if one.namespace], NAMESPACES, given)
    let_in = {name for name, one in people.items() if passes(lines, one, target, port, "TCP")}
    assert let_in == WELCOME[component, port]
    for place in WORLD:
        assert passes(lines, target, place, 443, "TCP") == (place is not METADATA)


LABELS = st.dictionaries(st.sampled_from(["app", "role"]), st.sampled_from(["a", "b"]))
EXPRESSIONS = st.builds(
    lambda key, operator, values: {"key": key, "operator": operator, "values": values},
    st.sampled_from(["app", "role"]),
    st.sampled_from(["In", "NotIn", "Exists", "DoesNotExist"]),
    st.lists(st.sampled_from(["a", "b"])),
)
SELECTORS = st.fixed_dictionaries({}, optional={"matchLabels": LABELS, "matchExpressions": st.lists(EXPRESSIONS)})
SPACES = st.sampled_from([{}, *({"matchLabels": one["metadata"]["labels"]} for one in NAMESPACES[:2])])
EXCEPT = st.lists(st.sampled_from(["169.254.0.0/16", "172.17.1.0/24", "10.244.1.4/31", "172.17.1.1/32"]))
BLOCKS = st.builds(
    lambda cidr, parts: {"cidr": cidr, "except": [part for part in parts if ip_network(part).subnet_of(cidr)]},
    st.sampled_from([ip_network("0.0.0.0/0"), ip_network("172.17.0.0/16"), ip_network("10.244.1.0/29")]),
    EXCEPT,
).map(lambda block: {"ipBlock": {**block, "cidr": str(block["cidr"])}})
PEERS = (
    BLOCKS
    | st.fixed_dictionaries({"podSelector": SELECTORS}, optional={"namespaceSelector": SPACES})
    | st.fixed_dictionaries({"namespaceSelector": SPACES})
    | st.just({"ipBlock": {"cidr": "::/0", "except": ["fe80::/10"]}})
)
PORTS = st.lists(
    st.fixed_dictionaries({"protocol": st.sampled_from(["TCP", "UDP"])}, optional={"port": st.sampled_from([53, 80])}),
    max_size=2,
)


def _rules_of(peers: str) -> st.SearchStrategy[list[Object]]:
    return st.lists(
        st.fixed_dictionaries({}, optional={peers: st.lists(PEERS, max_size=2), "ports": PORTS}), max_size=2
    )


NAMES = st.sampled_from([NAMESPACE, "elsewhere"])
POLICIES = st.builds(
    lambda pods, namespace, spec: policy(pods, namespace, **spec),
    SELECTORS,
    NAMES,
    st.fixed_dictionaries({}, optional={"ingress": _rules_of("from"), "egress": _rules_of("to")}),
)
PODS = st.lists(st.tuples(NAMES, LABELS), min_size=2, max_size=5).map(
    lambda found: [Pod(namespace, labels, f"10.244.1.{n}") for n, (namespace, labels) in enumerate(found, 2)]
)


@given(PODS, st.lists(POLICIES, max_size=4))
def test_rules_and_policies_say_the_same(pods, policies):
    lines = rules([stored(one) for one in pods], NAMESPACES, policies)
    ends = [*pods, *WORLD]
    for source, target in ((source, target) for source in ends for target in ends if source is not target):
        for port, protocol in ((53, "UDP"), (53, "TCP"), (80, "TCP")):
            expected = may_connect(policies, source, target, port, protocol)
            assert passes(lines, source, target, port, protocol) is expected, (source, target, port, protocol)
