"""Deterministic names: the same run, step, stage and attempt always have the same name."""

from __future__ import annotations

import re

from tandem_api.canonical import digest
from tandem_api.contract import BASE_MODEL
from tandem_api.v1alpha1.status import Artifact, StageName, StepKindName

#: A Job's name is also a label of its pods.
MAX_NAME = 63
#: A condition's reason is at most this long.
MAX_REASON = 128


def task_name(run: str, index: int, kind: StepKindName, stage: StageName, attempt: int) -> str:
    """The name of one attempt, fit for a Kubernetes Job: run, step, stage and attempt."""
    short = {"baseline": "b", "p": "p", "w": "w", "final": "f"}[kind]
    tail = f"-{index}{short}-{stage}-{attempt}"
    if len(run) + len(tail) > MAX_NAME:
        # Two long runs that begin alike must not share a name.
        run = f"{run[: MAX_NAME - len(tail) - 9]}-{digest(run)[:8]}"
    return f"{run}{tail}"


def served_name(run: str, adapter: Artifact | None) -> str:
    """The name that calls use: content-addressed, so that no two adapters ever share one (vllm.md, rule V-1)."""
    return BASE_MODEL if adapter is None else f"{run}-{adapter.sha256[:16]}"


def candidate_id(prompt_set: Artifact | None, adapter: Artifact | None) -> str:
    """`vanilla@base`, or the first digits of both digests."""
    prompts = "vanilla" if prompt_set is None else prompt_set.sha256[:12]
    return f"{prompts}@{'base' if adapter is None else adapter.sha256[:12]}"


def camel_case(reason: str, fallback: str = "WorkerDied") -> str:
    """A foreign reason (a kubelet's, a plugin's, a user's image's) as one that conditions and events may have."""
    parts = re.findall(r"[A-Za-z0-9]+", reason)
    word = "".join(part[0].upper() + part[1:] for part in parts).lstrip("0123456789")
    return word[:MAX_REASON] or fallback
