"""What running pods say about themselves over HTTP: served models, adapters, progress. Short, and never an error."""

from __future__ import annotations

import http.client
import io
import json
import socket
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Lock
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypeVar, cast

from cachetools import TTLCache

from tandem_api.adapters import AdaptersReport
from tandem_api.contract import Progress
from tandem_operator.platforms.kubernetes import names
from tandem_operator.platforms.kubernetes.pod_state import name_of
from tandem_operator.platforms.kubernetes.serving_state import Answer

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

Object = dict[str, Any]

#: From the connection to the last byte.
_ANSWER_SECONDS: Final = 3.0
#: Head and body.
_ANSWER_BYTES: Final = 64 * 1024
#: A worker is asked how far it is at most this often.
PROGRESS_SECONDS: Final = 5.0
#: What a server said last stands for so long when it does not answer.
KEPT_SECONDS: Final = 20.0
#: Of how many pods it is known what they said last, and for how long after that.
_REMEMBERED: Final = 4096
_REMEMBERED_SECONDS: Final = 600.0
#: Of one server; more than one has, and few enough to remember.
_MODELS: Final = 100

Fetch = Callable[[str, int, str], Any]
_Known = TypeVar("_Known")
_Memory: TypeAlias = TTLCache[str, _Known]


def fetch_json(host: str, port: int, path: str) -> Any:
    """The JSON that is at this place, or None: also for an answer that is too long, or takes too long as a whole."""
    deadline = time.monotonic() + _ANSWER_SECONDS
    connection = http.client.HTTPConnection(host, port, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", path)
        answer = http.client.HTTPResponse(cast(socket.socket, _Bounded(connection.sock, deadline)), method="GET")
        answer.begin()
        # Not all at once: then memory is set aside for whatever length the answer claims to have.
        body = answer.read(_ANSWER_BYTES)
        return json.loads(body) if answer.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError, RecursionError):
        return None
    finally:
        connection.close()


class _Bounded(io.RawIOBase):
    """What comes through a socket until a moment and up to a size; OSError beyond. A user's image may send anything."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self._connection = connection
        self._deadline = deadline
        self._left = _ANSWER_BYTES

    def makefile(self, mode: str) -> io.BufferedReader:
        """What HTTPResponse asks of a socket."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        seconds = self._deadline - time.monotonic()
        if seconds <= 0:
            raise TimeoutError("the answer takes too long")
        self._connection.settimeout(seconds)
        received = self._connection.recv_into(buffer)
        self._left -= received
        if self._left < 0:
            raise OSError("the answer is too long")
        return received


class Asking:
    """Asks pods, and remembers for a while what they said. Safe to use from several threads."""

    def __init__(self, fetch: Fetch = fetch_json, clock: Callable[[], float] = time.monotonic) -> None:
        self._fetch = fetch
        self._clock = clock
        self._lock = Lock()
        self._progress: _Memory[tuple[float, Progress | None]] = TTLCache(_REMEMBERED, _REMEMBERED_SECONDS, clock)
        self._heard: _Memory[tuple[float, frozenset[str] | None]] = TTLCache(_REMEMBERED, _REMEMBERED_SECONDS, clock)
        """By pod uid: when a server answered last, and its models; or when it was first asked, and None."""

    def servers(self, pods: Iterable[Object], *, with_sidecar: bool) -> dict[str, Answer]:
        """What each serving pod answers, by its name."""
        pods = list(pods)
        if len(pods) <= 1:
            return {name_of(pod): self._server(pod, with_sidecar=with_sidecar) for pod in pods}
        with ThreadPoolExecutor(min(16, len(pods))) as pool:
            answers = pool.map(lambda pod: self._server(pod, with_sidecar=with_sidecar), pods)
            return dict(zip(map(name_of, pods), answers, strict=True))

    def progress(self, pod: Object) -> Progress | None:
        """How far a worker is; its expected rest counts from now."""
        uid, now = pod["metadata"]["uid"], self._clock()
        with self._lock:
            asked, known = self._progress.get(uid, (float("-inf"), None))
        if now - asked >= PROGRESS_SECONDS:
            asked, known = now, self._worker(pod)
            with self._lock:
                self._progress[uid] = asked, known
        if known is None or known.eta_seconds is None:
            return known
        return known.model_copy(update={"eta_seconds": max(0.0, known.eta_seconds - (now - asked))})

    def _server(self, pod: Object, *, with_sidecar: bool) -> Answer:
        host = pod["status"]["podIP"]
        answer = self._models(pod["metadata"]["uid"], host)
        if with_sidecar:
            status = self._fetch(host, names.ADAPTERS_PORT, "/status")
            try:
                report = AdaptersReport.model_validate(status)
            except ValueError:
                return answer
            answer = replace(answer, refused={f.name: f.message for f in report.failed if f.permanent})
        return answer

    def _models(self, uid: str, host: str) -> Answer:
        """What vLLM lists; when it does not answer, what it listed a moment ago: it may be busy."""
        listed, now = self._fetch(host, names.VLLM_PORT, "/v1/models"), self._clock()
        models = listed.get("data") if isinstance(listed, dict) else None
        if isinstance(models, list):
            said = frozenset(str(model.get("id")) for model in models[:_MODELS] if isinstance(model, dict))
            with self._lock:
                self._heard[uid] = now, said
            return Answer(said, reached=True)
        with self._lock:
            since, known = self._heard.get(uid, (now, None))
            if known is not None and now - since <= KEPT_SECONDS:
                return Answer(known, reached=True)
            self._heard[uid] = since, None
        return Answer(silent_seconds=now - since)

    def _worker(self, pod: Object) -> Progress | None:
        host = (pod.get("status") or {}).get("podIP")
        said = self._fetch(host, names.PROGRESS_PORT, "/progress") if host else None
        try:
            return Progress.model_validate(said) if said else None
        except ValueError:
            return None
