"""What running pods say about themselves over HTTP: served models, adapters, progress. Short, and never an error."""

from __future__ import annotations

import http.client
import json
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, Final

from tandem_api.adapters import AdaptersReport
from tandem_api.contract import Progress
from tandem_operator.platforms.kubernetes import names
from tandem_operator.platforms.kubernetes.pod_state import name_of
from tandem_operator.platforms.kubernetes.serving_state import Answer

Object = dict[str, Any]

_ANSWER_SECONDS: Final = 2.0
#: A worker is asked how far it is at most this often.
PROGRESS_SECONDS: Final = 10.0
_REMEMBERED: Final = 4096

Fetch = Callable[[str, int, str], Any]


def fetch_json(host: str, port: int, path: str) -> Any:
    """The JSON that is at this place, or None."""
    connection = http.client.HTTPConnection(host, port, timeout=_ANSWER_SECONDS)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        body = answer.read()
        return json.loads(body) if answer.status == 200 else None
    except (OSError, http.client.HTTPException, ValueError):
        return None
    finally:
        connection.close()


class Asking:
    """Asks pods, and remembers for a while what workers said. Safe to use from several threads."""

    def __init__(self, fetch: Fetch = fetch_json, clock: Callable[[], float] = time.monotonic) -> None:
        self._fetch = fetch
        self._clock = clock
        self._progress: dict[str, tuple[float, Progress | None]] = {}

    def servers(self, pods: Iterable[Object], *, with_sidecar: bool) -> dict[str, Answer]:
        """What each serving pod answers, by its name."""
        pods = list(pods)
        if not pods:
            return {}
        with ThreadPoolExecutor(min(16, len(pods))) as pool:
            answers = pool.map(lambda pod: self._server(pod["status"]["podIP"], with_sidecar=with_sidecar), pods)
            return dict(zip(map(name_of, pods), answers, strict=True))

    def progress(self, pod: Object) -> Progress | None:
        """How far a worker is; its expected rest counts from now."""
        uid, now = pod["metadata"]["uid"], self._clock()
        asked, known = self._progress.get(uid, (float("-inf"), None))
        if now - asked >= PROGRESS_SECONDS:
            asked, known = now, self._worker(pod)
            if len(self._progress) >= _REMEMBERED:
                self._progress.clear()
            self._progress[uid] = (asked, known)
        if known is None or known.eta_seconds is None:
            return known
        return known.model_copy(update={"eta_seconds": max(0.0, known.eta_seconds - (now - asked))})

    def _server(self, host: str, *, with_sidecar: bool) -> Answer:
        answer = Answer()
        listed = self._fetch(host, names.VLLM_PORT, "/v1/models")
        models = listed.get("data") if isinstance(listed, dict) else None
        if isinstance(models, list):
            answer = Answer(frozenset(str(model.get("id")) for model in models if isinstance(model, dict)))
        if with_sidecar:
            status = self._fetch(host, names.ADAPTERS_PORT, "/status")
            try:
                report = AdaptersReport.model_validate(status)
            except ValueError:
                return answer
            answer = replace(answer, refused={f.name: f.message for f in report.failed if f.permanent})
        return answer

    def _worker(self, pod: Object) -> Progress | None:
        host = (pod.get("status") or {}).get("podIP")
        said = self._fetch(host, names.PROGRESS_PORT, "/progress") if host else None
        try:
            return Progress.model_validate(said) if said else None
        except ValueError:
            return None
