"""What is to be done about one vLLM's adapters, and what is to be told of them. Decided without I/O or a clock.

vLLM forgets its adapters when it is started anew, and nobody tells: what it lists is compared with what is wanted,
again and again. A name and a folder have one content for ever, so nothing is ever loaded over something else.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Literal

from tandem_api.adapters import AdapterFailure, AdaptersReport, DesiredAdapter, DesiredAdapters, PendingAdapter
from tandem_api.v1alpha1.status import MAX_MESSAGE
from tandem_trainer.serving import MAX_CPU_LORAS

#: How often a load may fail before the adapter is given up.
LOAD_ATTEMPTS: Final = 5
#: Seconds until the next try; doubled each time.
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
#: Adapters stay on disk after they are unloaded, for the pod is short-lived and what is gone cannot be missed too
#: early. Beyond this many the oldest ones that nobody can ask for any more are removed.
KEPT_FOLDERS: Final = MAX_CPU_LORAS
#: In vLLM's answers: this adapter will never do (vLLM 0.32, lora/peft_helper.py and lora/lora_model.py). What vLLM
#: words otherwise is tried again a few times.
_HOPELESS: Final = (
    "greater than max_lora_rank",
    "does not support",
    "does not yet support",
    "only supports",
    "is not supported",
    "unsupported LoRA weight",
    "Missing required configuration",
    "target modules in",
    "doesn't contain tensors",
    "must match the size of tensor",  # an adapter of another model
)


@dataclass(frozen=True)
class Activity:
    """vLLM's calls, as its metrics tell."""

    calls: int
    """Running and waiting, for all its models."""
    adapters: frozenset[str]
    """Those with a call among them."""
    engines: int = 1

    def is_busy(self, name: str) -> bool:
        """Whether an adapter may have a call. With several engines the metrics tell of one of them only."""
        return self.calls > 0 and (self.engines > 1 or name in self.adapters)


@dataclass(frozen=True)
class Observed:
    """vLLM as it is now."""

    up: bool
    message: str = ""
    """Why it is not up."""
    roots: Mapping[str, str] = field(default_factory=dict)
    """The folder of each adapter that it lists, by name."""
    activity: Activity | None = None
    """None: not asked, or it does not tell."""


#: permanent: no retry helps; counted: given up after LOAD_ATTEMPTS; passing: tried again for ever.
ProblemKind = Literal["permanent", "counted", "passing"]


@dataclass(frozen=True)
class Problem:
    """Why one try failed."""

    kind: ProblemKind
    message: str


@dataclass(frozen=True)
class Trouble:
    """All tries of an adapter since it was last loaded."""

    message: str
    permanent: bool
    retry_at: float
    """On the clock that `plan` is given."""
    tries: int
    counted: int


@dataclass(frozen=True)
class Memory:
    """What the sidecar remembers; empty at its start, and nothing is lost with it."""

    folder: Path
    """Where adapters lie, each in a folder named by its digest."""
    fetched: frozenset[DesiredAdapter] = frozenset()
    """Lie there, verified."""
    underway: frozenset[str] = frozenset()
    """Names that something is being done about."""
    troubles: Mapping[DesiredAdapter, Trouble] = field(default_factory=dict)
    folders: tuple[str, ...] = ()
    """The digests that lie in the folder, the oldest first."""
    proofs: Mapping[DesiredAdapter, bool] = field(default_factory=dict)
    """Of adapters that vLLM lists: whether it really answers with them, as their canaries tell."""

    def root(self, adapter: DesiredAdapter) -> str:
        """The path under which vLLM is to know it."""
        return str(self.folder / adapter.folder)


@dataclass(frozen=True)
class Fetch:
    """Have it in the folder, verified and checked."""

    adapter: DesiredAdapter


@dataclass(frozen=True)
class Load:
    """Ask vLLM to load it."""

    adapter: DesiredAdapter


@dataclass(frozen=True)
class Prove:
    """Ask vLLM for the canary of an adapter that it lists."""

    adapter: DesiredAdapter


@dataclass(frozen=True)
class Unload:
    """Ask vLLM to forget it."""

    name: str


@dataclass(frozen=True)
class Remove:
    """Delete the folder of that digest."""

    sha256: str


Action = Fetch | Load | Prove | Unload | Remove


def plan(desired: DesiredAdapters, observed: Observed, memory: Memory, now: float) -> Iterator[Action]:
    """What can be done at once; each action's success or trouble is in the next call's arguments."""
    if observed.up:
        busy = _busy(desired, observed, memory)
        yield from (Unload(name) for name in unwanted(desired, observed, memory) if name not in busy | memory.underway)
        yield from _removals(desired, observed, memory)
    room = MAX_CPU_LORAS - len(observed.roots.keys() | memory.underway)
    fetching = {
        adapter.sha256
        for adapter in desired.adapters
        if adapter.name in memory.underway and adapter not in memory.fetched
    }
    for adapter in desired.adapters:
        if adapter.name in memory.underway:
            continue
        trouble = memory.troubles.get(adapter)
        waits = trouble is not None and now < trouble.retry_at
        if adapter.name in observed.roots:
            if memory.proofs.get(adapter) is False:
                yield Unload(adapter.name)
            elif _is_listed(adapter, observed, memory) and adapter not in memory.proofs and not waits:
                yield Prove(adapter)
            continue  # proven, or the name is taken, which only vLLM's next start can change
        if waits or (trouble is not None and trouble.permanent):
            continue
        if adapter not in memory.fetched:
            # Adapters of one folder are fetched one after another: the first brings the files of all.
            if adapter.sha256 not in fetching:
                fetching.add(adapter.sha256)
                yield Fetch(adapter)
        elif observed.up and room > 0:
            room -= 1
            yield Load(adapter)


def asks_activity(desired: DesiredAdapters, observed: Observed, memory: Memory) -> bool:
    """Whether `plan` needs to know vLLM's activity."""
    return observed.up and (bool(unwanted(desired, observed, memory)) or len(memory.folders) > KEPT_FOLDERS)


def unwanted(desired: DesiredAdapters, observed: Observed, memory: Memory) -> list[str]:
    """Adapters that vLLM lists, that lie in our folder, and that are wanted no longer. Others' are left alone."""
    wanted = {adapter.name for adapter in desired.adapters}
    return sorted(
        name for name, root in observed.roots.items() if name not in wanted and memory.folder in Path(root).parents
    )


def after(before: Trouble | None, problem: Problem, now: float) -> Trouble:
    """The adapter's trouble after one more failed try."""
    tries = 1 + (before.tries if before is not None else 0)
    counted = (problem.kind == "counted") + (before.counted if before is not None else 0)
    given_up = counted >= LOAD_ATTEMPTS
    message = f"{problem.message} (given up after {counted} tries)" if given_up else problem.message
    wait = min(LONGEST_WAIT, FIRST_WAIT * 2 ** min(tries - 1, 10))
    return Trouble(message, problem.kind == "permanent" or given_up, now + wait, tries, counted)


def judge_load(status: int | None, text: str, observed: Observed, name: str, root: str) -> Problem | None:
    """Whether a load succeeded: `observed` was seen after it. `status` is None where vLLM broke off its answer.

    Only what vLLM lists counts. A 500 means a bad adapter at least as often as a passing fault.
    """
    if observed.roots.get(name) == root:
        return None
    said = f"vLLM answered {status} to the load of {root}: {text}" if status is not None else text
    if name in observed.roots:
        # Not for ever: it ends with that vLLM. While it lasts, `report` calls it permanent.
        return Problem("passing", _conflict(name, observed.roots[name], root))
    if not observed.up:
        # Whatever it is, an adapter that ends vLLM each time must not be loaded for ever.
        return Problem("counted", f"after the load of {root}: {observed.message}; {said}")
    if status in (400, 401, 403):
        return Problem("permanent", said)
    if status == 404:
        wanted = "both containers must mount the same volume there, and vLLM must be started with --mode reload"
        return Problem("counted", f"{said}; {wanted}")
    if status == 500 and any(sign in text for sign in _HOPELESS):
        return Problem("permanent", said)
    if status == 200:
        return Problem("counted", f"{said}, but GET /v1/models does not list {name!r}")
    return Problem("counted", said)


def report(desired: DesiredAdapters | str, observed: Observed, memory: Memory) -> AdaptersReport:
    """Where everything stands. `desired` is a message where the wanted adapters cannot be read."""
    if isinstance(desired, str):
        return AdaptersReport(ready=False, message=_cut(desired))
    loaded: list[str] = []
    failed: list[AdapterFailure] = []
    pending: list[PendingAdapter] = []
    for adapter in desired.adapters:
        name, root = adapter.name, memory.root(adapter)
        trouble = memory.troubles.get(adapter)
        if _is_listed(adapter, observed, memory) and memory.proofs.get(adapter):
            loaded.append(name)
        elif observed.roots.get(name, root) != root:
            message = _cut(_conflict(name, observed.roots[name], root))
            failed.append(AdapterFailure(name=name, message=message, permanent=True))
        elif trouble is not None:
            failed.append(AdapterFailure(name=name, message=_cut(trouble.message), permanent=trouble.permanent))
        else:
            pending.append(PendingAdapter(name=name, message=_cut(_waits_for(adapter, desired, observed, memory))))
    reasons = [] if observed.up else [observed.message]
    reasons += [f"{failure.name}: {failure.message}" for failure in failed]
    reasons += [f"{waiting.name}: {waiting.message}" for waiting in pending]
    return AdaptersReport(
        ready=not reasons,
        message=_cut("; ".join(reasons)),
        desired=desired.digest,
        loaded=tuple(loaded),
        failed=tuple(failed),
        pending=tuple(pending),
    )


def _is_listed(adapter: DesiredAdapter, observed: Observed, memory: Memory) -> bool:
    """Whether vLLM lists the adapter from our folder."""
    return observed.roots.get(adapter.name) == memory.root(adapter)


def _removals(desired: DesiredAdapters, observed: Observed, memory: Memory) -> Iterator[Remove]:
    """Only while nothing at all is going on: vLLM reads an adapter again from disk whenever a call needs it, and dies
    if it is not there."""
    if memory.underway or observed.activity is None or observed.activity.calls:
        return
    needed = {adapter.sha256 for adapter in desired.adapters} | {
        part for root in observed.roots.values() for part in Path(root).parts
    }
    removable = [sha256 for sha256 in memory.folders if sha256 not in needed]
    yield from (Remove(sha256) for sha256 in removable[: max(0, len(memory.folders) - KEPT_FOLDERS)])


def _busy(desired: DesiredAdapters, observed: Observed, memory: Memory) -> frozenset[str]:
    """Unwanted adapters that may have a call; all of them where vLLM does not tell."""
    return frozenset(
        name
        for name in unwanted(desired, observed, memory)
        if observed.activity is None or observed.activity.is_busy(name)
    )


def _waits_for(adapter: DesiredAdapter, desired: DesiredAdapters, observed: Observed, memory: Memory) -> str:
    if adapter.name in observed.roots:
        return "it is loaded, and vLLM is asked for its canary"
    if adapter not in memory.fetched:
        return f"it is being fetched from {adapter.uri}"
    if not observed.up:
        return "it is fetched and waits for vLLM"
    if len(observed.roots) >= MAX_CPU_LORAS:
        held = ", ".join(unwanted(desired, observed, memory)) or "none of ours"
        return (
            f"{len(observed.roots)} adapters are registered, at most {MAX_CPU_LORAS} are allowed; no longer wanted, "
            f"but with calls that have not ended, or that vLLM's /metrics does not tell of: {held}"
        )
    return "it is being loaded"


def _conflict(name: str, found: str, wanted: str) -> str:
    return (
        f"vLLM serves {name!r} from {found}, wanted: {wanted}; a name is given to one adapter only: "
        "leave it out of vLLM's own arguments, or start vLLM anew"
    )


def _cut(text: str) -> str:
    return text if len(text) <= MAX_MESSAGE else f"{text[: MAX_MESSAGE - 6]} [...]"
