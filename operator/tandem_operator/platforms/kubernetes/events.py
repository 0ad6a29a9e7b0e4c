"""What is told to people: Kubernetes events of a run. One object an occurrence, counted when it occurs again."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

from kubernetes.client import ApiException
from urllib3.exceptions import HTTPError

from tandem_api.canonical import digest
from tandem_operator.actions import EmitEvent
from tandem_operator.platforms.kubernetes.client import Client
from tandem_operator.platforms.kubernetes.names import FIELD_MANAGER

Object = dict[str, Any]

logger = logging.getLogger(__name__)
#: The API server's limit of an event's message.
MAX_EVENT = 1024


def post(client: Client, run: Object, event: EmitEvent, instance: str) -> None:
    """Tell of a run. Its name is made of what it says, so that the same one, told again after a crash, is counted.

    An event that cannot be stored is logged: what it tells is in the status, too.
    """
    try:
        _post(client, run, event, instance)
    except (ApiException, HTTPError) as error:
        logger.warning("event %s of %s was not stored: %s", event.reason, run["metadata"]["name"], error)


def _post(client: Client, run: Object, event: EmitEvent, instance: str) -> None:
    metadata, now = run["metadata"], f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ}"
    message = event.message[:MAX_EVENT]
    name = f"{metadata['name']}.{digest([metadata['uid'], event.type, event.reason, message])[:16]}"
    body = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": name, "namespace": metadata["namespace"]},
        "involvedObject": {
            "apiVersion": run["apiVersion"],
            "kind": run["kind"],
            "name": metadata["name"],
            "namespace": metadata["namespace"],
            "uid": metadata["uid"],
        },
        "type": event.type,
        "reason": event.reason,
        "message": message,
        "source": {"component": FIELD_MANAGER},
        "reportingComponent": f"tandem.dev/{FIELD_MANAGER}",
        "reportingInstance": instance,
        "firstTimestamp": now,
        "lastTimestamp": now,
        "count": 1,
    }
    if client.create(body):
        return
    known = client.get("Event", metadata["namespace"], name)
    if known is not None:
        again = {"count": int(known.get("count") or 1) + 1, "lastTimestamp": now}
        client.patch("Event", metadata["namespace"], name, again)
