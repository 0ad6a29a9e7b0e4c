"""One cluster and one operator for all tests; a namespace with an object store for each module."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cluster.harness import HERE, OPERATOR_NAMESPACE, Cluster, Namespace, install_operator

#: For a cluster of your own (its context in $KUBECONFIG): then nothing is brought up or taken down.
CONTEXT = "TANDEM_TEST_CONTEXT"


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """A cluster on this machine, taken down at the end unless TANDEM_KEEP_CLUSTER is set."""
    if os.environ.get(CONTEXT):
        pytest.skip(f"{CONTEXT} is for the tests in test_install.py only; unset it for a cluster on this machine")
    try:
        done = subprocess.run([HERE / "up"], stdout=subprocess.PIPE, text=True, check=True)
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
    name = request.module.__name__.rpartition(".")[2].removeprefix("test_").replace("_", "-")
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
