"""Kopf as a source of events, and nothing else: it tells which run something has happened to.

Only low-level event handlers are registered. They need no finalizer, no annotation and no patch, so Kopf never writes
to the cluster; everything is done by the passes, which read for themselves. Kopf runs in a thread with an event loop
of its own, because it takes over the signals of the main thread and, at its end, every task of its loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final, Protocol

import kopf

from tandem_api.v1alpha1.crd import PLURAL
from tandem_api.v1alpha1.run import GROUP, VERSION
from tandem_operator.app.queue import Key
from tandem_operator.platforms.kubernetes.names import OURS, RUN

RUNS: Final = (GROUP, VERSION, PLURAL)
#: What runs are made of, as far as a change of it concerns them. Only those that carry our label are watched.
CHILDREN: Final = (("batch", "v1", "jobs"), ("apps", "v1", "deployments"), ("", "v1", "pods"))
_BEAT_SECONDS = 5.0


class Listener(Protocol):
    """Who is told. Called in the watch's thread."""

    def run_changed(self, key: Key, version: str, *, deleted: bool) -> None:
        """A run is new, changed or deleted; at the start every run is told of once."""

    def child_changed(self, key: Key, *, listed: bool) -> None:
        """Something of the run has changed. `listed`: it is there, and may have changed while nobody watched; at the
        start that is told of everything."""


def handlers(listener: Listener) -> kopf.OperatorRegistry:
    """The registry with all that Kopf is to do: a login and one event handler for each kind."""
    registry = kopf.OperatorRegistry()

    # Asked again whenever the API server answers 401; reads the service account's token, which the kubelet renews,
    # or the kubeconfig anew each time.
    @kopf.on.login(id="login", registry=registry, retries=5, backoff=5.0)
    def login(**options: Any) -> kopf.ConnectionInfo | None:
        return kopf.login_via_client(**options)

    @kopf.on.event(*RUNS, id=PLURAL, registry=registry)
    async def run_changed(event: Mapping[str, Any], **_: Any) -> None:
        meta = event["object"]["metadata"]
        key = (meta["namespace"], meta["name"])
        listener.run_changed(key, meta.get("resourceVersion", ""), deleted=event["type"] == "DELETED")

    async def child_changed(event: Mapping[str, Any], **_: Any) -> None:
        meta = event["object"]["metadata"]
        run = (meta.get("labels") or {}).get(RUN)
        if run:
            listener.child_changed((meta["namespace"], run), listed=event["type"] is None)

    for group, version, plural in CHILDREN:
        kopf.on.event(group, version, plural, id=plural, registry=registry)(child_changed)
    return registry


def kopf_settings() -> kopf.OperatorSettings:
    """Kopf's settings. What is not set here is either its default that we want, or of a part that we do not use."""
    settings = kopf.OperatorSettings()
    settings.watching.server_timeout = 300
    settings.watching.client_timeout = 310
    settings.watching.connect_timeout = 30
    # Lists come in parts, so that a thousand runs do not come as one text of many megabytes.
    settings.watching.chunk_size = 200
    for child in CHILDREN:
        settings.watching.label_selectors[child] = OURS
    settings.networking.connect_timeout = 10
    settings.networking.request_timeout = 60
    settings.networking.enforce_retry_after = True
    # No watch of definitions and namespaces, which would need rights on the whole cluster.
    settings.scanning.disabled = True
    # We write our own events.
    settings.posting.enabled = False
    # Handlers only pass a name on. A worker lingers after its last event and counts against the limit meanwhile:
    # with the default of 5 s the first list of many objects would take minutes.
    settings.queueing.worker_limit = 256
    settings.queueing.idle_timeout = 0.5
    settings.queueing.exit_timeout = 1.0
    # By default an object whose events failed repeatedly is ignored for up to ten minutes.
    settings.queueing.error_delays = (1, 2, 5, 10)
    settings.execution.executor = ThreadPoolExecutor(2, thread_name_prefix="kopf")
    # Names of our own, though nothing is ever written under them. The finalizer must not be that of the runs: Kopf
    # removes its own where no handler needs it.
    settings.persistence.finalizer = f"{GROUP}/kopf"
    settings.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix=f"kopf.{GROUP}")
    settings.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix=f"kopf.{GROUP}")
    # The process ends itself.
    settings.process.ultimate_exiting_timeout = None
    return settings


class Watch:
    """The watches of all kinds, from `start` to `stop`."""

    def __init__(
        self, listener: Listener, namespaces: tuple[str, ...], clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`namespaces`: where to watch; none: in the whole cluster."""
        self._listener = listener
        self._namespaces = namespaces
        self._clock = clock
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop: asyncio.Event | None = None
        self._is_stopping = threading.Event()
        self.turned = clock()
        """When its loop last turned."""
        self.ended: Future[None] = Future()
        """Done when it has ended; with an exception if it failed."""

    def start(self) -> None:
        """Begin to watch, in a thread of its own."""
        threading.Thread(target=self._run, name="watch", daemon=True).start()

    def stop(self) -> None:
        """Ask it to end. May be called at any time, from any thread."""
        self._is_stopping.set()
        loop, stop = self._loop, self._stop
        if loop is not None and stop is not None:
            # The loop may have been closed meanwhile.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(stop.set)

    def _run(self) -> None:
        try:
            asyncio.run(self._watch())
        except BaseException as error:
            self.ended.set_exception(error)
        else:
            self.ended.set_result(None)

    async def _watch(self) -> None:
        self._stop = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        if self._is_stopping.is_set():
            return
        # It says that it does not handle signals here, which is why it is here.
        logging.getLogger("kopf._core.reactor.running").setLevel(logging.ERROR)
        # Each event is told of, in words and with every object's name.
        logging.getLogger("kopf.objects").setLevel(logging.WARNING)
        beat = asyncio.create_task(self._beat())
        run = functools.partial(
            kopf.operator,
            registry=handlers(self._listener),
            settings=kopf_settings(),
            # Not a peer of other Kopf operators: who leads is said by our Lease.
            standalone=True,
            stop_flag=self._stop,
        )
        try:
            if self._namespaces:
                await run(namespaces=self._namespaces)
            else:
                await run(clusterwide=True)
        finally:
            beat.cancel()

    async def _beat(self) -> None:
        while True:
            self.turned = self._clock()
            await asyncio.sleep(_BEAT_SECONDS)
