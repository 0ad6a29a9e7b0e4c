"""One pass over one stored run: what `reconcile` does for a living run, and what becomes of invalid, finished and
deleted ones. Synchronous; called in a thread, never twice at once for the same run."""

from __future__ import annotations

import logging
from datetime import UTC, datetime, timedelta
from typing import Any

from kubernetes.client import ApiException

from tandem_api import conditions
from tandem_api.layout import RunLayout
from tandem_api.v1alpha1 import OptimizationRun, Status
from tandem_api.v1alpha1.run import KIND, ManifestError, Problem, parse_run
from tandem_operator.actions import EmitEvent
from tandem_operator.app.queue import Outcome
from tandem_operator.platforms.kubernetes import jobs, names
from tandem_operator.platforms.kubernetes.events import post
from tandem_operator.platforms.kubernetes.platform import (
    InvalidRunError,
    KubernetesPlatform,
    Surroundings,
    TryAgainError,
)
from tandem_operator.platforms.kubernetes.pod_state import has_ended, holds
from tandem_operator.platforms.kubernetes.task_state import is_over
from tandem_operator.reconcile import reconcile

Object = dict[str, Any]

logger = logging.getLogger(__name__)
#: When something is on its way that no watch tells of at once: a server that becomes ready, a pod that goes.
SOON_SECONDS = 2.0
_FORBIDDEN = 403


class Passes:
    """All passes of this process."""

    def __init__(self, around: Surroundings) -> None:
        self._around = around

    def reconcile_run(self, namespace: str, name: str) -> Outcome:
        """Bring one run one step closer. Raises what the API server answers, for the queue to try again."""
        raw = self._around.client.get(KIND, namespace, name)
        if raw is None:
            return Outcome(None, None)
        if raw["metadata"].get("deletionTimestamp"):
            return self._delete(raw)
        if _wants_finalizer(raw):
            raw = self._hold(raw)
        platform = KubernetesPlatform(self._around, raw)
        try:
            result = reconcile(platform)
        except InvalidRunError as error:
            return self._refuse(platform.raw, error.problems)
        except TryAgainError as error:
            logger.info("%s/%s: %s", namespace, name, error)
            return Outcome(SOON_SECONDS, None)
        platform.tidy(result.status)
        if raw.get("status") is None and result.status.started is not None:
            self._tell_of_what_has_no_effect(raw)
        assert platform.loaded is not None
        # As it was accepted: what is stored by now may be anything.
        run = platform.loaded.model_copy(update={"status": result.status})
        return Outcome(self._next(run, result.status, is_released=result.finished), run)

    def _tell_of_what_has_no_effect(self, raw: Object) -> None:
        if raw["spec"].get("tracking") is not None:
            text = "spec.tracking has no effect yet: nothing is logged to MLflow"
            post(self._around.client, raw, EmitEvent("Warning", "NoEffect", text), self._around.instance)

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
        text = "\n".join(map(str, problems))[:4096]
        status = _status_of(raw)
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
        return Outcome(None, None)

    def _hold(self, raw: Object) -> Object:
        """Put our finalizer on a run whose objects in S3 are to go with it."""
        metadata = raw["metadata"]
        held = [*metadata.get("finalizers", []), names.FINALIZER]
        patch = {"metadata": {"finalizers": held, "resourceVersion": metadata["resourceVersion"]}}
        self._around.client.patch(KIND, metadata["namespace"], metadata["name"], patch)
        return self._around.client.get(KIND, metadata["namespace"], metadata["name"]) or raw

    def _delete(self, raw: Object) -> Outcome:
        """Release everything at once; then remove what lies in S3, if that is wanted, and let the run go."""
        metadata, client = raw["metadata"], self._around.client
        if names.FINALIZER not in metadata.get("finalizers", []):
            return Outcome(None, None)  # the garbage collector does the rest
        namespace, name = metadata["namespace"], metadata["name"]
        KubernetesPlatform(self._around, raw).release()
        ours = {names.RUN_UID: metadata["uid"]}
        for job in client.list("Job", namespace, labels={**ours, names.COMPONENT: names.WORKER}):
            if not is_over(job) and not job["metadata"].get("deletionTimestamp"):
                client.delete("Job", namespace, job["metadata"]["name"])
        workers = client.list("Pod", namespace, labels={**ours, names.COMPONENT: names.WORKER})
        if any(not has_ended(pod) for pod in workers):
            return Outcome(SOON_SECONDS, None)  # they may still write
        cleanup = client.get("Job", namespace, names.cleanup_name(name))
        if cleanup is not None and cleanup["metadata"].get("labels", {}).get(names.RUN_UID) != metadata["uid"]:
            client.delete("Job", namespace, names.cleanup_name(name))
            return Outcome(SOON_SECONDS, None)
        if cleanup is None:
            return self._begin_cleanup(raw)
        if not is_over(cleanup):
            return Outcome(SOON_SECONDS, None)
        if not holds(cleanup, "Complete"):
            self._give_up(raw, f"the Job {names.cleanup_name(name)} failed")
        self._let_go(raw)
        return Outcome(None, None)

    def _begin_cleanup(self, raw: Object) -> Outcome:
        try:
            run: OptimizationRun | None = parse_run(raw)
        except ManifestError:
            run = None
        if run is None or run.spec.storage is None:
            self._give_up(raw, "its spec cannot be read")
            self._let_go(raw)
            return Outcome(None, None)
        try:
            self._around.client.create(jobs.cleanup_job(run, self._around.settings))
        except ApiException as error:
            if error.status != _FORBIDDEN:
                raise
            # A namespace that is going takes no new Jobs.
            self._give_up(raw, "the namespace takes no new Jobs")
            self._let_go(raw)
            return Outcome(None, None)
        return Outcome(SOON_SECONDS, None)

    def _give_up(self, raw: Object, why: str) -> None:
        """The bounded escape: the resource goes, and what stays in S3 is told."""
        metadata, s3 = raw["metadata"], (raw["spec"].get("storage") or {}).get("s3") or {}
        root = RunLayout(s3.get("prefix", ""), metadata["namespace"], metadata["name"], metadata["uid"]).root
        text = f"the run's objects stay in S3, because {why}; remove them yourself: s3://{s3.get('bucket')}/{root}"
        logger.warning("%s/%s: %s", metadata["namespace"], metadata["name"], text)
        post(self._around.client, raw, EmitEvent("Warning", "StorageNotRemoved", text), self._around.instance)

    def _let_go(self, raw: Object) -> None:
        metadata = raw["metadata"]
        left = [name for name in metadata["finalizers"] if name != names.FINALIZER]
        patch = {"metadata": {"finalizers": left, "resourceVersion": metadata["resourceVersion"]}}
        self._around.client.patch(KIND, metadata["namespace"], metadata["name"], patch)


def _wants_finalizer(raw: Object) -> bool:
    storage = raw.get("spec", {}).get("storage") or {}
    return storage.get("deletionPolicy") == "Delete" and names.FINALIZER not in raw["metadata"].get("finalizers", [])


def _status_of(raw: Object) -> Status:
    """The stored status of a run whose spec may be anything."""
    try:
        return Status.model_validate(raw.get("status") or {})
    except ValueError:
        return Status()
