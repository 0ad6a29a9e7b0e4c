"""One pass over one run: load, observe, decide, save, act. The event source (the local loop, kopf) calls it again and
again; nothing is remembered between two passes but the stored resource."""

from __future__ import annotations

from dataclasses import dataclass

from tandem_api.v1alpha1 import Status
from tandem_operator.actions import EmitEvent
from tandem_operator.decide.engine import decide
from tandem_operator.platforms.protocol import Platform


@dataclass(frozen=True)
class Pass:
    """What one pass came to."""

    status: Status
    finished: bool
    """The run has ended and everything it held is released."""


def reconcile(platform: Platform) -> Pass:
    """Bring one run one step closer. The status is stored before the actions are carried out, so that whatever they
    start is already known; a crash in between leaves an intent that the next pass carries out."""
    run = platform.load()
    decision = decide(run.spec, run.status, platform.observe(run))
    if decision.status != run.status:
        platform.save(run, decision.status)
    # What there is to tell comes first: it is in the status, and would be lost if another action failed.
    for action in sorted(decision.actions, key=lambda action: not isinstance(action, EmitEvent)):
        platform.execute(run, action)
    return Pass(decision.status, decision.finished)
