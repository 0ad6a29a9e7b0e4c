"""Operators come and go: a hot spare takes over, an upgrade leaves what runs alone, an uninstall leaves the runs."""

from __future__ import annotations

import time
from pathlib import Path

from tests.cluster.harness import OPERATOR_NAMESPACE, RESOURCE, Namespace, install_operator, reviews, until

OPERATOR = "app.kubernetes.io/component=operator"


def leader(namespace: Namespace) -> str:
    """The name of the pod that holds the Lease; empty when none does."""
    lease = namespace.cluster.get("lease", "tandem-operator", OPERATOR_NAMESPACE) or {"spec": {}}
    return str(lease["spec"].get("holderIdentity") or "")


def operators(namespace: Namespace) -> list[str]:
    """The operator's pods that are to stay."""
    pods = namespace.cluster.items("pods", OPERATOR_NAMESPACE, OPERATOR)
    return [pod["metadata"]["name"] for pod in pods if not pod["metadata"].get("deletionTimestamp")]


def test_a_hot_spare_takes_over_and_nothing_of_a_run_is_started_again(namespace: Namespace, tmp_path: Path) -> None:
    install_operator(namespace.cluster, tmp_path, "--set", "replicas=2")
    until(60, "two pods", lambda: len(operators(namespace)) == 2)
    namespace.cluster.apply(reviews(namespace.name, "moved", strategy="p"))
    (server,) = until(120, "the server's pod", lambda: namespace.pods("moved", "serving"))
    first = until(20, "a leader", lambda: leader(namespace))
    holder = next(name for name in operators(namespace) if first.startswith(name))
    namespace.cluster.kubectl("delete", "pod", "-n", OPERATOR_NAMESPACE, holder, "--grace-period=0", "--force")
    killed = time.monotonic()
    until(30, "another leader", lambda: leader(namespace) not in ("", first))
    print(f"the spare led after {time.monotonic() - killed:.1f} s")
    # An upgrade replaces the operator once more, and the server that is loading stays what it is.
    install_operator(namespace.cluster, tmp_path)
    until(180, "the baseline's score", lambda: ((namespace.run("moved") or {}).get("status") or {}).get("baseline"))
    assert [pod["metadata"]["uid"] for pod in namespace.pods("moved", "serving")] == [server["metadata"]["uid"]]
    namespace.kubectl("delete", "optrun", "moved", "--wait=true", "--timeout=60s")


def test_an_uninstall_keeps_the_runs_and_an_install_takes_them_up_again(namespace: Namespace, tmp_path: Path) -> None:
    namespace.cluster.apply(reviews(namespace.name, "kept", strategy="p"))
    until(60, "its first worker", lambda: namespace.pods("kept", "worker"))
    namespace.cluster.helm("uninstall", "tandem", "--namespace", OPERATOR_NAMESPACE, "--wait")
    assert namespace.cluster.kubectl("get", "crd", RESOURCE, "-o", "name").strip()
    before = namespace.run("kept")
    assert before is not None
    install_operator(namespace.cluster, tmp_path)
    until(90, "the check to pass", lambda: namespace.condition("kept", "Accepted").get("status") == "True")
    after = namespace.run("kept")
    assert after is not None and after["metadata"]["uid"] == before["metadata"]["uid"]
    namespace.kubectl("delete", "optrun", "kept", "--wait=true", "--timeout=60s")
