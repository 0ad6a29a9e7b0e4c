"""An operator as a process of its own, with passes that only write a line: `operator_child.py FILE [SECONDS]`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tandem_operator.app import main
from tandem_operator.app.queue import Outcome, Reconcile
from tandem_operator.platforms.kubernetes.calls import Hear
from tandem_operator.settings import OperatorSettings

file, seconds = Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 0.0


def scripted(
    settings: OperatorSettings, identity: str, namespace: str, may_write: Callable[[], bool], hear: Hear
) -> Reconcile:
    def reconcile(namespace: str, name: str) -> Outcome:
        with file.open("a") as out:
            out.write(f"{namespace}/{name}\n")
        time.sleep(seconds)
        return Outcome(0.1, None)

    return reconcile


os._exit(main.run(make_reconcile=scripted))
