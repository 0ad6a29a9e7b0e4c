"""The chart's tests render it with the real helm; where that cannot be had they are skipped with one line."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "tandem"
NAMESPACE = "tandem-system"

Object = dict[str, Any]
#: `render("--set", "replicas=2")`: the rendered objects by `Kind/name`, or `Kind/namespace/name` outside the release's.
Render = Callable[..., dict[str, Object]]


@pytest.fixture(scope="session")
def helm() -> str:
    """The path of helm 4."""
    return _brought_by("kubernetes-tools", "helm")


@pytest.fixture(scope="session")
def promtool() -> str:
    """The path of promtool."""
    return _brought_by("prometheus", "promtool")


def _brought_by(tool: str, program: str) -> str:
    """A program out of the folder that a script in tools/ prints; without it the test is skipped, or fails in CI."""
    try:
        done = subprocess.run([str(ROOT / "tools" / tool)], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        said = (getattr(error, "stderr", "") or str(error)).strip().splitlines()
        reason = f"layer chart needs {program}; tools/{tool} brought none: {said[-1] if said else error}"
        if "chart" in os.environ.get("TANDEM_REQUIRED_LAYERS", "").split():
            pytest.fail(reason, pytrace=False)
        pytest.skip(reason)
    return str(Path(done.stdout.strip()) / program)


@pytest.fixture(scope="session")
def template(helm: str) -> Callable[..., subprocess.CompletedProcess[str]]:
    """`helm template` with more arguments; the caller looks at the exit code."""

    def run(*arguments: str, release: str = "tandem") -> subprocess.CompletedProcess[str]:
        command = [helm, "template", release, str(CHART), "--namespace", NAMESPACE, *arguments]
        return subprocess.run(command, capture_output=True, text=True)

    return run


@pytest.fixture(scope="session")
def render(template: Callable[..., subprocess.CompletedProcess[str]]) -> Render:
    def run(*arguments: str, release: str = "tandem") -> dict[str, Object]:
        done = template(*arguments, release=release)
        assert done.returncode == 0, done.stderr
        documents = [document for document in yaml.safe_load_all(done.stdout) if document]
        objects = {_key(document): document for document in documents}
        assert len(objects) == len(documents), "two objects of one kind and name"
        return objects

    return run


def _key(document: Object) -> str:
    metadata = document["metadata"]
    elsewhere = metadata.get("namespace", NAMESPACE) != NAMESPACE
    return "/".join([document["kind"], *([metadata["namespace"]] if elsewhere else []), metadata["name"]])
