"""The Python that has MkDocs."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOW = "tools/side-environment docs"


@cache
def python() -> str:
    """Its path. It is made if it is not there. Raises subprocess.CalledProcessError if that does not work."""
    done = subprocess.run(HOW.split(), cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True, timeout=1200)
    return done.stdout.strip()


def is_missing() -> bool:
    """Whether it cannot be had on this machine."""
    try:
        python()
    except (subprocess.SubprocessError, OSError):
        return True
    return False
