"""The layers of the tests: the folders under tests/, and which part of each is for every day."""

from __future__ import annotations

import os
from pathlib import Path


def layer_of(path: Path) -> str:
    """The folder under tests/ that a test lies in."""
    return path.relative_to(Path(__file__).parent).parts[0]


def is_full(layer: str) -> bool:
    """Whether everything of that layer is asked for (`TANDEM_FAULTS=full`), not only the part for every day."""
    return os.environ.get(f"TANDEM_{layer.upper()}") == "full"
