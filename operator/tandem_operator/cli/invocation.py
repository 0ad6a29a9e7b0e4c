"""By which name the command line was called: `tandem`, or `kubectl tandem`."""

from __future__ import annotations

import sys
from pathlib import Path

TANDEM = "tandem"
_PLUGIN = "kubectl-tandem"


def program() -> str:
    """What to type before a command. kubectl runs a program `kubectl-tandem` on the PATH as `kubectl tandem`."""
    return "kubectl tandem" if Path(sys.argv[0]).stem == _PLUGIN else TANDEM
