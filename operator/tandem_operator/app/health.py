"""Whether the process is alive and whether it is ready, judged from plain numbers.

Alive, for a leader, means above all that its watch of the runs works: Kopf may go on with a watch that has silently
died. Its streams and bookmarks cannot be seen from outside without reaching into its internals, and an idle cluster
sends no events. So the process asks on its own, every `PROBE_SECONDS`, for the versions of all runs (their metadata
only) and compares them with what the watch has told: a change that it still owes after `UNSEEN_SECONDS` means that
the watch is dead, and the kubelet starts the process anew. That also holds for a watch that lives but delivers
nothing, and it cannot be wrong about an idle cluster.

The other signs: the queue's loop or Kopf's has not turned for `STALL_SECONDS`, or a pass hangs.
A spare is alive as long as it answers, and ready while the API server answers it: it can take over at once.
"""

from __future__ import annotations

from dataclasses import dataclass

PROBE_SECONDS = 60.0
UNSEEN_SECONDS = 90.0
STALL_SECONDS = 60.0
#: Every call of a pass has a timeout of its own; the sum of a slow pass's calls stays far below.
PASS_SECONDS = 900.0
_CONTACT_SECONDS = 30.0


@dataclass(frozen=True)
class Vitals:
    """What there is to judge. Times are seconds."""

    may_list: bool = False
    """Whether the runs can be listed: the definition is installed, and the permission is there."""
    leads: bool = False
    """Whether this replica holds the Lease."""
    answered: float = float("inf")
    """Since the API server last answered the elector."""
    queue_turned: float = 0.0
    """Since the queue's dispatcher last looked up."""
    watch_turned: float = 0.0
    """Since the loop of the watch last turned."""
    unseen: float = 0.0
    """For how long the watch has owed a change of a run."""
    longest_pass: float = 0.0
    """How long the oldest pass that runs now has taken."""


def why_dead(vitals: Vitals) -> list[str]:
    """Why the process should be started anew; empty: it lives."""
    if not vitals.leads:
        return []
    found = []
    if vitals.queue_turned > STALL_SECONDS:
        found.append(f"the queue has not turned for {vitals.queue_turned:.0f} s")
    if vitals.watch_turned > STALL_SECONDS:
        found.append(f"the loop of the watch has not turned for {vitals.watch_turned:.0f} s")
    if vitals.unseen > UNSEEN_SECONDS:
        found.append(f"the watch has not told of a changed run for {vitals.unseen:.0f} s")
    if vitals.longest_pass > PASS_SECONDS:
        found.append(f"a pass has run for {vitals.longest_pass:.0f} s")
    return found


def why_unready(vitals: Vitals) -> list[str]:
    """Why the process cannot lead, or take over, now; empty: it can."""
    if not vitals.may_list:
        return ["the runs cannot be listed: see the log"]
    if not vitals.leads and vitals.answered > _CONTACT_SECONDS:
        return ["the API server does not answer about the Lease: see the log"]
    return []
