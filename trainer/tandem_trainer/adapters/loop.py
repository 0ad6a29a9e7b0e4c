"""The sidecar's loop: look at what is wanted and at what vLLM lists, and start what `plan` says; for ever."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from tandem_api.adapters import AdaptersReport, DesiredAdapter, DesiredAdapters
from tandem_api.errors import PERMANENT_EXIT_CODES, ConfigurationError, KeyRefusedError, TandemError
from tandem_api.store import ObjectStore
from tandem_trainer.adapters import files
from tandem_trainer.adapters.canary import CanaryUnansweredError, find_fault, read_canary
from tandem_trainer.adapters.metrics import FAILURES, SECONDS
from tandem_trainer.adapters.plan import (
    Action,
    Fetch,
    Load,
    Memory,
    Observed,
    Problem,
    Prove,
    Remove,
    Trouble,
    Unload,
    after,
    asks_activity,
    judge_load,
    plan,
    report,
)
from tandem_trainer.adapters.vllm import VLLM, NoAnswerError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Settings:
    """Where the sidecar looks, and how often."""

    desired: Path
    """The mounted list of wanted adapters."""
    folder: Path
    """Shared with vLLM under the same path."""
    max_rank: int
    """vLLM's --max-lora-rank."""
    interval: float = 1.0
    """Seconds between two looks at vLLM."""
    file_interval: float = 0.2
    """Seconds between two looks at the mounted file."""


class Sidecar:
    """Keeps one vLLM's adapters as they are wanted. Everything runs on one event loop; downloads have threads.

    Nothing is waited for in the loop itself: whatever takes time is a task, at most one for each adapter's name.
    """

    def __init__(
        self,
        settings: Settings,
        vllm: VLLM,
        open_store: Callable[[str], ObjectStore],
        renew_key: Callable[[], None] = lambda: None,
    ) -> None:
        """`renew_key`: called when the store refuses the key; returns when no other one can be had."""
        self._settings = settings
        self._vllm = vllm
        self._open_store = open_store
        self._renew_key = renew_key
        self._fetched: frozenset[DesiredAdapter] = frozenset()
        self._troubles: dict[DesiredAdapter, Trouble] = {}
        self._proofs: dict[DesiredAdapter, bool] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._wake = asyncio.Event()
        self._told: AdaptersReport | None = None
        self._last_tick = time.monotonic()

    @property
    def seconds_since_tick(self) -> float:
        """How long ago the loop last went round."""
        return time.monotonic() - self._last_tick

    async def run(self) -> NoReturn:
        """Go round for ever. What goes wrong is logged; /healthz tells if it goes on going wrong."""
        while True:
            seen = _signature(self._settings.desired)
            try:
                await self.tick()
            except Exception:
                logger.exception("a round of the adapter sidecar failed")
            await self._rest(seen)

    async def tick(self) -> None:
        """Look once, and start what can be done."""
        desired, observed = self._desired(), await self._vllm.observe()
        if isinstance(desired, DesiredAdapters):
            self._forget(desired, observed)
            memory = self._memory()
            if asks_activity(desired, observed, memory):
                observed = replace(observed, activity=await self._vllm.activity())
            for action in plan(desired, observed, memory, time.monotonic()):
                self._start(action)
        self._tell(report(desired, observed, self._memory()))
        self._last_tick = time.monotonic()

    async def report(self) -> AdaptersReport:
        """Where the adapters stand at this moment."""
        return report(self._desired(), await self._vllm.observe(), self._memory())

    def _desired(self) -> DesiredAdapters | str:
        try:
            return files.read_desired(self._settings.desired)
        except ConfigurationError as error:
            return str(error)

    def _memory(self) -> Memory:
        folder = self._settings.folder
        underway, lying = frozenset(self._tasks), files.present(folder)
        return Memory(folder, self._fetched, underway, self._troubles, lying, self._proofs)

    def _forget(self, desired: DesiredAdapters, observed: Observed) -> None:
        """Remember nothing of what is wanted no longer, no proof of what is loaded no longer, and no trouble of what
        is proven."""
        self._fetched &= frozenset(desired.adapters)
        self._proofs = {
            adapter: proof
            for adapter, proof in self._proofs.items()
            # A vLLM that is not up tells nothing; one that is started anew lists nothing.
            if adapter in desired.adapters and (not observed.up or adapter.name in observed.roots)
        }
        self._troubles = {
            adapter: trouble
            for adapter, trouble in self._troubles.items()
            if adapter in desired.adapters and not self._proofs.get(adapter)
        }

    def _root(self, adapter: DesiredAdapter) -> str:
        return str(self._settings.folder / adapter.folder)

    def _start(self, action: Action) -> None:
        match action:
            case Fetch(adapter):
                self._run(adapter.name, self._guarded(adapter, self._fetch(adapter)))
            case Load(adapter):
                self._run(adapter.name, self._guarded(adapter, self._load(adapter)))
            case Prove(adapter):
                self._run(adapter.name, self._guarded(adapter, self._prove(adapter)))
            case Unload(name):
                self._run(name, self._unload(name))
            case Remove(sha256):
                shutil.rmtree(self._settings.folder / sha256)
                logger.info("removed the files of %s: more than enough others lie here", sha256)

    def _run(self, name: str, work: Coroutine[None, None, bool]) -> None:
        """Do it in a task; what it makes possible is done at once."""

        async def run() -> None:
            try:
                if await work:
                    self._wake.set()
            finally:
                del self._tasks[name]

        self._tasks[name] = asyncio.create_task(run())

    async def _guarded(self, adapter: DesiredAdapter, work: Coroutine[None, None, bool]) -> bool:
        """Whatever goes wrong is the adapter's trouble, for its tries are bounded."""
        try:
            return await work
        except Exception as error:
            logger.exception("%s: something unforeseen", adapter.name)
            return self._note(adapter, Problem("counted", f"{type(error).__name__}: {error}"))

    async def _fetch(self, adapter: DesiredAdapter) -> bool:
        settings = self._settings
        try:
            with SECONDS.labels("fetch").time():
                await asyncio.to_thread(files.fetch, adapter, settings.folder, settings.max_rank, self._open_store)
        except TandemError as error:
            if isinstance(error, KeyRefusedError):
                self._renew_key()
            permanent = error.exit_code in PERMANENT_EXIT_CODES
            return self._note(adapter, Problem("permanent" if permanent else "passing", f"{error.code}: {error}"))
        except OSError as error:
            return self._note(adapter, Problem("passing", f"the adapter cannot be stored here: {error}"))
        logger.info("%s: fetched and verified", adapter.name)
        self._fetched |= {adapter}
        return True

    async def _load(self, adapter: DesiredAdapter) -> bool:
        root = self._root(adapter)
        started = time.monotonic()
        answer = await self._vllm.load(adapter.name, root)
        if not answer.sent:
            return False
        problem = judge_load(answer.status, answer.text, await self._vllm.observe(), adapter.name, root)
        if problem is not None:
            if answer.status == 404:
                self._fetched -= {adapter}  # its files are looked at again
            return self._note(adapter, problem)
        seconds = time.monotonic() - started
        SECONDS.labels("load").observe(seconds)
        logger.info("%s: loaded from %s in %.2f s", adapter.name, root, seconds)
        return True

    async def _prove(self, adapter: DesiredAdapter) -> bool:
        canary = read_canary(self._settings.folder / adapter.folder)
        try:
            fault = await find_fault(canary, adapter.name, self._vllm.complete)
        except NoAnswerError as error:
            return self._note(adapter, Problem("passing", f"its canary: {error}"))
        except CanaryUnansweredError as error:
            logger.warning("%s: taken without its canary: %s", adapter.name, error)
            fault = None
        self._proofs[adapter] = fault is None
        if fault is not None:
            if adapter.number is None:
                # Its files are looked at again before it is loaded again; those that others share are in use.
                self._fetched -= {adapter}
            self._note(adapter, Problem("counted", fault))
        else:
            logger.info("%s: %s", adapter.name, canary.reason or "vLLM answers as its canary says")
        return True

    async def _unload(self, name: str) -> bool:
        answer = await self._vllm.unload(name)
        if answer.status not in (200, 404):
            logger.warning("%s: cannot be unloaded: %s %s", name, answer.status, answer.text)
            return False
        logger.info("%s: unloaded", name)
        return True

    def _note(self, adapter: DesiredAdapter, problem: Problem) -> bool:
        trouble = after(self._troubles.get(adapter), problem, time.monotonic())
        self._troubles[adapter] = trouble
        FAILURES.labels("permanent" if trouble.permanent else "passing").inc()
        logger.warning("%s: try %d: %s", adapter.name, trouble.tries, trouble.message)
        return False

    def _tell(self, found: AdaptersReport) -> None:
        """A line in the log whenever something has changed."""
        if self._told != found:
            self._told = found
            names = ", ".join(found.loaded) or "no adapter is wanted"
            logger.info("%s", f"ready: {names}" if found.ready else f"not ready: {found.message}")

    async def _rest(self, seen: object) -> None:
        """Until the next round is due, something was finished, or the mounted file is another than the one `seen`."""
        deadline = time.monotonic() + self._settings.interval
        while time.monotonic() < deadline and _signature(self._settings.desired) == seen:
            try:
                await asyncio.wait_for(self._wake.wait(), self._settings.file_interval)
                break
            except TimeoutError:
                continue
        self._wake.clear()


def _signature(path: Path) -> tuple[int, int] | None:
    """Differs for another file at that path; a ConfigMap changes by a link that points elsewhere."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns
