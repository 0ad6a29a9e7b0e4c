"""Transitions as signed CloudEvents 1.0 (HTTP, structured mode). Pure but for the file of the key.

The signature is that of Standard Webhooks: HMAC-SHA256 over `ID.TIMESTAMP.BODY`. In structured mode the body is the
whole event, so nothing of it stays unsigned.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from tandem_api import conditions
from tandem_api.errors import ConfigurationError
from tandem_api.v1alpha1.run import API_VERSION
from tandem_api.v1alpha1.status import Artifact, StepStatus
from tandem_operator.app.transitions import Seen, Transition
from tandem_operator.decide.names import camel_case

TYPE_PREFIX: Final = "dev.tandem."
CONTENT_TYPE: Final = "application/cloudevents+json"
_KEY_PREFIX: Final = "whsec_"
#: What Standard Webhooks allows for a key.
MIN_KEY_BYTES, MAX_KEY_BYTES = 24, 64

Object = dict[str, Any]


@dataclass(frozen=True)
class CloudEvent:
    """One event, ready to be sent any number of times."""

    id: str
    body: bytes


def cloud_event(seen: Seen, transition: Transition, source: str = "") -> CloudEvent:
    """The event. `source` is put before the run's path in the API, to tell clusters apart."""
    path = f"/apis/{API_VERSION}/namespaces/{seen.namespace}/optimizationruns/{seen.name}"
    event: Object = {
        "specversion": "1.0",
        "id": transition.id,
        "source": source.rstrip("/") + path,
        "type": TYPE_PREFIX + transition.what,
        "time": _time(transition.time),
        "datacontenttype": "application/json",
        "data": _data(seen, transition),
    }
    if transition.step is not None:
        event["subject"] = f"steps/{transition.step}"
    return CloudEvent(transition.id, json.dumps(event, separators=(",", ":")).encode())


def _data(seen: Seen, transition: Transition) -> Object:
    """Facts of the status. No messages: they quote exceptions, which quote examples."""
    status = seen.status
    data: Object = {
        "namespace": seen.namespace,
        "name": seen.name,
        "uid": seen.uid,
        "strategy": status.strategy,
        "baselineScore": status.baseline.score if status.baseline is not None else None,
        "bestScore": status.best.score if status.best is not None else None,
        "bestStep": status.best.step if status.best is not None else None,
        "usage": status.usage.to_json(),
    }
    if transition.step is not None:
        data["step"] = _step(next(step for step in status.steps if step.index == transition.step))
    succeeded = conditions.find(status.conditions, conditions.SUCCEEDED)
    if transition.what in ("run.succeeded", "run.failed") and succeeded is not None:
        data["reason"] = succeeded.reason
        data["testScore"] = status.test.score if status.test is not None else None
        data["adapter"] = _artifact(status.best.adapter if status.best is not None else None)
        data["result"] = _artifact(status.result)
    return {name: _without_none(value) for name, value in data.items() if value is not None}


def _step(step: StepStatus) -> Object:
    return {
        "index": step.index,
        "kind": step.kind,
        "state": step.state,
        "reason": camel_case(step.reason) if step.reason else None,
        "started": _time(step.started) if step.started is not None else None,
        "finished": _time(step.finished) if step.finished is not None else None,
        "attempts": step.attempts,
        "score": step.score,
        "errors": step.errors,
        "tokens": step.tokens,
        "gpuSeconds": step.gpu_seconds,
        "promptSet": _artifact(step.prompt_set),
        "adapter": _artifact(step.adapter),
    }


def _artifact(artifact: Artifact | None) -> Object | None:
    return {"uri": artifact.uri, "sha256": artifact.sha256} if artifact is not None else None


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_none(item) for name, item in value.items() if item is not None}
    return value


def _time(when: datetime) -> str:
    return when.isoformat().replace("+00:00", "Z")


# --- the signature ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SigningKeys:
    """The file with the keys, one a line: the newest first, the others until every receiver knows it."""

    path: Path

    def headers(self, event: CloudEvent, now: datetime) -> dict[str, str]:
        """The headers that prove where and when an event was sent. Reads the file, which may have changed.
        Raises ConfigurationError when there is no key in it."""
        stamp = str(int(now.timestamp()))
        signed = b".".join((event.id.encode(), stamp.encode(), event.body))
        signatures = " ".join(f"v1,{_hmac(key, signed)}" for key in self.read())
        return {"webhook-id": event.id, "webhook-timestamp": stamp, "webhook-signature": signatures}

    def read(self) -> list[bytes]:
        """The keys. Raises ConfigurationError that says what is wrong, without quoting it."""
        try:
            lines = [line.strip() for line in self.path.read_text(encoding="ascii").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not text"
            raise ConfigurationError(f"the signing key {self.path} cannot be read: {why}") from None
        if not lines:
            raise ConfigurationError(f"the signing key {self.path} is empty; make one: openssl rand -base64 32")
        return [self._key(number, line) for number, line in enumerate(lines, start=1)]

    def _key(self, number: int, line: str) -> bytes:
        try:
            key = base64.b64decode(line.removeprefix(_KEY_PREFIX), validate=True)
        except binascii.Error:
            key = b""
        if not MIN_KEY_BYTES <= len(key) <= MAX_KEY_BYTES:
            raise ConfigurationError(
                f"the signing key {self.path}, line {number}: allowed is base64 of {MIN_KEY_BYTES} to {MAX_KEY_BYTES} "
                f"bytes, with {_KEY_PREFIX} before it or without; make one: openssl rand -base64 32"
            )
        return key


def _hmac(key: bytes, signed: bytes) -> str:
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()
