"""MLflow over its REST API 2.0, as far as a run is logged: https://mlflow.org/docs/latest/api_reference/rest-api.html.

MLflow's own client would cost each worker 1.5 s of CPU and 110 MiB. Every call here may be repeated but `create_run`,
which knows of no earlier one; callers search first.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any, Final, Literal
from urllib.parse import quote

import requests

RunState = Literal["RUNNING", "FINISHED", "FAILED", "KILLED"]
#: How long a connection, a pause between two pieces of an answer, and an answer as a whole may take.
CONNECT_SECONDS, READ_SECONDS, ANSWER_SECONDS = 3.0, 5.0, 8.0
#: No answer of MLflow that we ask for is as long.
MAX_ANSWER_BYTES: Final = 32 * 2**20
#: As much as MLflow takes in one batch: 1000 things, at most 100 of them parameters and 100 tags.
MAX_METRICS, MAX_PARAMS, MAX_TAGS = 800, 100, 100
_PAGE: Final = 1000
_PARENT: Final = "mlflow.parentRunId"
_MAX_TOLD: Final = 300


class TrackingError(Exception):
    """MLflow cannot be had, or does not take what it is given. The message holds no key."""

    def __init__(self, message: str, *, is_passing: bool = False) -> None:
        """`is_passing`: it may do better the next time."""
        super().__init__(message)
        self.is_passing = is_passing


class RefusedError(TrackingError):
    """MLflow has answered with an error of its own; `code` is its word for it."""

    def __init__(self, message: str, code: str, *, is_passing: bool) -> None:
        super().__init__(message, is_passing=is_passing)
        self.code = code


@dataclass(frozen=True)
class Point:
    """One value of a metric."""

    key: str
    value: float
    step: int
    timestamp: int
    """In milliseconds since 1970."""


@dataclass(frozen=True)
class Run:
    """A run as MLflow has it."""

    id: str
    status: str
    start: int
    artifact_uri: str
    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: frozenset[str] = frozenset()
    """The names of those that have a value."""


class MLflowClient:
    """One server. Every method raises TrackingError; used by one thread."""

    def __init__(self, uri: str, account: Mapping[str, str]) -> None:
        """`account`: MLFLOW_TRACKING_USERNAME and _PASSWORD, or MLFLOW_TRACKING_TOKEN; empty: none is sent.

        Raises TrackingError for a token that no header can hold.
        """
        self._uri = uri.rstrip("/")
        self._session = requests.Session()
        values = {name.removeprefix("MLFLOW_TRACKING_"): value.strip() for name, value in account.items()}
        user, password, token = (values.get(name, "") for name in ("USERNAME", "PASSWORD", "TOKEN"))
        if not (token.isascii() and token.isprintable()):
            raise TrackingError("MLFLOW_TRACKING_TOKEN holds characters that no token has; correct the Secret")
        # Set in any case: without one, requests would look for an account in ~/.netrc.
        self._session.auth = _Account(user, password, token)

    def experiment(self, name: str) -> str:
        """The id of the experiment of that name, which is created if there is none."""
        for _ in range(2):
            try:
                found = _of(self._get("experiments/get-by-name", experiment_name=name), "experiment")
            except RefusedError as error:
                if error.code != "RESOURCE_DOES_NOT_EXIST":
                    raise
            else:
                if found.get("lifecycle_stage", "active") != "active":
                    raise TrackingError(f"the experiment {name!r} is deleted; restore it, or name another one")
                return str(_of(found, "experiment_id"))
            try:
                return str(_of(self._post("experiments/create", name=name), "experiment_id"))
            except RefusedError as error:
                if error.code != "RESOURCE_ALREADY_EXISTS":
                    raise
        raise TrackingError(f"the experiment {name!r} can neither be found nor created")

    def search(self, experiment: str, tag: str, value: str) -> list[Run]:
        """The runs of the experiment that have this tag with this value, deleted ones left out."""
        query = {"experiment_ids": [experiment], "filter": f"tags.`{tag}` = '{value}'", "max_results": _PAGE}
        return [_run(raw) for raw in self._pages("runs/search", "runs", query)]

    def create_run(self, experiment: str, name: str, start: int, parent: str | None, tags: Mapping[str, str]) -> Run:
        """A new run, with its tags from the first moment on."""
        tags = {**tags, **({_PARENT: parent} if parent is not None else {})}
        raw = self._post("runs/create", experiment_id=experiment, run_name=name, start_time=start, tags=_pairs(tags))
        return _run(_of(raw, "run"))

    def update_run(self, run: str, state: RunState, end: int | None) -> None:
        """Say how a run stands, and when it ended."""
        self._post("runs/update", run_id=run, status=state, **({"end_time": end} if end is not None else {}))

    def delete_run(self, run: str) -> None:
        """Delete a run; it can be restored in MLflow."""
        self._post("runs/delete", run_id=run)

    def delete_tag(self, run: str, key: str) -> None:
        """Take a tag off a run; that it is not there is no error."""
        try:
            self._post("runs/delete-tag", run_id=run, key=key)
        except RefusedError as error:
            if error.code != "RESOURCE_DOES_NOT_EXIST":
                raise

    def log(self, run: str, points: Sequence[Point], params: Mapping[str, str], tags: Mapping[str, str]) -> None:
        """Log all of them, in as many batches as it takes."""
        metrics = [{"key": p.key, "value": p.value, "step": p.step, "timestamp": p.timestamp} for p in points]
        parts = zip_longest(
            _parts(metrics, MAX_METRICS),
            _parts(_pairs(params), MAX_PARAMS),
            _parts(_pairs(tags), MAX_TAGS),
            fillvalue=(),
        )
        for some_metrics, some_params, some_tags in parts:
            self._post(
                "runs/log-batch",
                run_id=run,
                metrics=list(some_metrics),
                params=list(some_params),
                tags=list(some_tags),
            )

    def steps(self, run: str, key: str) -> set[int]:
        """At which steps the metric has a value."""
        query: dict[str, Any] = {"run_id": run, "metric_key": key}
        found: set[int] = set()
        while True:
            answer = self._get("metrics/get-history", **query)
            found.update(int(metric.get("step", 0)) for metric in answer.get("metrics", ()))
            if not answer.get("next_page_token"):
                return found
            query["page_token"] = answer["next_page_token"]

    def register(self, name: str, source: str, run: str, description: str, tags: Mapping[str, str]) -> str:
        """The version of the registered model `name` that `source` is, made if there is none. Returns its number."""
        try:
            self._post("registered-models/create", name=name)
        except RefusedError as error:
            if error.code != "RESOURCE_ALREADY_EXISTS":
                raise
        for version in self._versions(name):
            if version.get("source") == source:
                return str(_of(version, "version"))
        made = self._post(
            "model-versions/create",
            name=name,
            source=source,
            run_id=run,
            description=description,
            tags=_pairs(tags),
        )
        return str(_of(_of(made, "model_version"), "version"))

    def upload(self, artifact_uri: str, path: str, data: bytes) -> None:
        """Put an artifact of a run into MLflow, in place of one that is there."""
        scheme, _, rest = artifact_uri.partition(":")
        if scheme != "mlflow-artifacts":
            raise TrackingError(
                f"artifacts: upload needs a server that takes artifacts itself (mlflow server --serve-artifacts); the "
                f"run's lie at {scheme}:"
            )
        # mlflow-artifacts:/0/RUN/artifacts, or mlflow-artifacts://HOST/0/RUN/artifacts.
        folder = rest.lstrip("/") if not rest.startswith("//") else rest[2:].partition("/")[2]
        url = f"{self._uri}/api/2.0/mlflow-artifacts/artifacts/{quote(f'{folder}/{path}')}"
        self._request("PUT", url, data=data)

    def _versions(self, name: str) -> Iterator[dict[str, Any]]:
        query: dict[str, Any] = {"filter": f"name = '{name}'", "max_results": _PAGE}
        while True:
            answer = self._get("model-versions/search", **query)
            yield from answer.get("model_versions", ())
            if not answer.get("next_page_token"):
                return
            query["page_token"] = answer["next_page_token"]

    def _pages(self, path: str, key: str, query: dict[str, Any]) -> Iterator[dict[str, Any]]:
        while True:
            answer = self._post(path, **query)
            yield from answer.get(key, ())
            if not answer.get("next_page_token"):
                return
            query = {**query, "page_token": answer["next_page_token"]}

    def _get(self, path: str, **query: Any) -> dict[str, Any]:
        return self._request("GET", f"{self._uri}/api/2.0/mlflow/{path}", params=query)

    def _post(self, path: str, **body: Any) -> dict[str, Any]:
        return self._request("POST", f"{self._uri}/api/2.0/mlflow/{path}", json=body)

    def _request(self, method: str, url: str, **content: Any) -> dict[str, Any]:
        deadline = time.monotonic() + ANSWER_SECONDS
        try:
            # A redirect would take the account to another host.
            with self._session.request(
                method, url, timeout=(CONNECT_SECONDS, READ_SECONDS), allow_redirects=False, stream=True, **content
            ) as response:
                body = _read(response, deadline)
        except requests.Timeout as error:
            raise TrackingError(f"{self._uri} does not answer in time", is_passing=True) from error
        except requests.RequestException as error:
            raise TrackingError(f"{self._uri} cannot be reached: {_cause(error)}", is_passing=True) from error
        return self._answer(response.status_code, body)

    def _answer(self, status: int, body: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(body or b"{}")
        except ValueError:
            answer = None
        if 200 <= status < 300 and isinstance(answer, dict):
            return answer
        is_passing = status in (408, 429, 500, 502, 503, 504)
        if status == 403 and b"Host header" in body:
            raise TrackingError(f"{self._uri} does not serve that host name; start it with --allowed-hosts")
        if status in (401, 403):
            raise TrackingError(
                f"{self._uri} refuses the account ({status}); correct the Secret that "
                "spec.tracking.mlflow.credentialsSecret names"
            )
        if isinstance(answer, dict) and answer.get("error_code"):
            text = str(answer.get("message", ""))[:_MAX_TOLD]
            code = str(answer["error_code"])
            raise RefusedError(f"{self._uri} refuses: {code}: {text}", code, is_passing=is_passing)
        hint = "" if is_passing else "; is spec.tracking.mlflow.uri that of an MLflow server?"
        raise TrackingError(f"{self._uri} answers {status}, and not as MLflow does{hint}", is_passing=is_passing)


class _Account(requests.auth.AuthBase):
    """As MLflow's own client: a user and a password, else a token, else none."""

    def __init__(self, user: str, password: str, token: str) -> None:
        self._basic = requests.auth.HTTPBasicAuth(user.encode(), password.encode()) if user and password else None
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._basic is not None:
            return self._basic(request)
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        return request


def _read(response: requests.Response, deadline: float) -> bytes:
    """The body. Raises Timeout when it is not there by `deadline`: a server may go on word by word for ever."""
    # The session's timeout begins anew with every word, and a read waits for many: another thread ends it at the time.
    end = threading.Timer(deadline - time.monotonic(), _stop_reading, (response,))
    end.daemon = True
    end.start()
    body = bytearray()
    try:
        for piece in response.iter_content(2**16):
            body += piece
            if len(body) > MAX_ANSWER_BYTES:
                raise requests.RequestException(f"an answer of more than {MAX_ANSWER_BYTES} bytes")
    except requests.RequestException:
        if time.monotonic() < deadline:
            raise
    finally:
        end.cancel()
    if time.monotonic() >= deadline:
        raise requests.Timeout
    return bytes(body)


def _stop_reading(response: requests.Response) -> None:
    with suppress(OSError, RuntimeError, ValueError):  # all has been read by now
        response.raw.shutdown()


def _cause(error: BaseException) -> str:
    """The system's word for it, without the objects that libraries wrap around it."""
    found: BaseException | None = error
    while found is not None:
        if isinstance(found, OSError) and found.strerror:
            return found.strerror
        reason = getattr(found, "reason", None) or (found.args[0] if found.args else None)
        found = found.__cause__ or found.__context__ or (reason if isinstance(reason, BaseException) else None)
    return f"{type(error).__name__}: {error}"[:_MAX_TOLD]


def _pairs(values: Mapping[str, str]) -> list[dict[str, str]]:
    return [{"key": key, "value": value} for key, value in values.items()]


def _parts(values: Sequence[Any], size: int) -> Iterable[Sequence[Any]]:
    return (values[start : start + size] for start in range(0, len(values), size))


def _of(answer: Any, name: str) -> Any:
    """A part of an answer that MLflow always sends."""
    if not isinstance(answer, dict) or name not in answer:
        raise TrackingError(f"an answer without {name!r}; is spec.tracking.mlflow.uri that of an MLflow server?")
    return answer[name]


def _run(raw: Mapping[str, Any]) -> Run:
    info, data = _of(raw, "info"), raw.get("data", {})
    return Run(
        id=str(_of(info, "run_id")),
        status=str(info.get("status", "")),
        start=int(info.get("start_time") or 0),
        artifact_uri=str(info.get("artifact_uri") or ""),
        tags={tag["key"]: tag.get("value", "") for tag in data.get("tags", ())},
        params={param["key"]: param.get("value", "") for param in data.get("params", ())},
        metrics=frozenset(metric["key"] for metric in data.get("metrics", ())),
    )
