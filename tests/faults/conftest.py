"""One control plane, one object store and one kubelet for the session; a namespace with its operator for each test."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from tests.faults.children import OPERATOR_MODULES, TRAINER_MODULES
from tests.faults.control_plane import ControlPlane
from tests.faults.keys import give_two_keys
from tests.faults.kubelet import Kubelet
from tests.faults.world import Ground, World, is_full
from tests.faults.zygote import Zygote

from tandem_operator.platforms.local.storage import EmbeddedStorage, client
from tandem_operator.platforms.local.workdir import Workdir

_EVERYTHING = "TANDEM_FAULTS=full: every kill point, every state, the whole soak"
_A_PART = (
    "the part for every day: without the tests that are marked as full, with samples of children, states and "
    "manifests, and with a soak of ten minutes; everything: make test-faults"
)


def pytest_configure(config: pytest.Config) -> None:
    """The API server's certificate is one of its own making."""
    config.addinivalue_line("filterwarnings", "ignore::urllib3.exceptions.InsecureRequestWarning")


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ground]:
    """Everything that worlds share."""
    folder = tmp_path_factory.mktemp("faults")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    workdir = Workdir(tmp_path_factory.mktemp("faults-s3"))
    give_two_keys(workdir)
    storage = EmbeddedStorage(workdir, environment, print)
    with ExitStack() as stack:
        stack.callback(storage.stop)
        storage.start()
        operators = stack.enter_context(Zygote("operators", folder, OPERATOR_MODULES))
        trainers = stack.enter_context(Zygote("trainers", folder, TRAINER_MODULES))
        plane = stack.enter_context(ControlPlane(folder / "plane"))
        kubelet = stack.enter_context(Kubelet(plane.url, plane.token, trainers, folder / "kubelet"))
        storage.wait_until_ready()
        store = client(storage.ref, storage.credentials)
        yield Ground(plane, kubelet, storage, operators, folder / "worlds", store)


@pytest.fixture
def make_world(ground: Ground, request: pytest.FixtureRequest) -> Iterator[Callable[..., World]]:
    """Worlds of this test's own; the arguments are settings of the operator, in the settings file's words."""
    name = re.sub(r"[^a-z0-9]+", "-", request.node.name.removeprefix("test_").lower())
    with ExitStack() as stack:

        def make(**settings: Any) -> World:
            return stack.enter_context(World(ground, name, settings))

        yield make


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """A world of this test's own. Its operator is not started yet."""
    return make_world()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The soak takes longest, and waits most: side by side with it the others cost no time of their own."""
    items.sort(key=lambda item: item.path.name != "test_soak.py")


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Which part that was."""
    terminalreporter.write_line(_EVERYTHING if is_full() else _A_PART)
