"""The documentation's site, built once."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.docs.environment import ROOT, python


@dataclass(frozen=True)
class Site:
    """What MkDocs has made."""

    folder: Path
    said: str
    """What it said meanwhile."""
    code: int


@pytest.fixture(scope="session")
def site() -> Site:
    """Built as for readers, into build/site."""
    command = [python(), "-m", "mkdocs", "build", "--strict"]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    return Site(ROOT / "build/site", done.stdout + done.stderr, done.returncode)
