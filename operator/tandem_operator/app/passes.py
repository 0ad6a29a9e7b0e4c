"""One pass over one stored run: what `reconcile` does for a living run, and what becomes of invalid, finished and
deleted ones. Synchronous; called in a thread, never twice at once for the same run."""

from __future__ import annotations

import logging
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from tandem_api import conditions
from tandem_api.v1alpha1 import OptimizationRun, Status
from tandem_api.v1alpha1.run import KIND, Problem
from tandem_operator.actions import EmitEvent
from tandem_operator.app.deletion import SOON_SECONDS, finish_deletion
from tandem_operator.app.queue import Key, Outcome
from tandem_operator.app.transitions import Seen
from tandem_operator.platforms.kubernetes import names
from tandem_operator.platforms.kubernetes.accepted import InvalidRunError
from tandem_operator.platforms.kubernetes.children import Children, RefusedError, TryAgainError
from tandem_operator.platforms.kubernetes.events import post
from tandem_operator.platforms.kubernetes.platform import KubernetesPlatform, Surroundings
from tandem_operator.platforms.kubernetes.pod_state import is_orphan, name_of
from tandem_operator.reconcile import reconcile
from tandem_operator.snapshot import Blocked

Object = dict[str, Any]

logger = logging.getLogger(__name__)
#: When to try again to make what the API server refuses.
REFUSED_SECONDS = 15.0
#: Characters of a refusal in the status.
MAX_REFUSAL = 4096


class Passes:
    """All passes of this process."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around
        self._refused: dict[Key, tuple[str, Blocked]] = {}
        """What the API server last refused to make for a run, with the run's uid. Forgotten with the process: then it
        is refused again."""

    def reconcile_run(self, namespace: str, name: str) -> Outcome:
        """Bring one run one step closer. Raises what the API server answers, for the queue to try again."""
        raw = self._around.client.get(KIND, namespace, name)
        of_uid, blocked = self._refused.pop((namespace, name), ("", None))
        if raw is None:
            self._end_orphans(namespace, name)
            return Outcome(None, None, is_gone=True)
        if raw["metadata"].get("deletionTimestamp"):
            return replace(finish_deletion(self._around, raw), is_gone=True)
        if _wants_finalizer(raw):
            raw = self._hold(raw)
        uid = raw["metadata"]["uid"]
        children = Children(self._around.client, raw)
        platform = KubernetesPlatform(self._around, children, blocked=blocked if of_uid == uid else None)
        try:
            result = reconcile(platform)
        except InvalidRunError as error:
            return self._refuse(platform.children.raw, error.problems)
        except RefusedError as error:
            if platform.loaded is None:
                # Not even begun: there is no decision that would tell it.
                outcome = self._refuse(platform.children.raw, [Problem("spec", error.blocked.message)])
                return replace(outcome, requeue_seconds=REFUSED_SECONDS)
            # The next pass tells it in the status, and tries again.
            told, refused = platform.blocked, replace(error.blocked, is_permanent=False)
            # Only what is refused twice is refused for good: a webhook that is being replaced may say anything once.
            blocked = error.blocked if told == refused else refused
            self._refused[namespace, name] = uid, blocked
            return Outcome(REFUSED_SECONDS if told == blocked else 0.0, platform.loaded)
        except TryAgainError as error:
            logger.info("%s/%s: %s", namespace, name, error)
            return Outcome(SOON_SECONDS, platform.loaded)
        platform.tidy(result.status)
        assert platform.loaded is not None
        # As it was accepted: what is stored by now may be anything.
        run = platform.loaded.model_copy(update={"status": result.status})
        return Outcome(self._next(run, result.status, is_released=result.finished), run)

    def _end_orphans(self, namespace: str, name: str) -> None:
        """The workers that Jobs of a run that is gone have left behind: the garbage collector knows nothing of them."""
        client, labels = self._around.client, {names.RUN: name, names.COMPONENT: names.WORKER}
        for pod in filter(is_orphan, client.list("Pod", namespace, labels=labels, may_be_late=True)):
            client.delete("Pod", namespace, name_of(pod), uid=pod["metadata"]["uid"])

    def _next(self, run: OptimizationRun, status: Status, *, is_released: bool) -> float | None:
        """When to look at the run again."""
        if status.finished is not None and is_released:
            return self._expire(run, status.finished)
        if not is_released and (run.spec.suspend or status.finished is not None):
            return SOON_SECONDS
        if run.spec.suspend:
            return None
        waits_for_server = status.serving.name is not None and status.serving.ready_since is None
        return SOON_SECONDS if waits_for_server else float(self._around.settings.poll_seconds)

    def _expire(self, run: OptimizationRun, finished: datetime) -> float | None:
        """Delete a finished run whose time is over; else how long it has left."""
        ttl = run.spec.ttl_seconds_after_finished
        if ttl is None:
            return None
        left = (finished + timedelta(seconds=ttl) - datetime.now(UTC)).total_seconds()
        if left <= 0:
            metadata = run.metadata
            logger.info("%s/%s has finished %d s ago and is deleted", metadata.namespace, metadata.name, ttl)
            self._around.client.delete(KIND, metadata.namespace, metadata.name, uid=metadata.uid)
            return None
        return left

    def _refuse(self, raw: Object, problems: list[Problem]) -> Outcome:
        """Say in the status what is wrong; a corrected spec is looked at anew."""
        text = "\n".join(map(str, problems))[:MAX_REFUSAL]
        status = _status_of(raw)
        if status is None:
            # Another version of the operator wrote it: it must not be overwritten with less.
            post(self._around.client, raw, EmitEvent("Warning", conditions.INVALID, text), self._around.instance)
            return Outcome(None, None, is_refused=True)
        now, generation = datetime.now(UTC), int(raw["metadata"].get("generation", 0))
        found = status.conditions
        for kind in (conditions.SUCCEEDED, conditions.ACCEPTED, conditions.READY, conditions.STALLED):
            state: conditions.ConditionStatus = "True" if kind == conditions.STALLED else "False"
            found = conditions.with_condition(
                found, kind, state, conditions.INVALID, text, now=now, generation=generation
            )
        refused = status.model_copy(update={"conditions": found, "phase": "Failed", "observed_generation": generation})
        if refused != status:
            self._around.client.replace_status({**raw, "status": refused.to_json()})
            event = EmitEvent("Warning", conditions.INVALID, text)
            post(self._around.client, raw, event, self._around.instance)
        metadata = raw["metadata"]
        seen = Seen(metadata["namespace"], metadata["name"], metadata["uid"], refused)
        return Outcome(None, None, is_refused=True, refused=seen)

    def _hold(self, raw: Object) -> Object:
        """Put our finalizer on a run whose objects in S3 are to go with it."""
        metadata = raw["metadata"]
        held = [*metadata.get("finalizers", []), names.FINALIZER]
        patch = {"metadata": {"finalizers": held, "resourceVersion": metadata["resourceVersion"]}}
        self._around.client.patch(KIND, metadata["namespace"], metadata["name"], patch)
        return self._around.client.get(KIND, metadata["namespace"], metadata["name"]) or raw


def _wants_finalizer(raw: Object) -> bool:
    storage = raw.get("spec", {}).get("storage") or {}
    return storage.get("deletionPolicy") == "Delete" and names.FINALIZER not in raw["metadata"].get("finalizers", [])


def _status_of(raw: Object) -> Status | None:
    """The stored status of a run whose spec may be anything; None when it cannot be read."""
    try:
        return Status.model_validate(raw.get("status") or {})
    except ValueError:
        return None
