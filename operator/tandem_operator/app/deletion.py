"""A run that is being deleted and whose objects in S3 are to go with it: release, remove, let go. Bounded in time."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Any

from kubernetes.client import ApiException

from tandem_api.layout import RunLayout
from tandem_api.v1alpha1 import OptimizationRun
from tandem_api.v1alpha1.run import KIND, ManifestError, parse_run
from tandem_operator.actions import EmitEvent
from tandem_operator.app.queue import Outcome
from tandem_operator.platforms.kubernetes import jobs, names
from tandem_operator.platforms.kubernetes.children import Children, RefusedError, TryAgainError
from tandem_operator.platforms.kubernetes.client import FORBIDDEN, NOT_FOUND
from tandem_operator.platforms.kubernetes.events import post
from tandem_operator.platforms.kubernetes.platform import KubernetesPlatform, Surroundings
from tandem_operator.platforms.kubernetes.pod_state import has_ended, holds, is_going, time_of
from tandem_operator.platforms.kubernetes.task_state import is_over, task_of

Object = dict[str, Any]

logger = logging.getLogger(__name__)
#: When something is on its way that no watch tells of at once: a server that becomes ready, a pod that goes.
SOON_SECONDS = 2.0
#: After this the resource goes, whatever stands in the way: a dead node, a queue, an object store that is gone.
LIMIT_SECONDS = jobs.TRAINING_GRACE_SECONDS + jobs.CLEANUP_SECONDS + 60
_TOO_MANY = 429
_GONE = Outcome(None, None)


def finish_deletion(around: Surroundings, raw: Object) -> Outcome:
    """Release everything at once; then remove what lies in S3, if that is wanted, and let the run go."""
    metadata, client = raw["metadata"], around.client
    if names.FINALIZER not in metadata.get("finalizers", []):
        return _GONE  # the garbage collector does the rest
    namespace, cleanup_name = metadata["namespace"], names.cleanup_name(metadata["name"])
    children = Children(client, raw)
    KubernetesPlatform(around, children).release()
    over: list[tuple[str, Object]] = []
    # The JobSet first: it would make its Job again.
    has_jobsets = (raw["spec"].get("training") or {}).get("backend") == "jobset"
    for kind in (names.JOBSET, "Job") if has_jobsets else ("Job",):
        # A cluster may have no JobSets (any more), or an operator no right to them: then there are none of ours.
        none_if = (FORBIDDEN, NOT_FOUND) if kind == names.JOBSET else ()
        for job in children.of_kind(kind, names.WORKER, none_if=none_if):
            if is_over(job):
                over.append((kind, job))
            elif not is_going(job):
                client.delete(kind, namespace, job["metadata"]["name"], uid=job["metadata"]["uid"])
    # After the Jobs: one that still was there may have made a pod meanwhile.
    alive = [pod for pod in children.of_kind("Pod", names.WORKER) if not has_ended(pod)]
    for kind, job in over:
        # It may have left a pod: `KubernetesPlatform.tidy`.
        if not is_going(job) and task_of(job) in map(task_of, alive):
            client.delete(kind, namespace, job["metadata"]["name"], uid=job["metadata"]["uid"])
    cleanup = client.get("Job", namespace, cleanup_name)
    labels = (cleanup or {"metadata": {}})["metadata"].get("labels") or {}
    if cleanup is not None and labels.get(names.MANAGED_BY) != names.FIELD_MANAGER:
        return _give_up(around, raw, f"there is a Job {cleanup_name} that is not Tandem's")
    since = time_of(metadata["deletionTimestamp"])
    if since is not None and (datetime.now(UTC) - since).total_seconds() > LIMIT_SECONDS:
        if cleanup is not None:
            client.delete("Job", namespace, cleanup_name, uid=cleanup["metadata"]["uid"])
        return _give_up(around, raw, f"they could not be removed within {LIMIT_SECONDS} s")
    if alive:
        return Outcome(SOON_SECONDS, None)  # they may still write
    if cleanup is not None and labels.get(names.RUN_UID) != metadata["uid"]:
        client.delete("Job", namespace, cleanup_name, uid=cleanup["metadata"]["uid"])
        return Outcome(SOON_SECONDS, None)
    if cleanup is None:
        return _begin(around, raw)
    if not is_over(cleanup):
        return Outcome(SOON_SECONDS, None)
    if not holds(cleanup, "Complete"):
        return _give_up(around, raw, f"the Job {cleanup_name} failed")
    return _let_go(around, raw)


def _begin(around: Surroundings, raw: Object) -> Outcome:
    try:
        run: OptimizationRun | None = parse_run(raw)
    except ManifestError:
        run = None
    if run is None or run.spec.storage is None:
        return _give_up(around, raw, "its spec cannot be read")
    try:
        KubernetesPlatform(around, Children(around.client, raw)).guard(run)
        around.client.create(jobs.cleanup_job(run, around.settings))
    except RefusedError as error:
        return _give_up(around, raw, str(error))
    except TryAgainError:
        return Outcome(SOON_SECONDS, None)
    except ApiException as error:
        if not 400 <= int(error.status or 0) < 500 or error.status == _TOO_MANY:
            raise
        # A namespace that is going takes no new Jobs; a quota or a policy may refuse them, too.
        return _give_up(around, raw, f"the cluster takes no Job for it ({error.status} {error.reason})")
    return Outcome(SOON_SECONDS, None)


def _give_up(around: Surroundings, raw: Object, why: str) -> Outcome:
    """The bounded escape: the resource goes, and what stays in S3 is told."""
    metadata, s3 = raw["metadata"], (raw["spec"].get("storage") or {}).get("s3") or {}
    root = RunLayout(s3.get("prefix", ""), metadata["namespace"], metadata["name"], metadata["uid"]).root
    text = f"the run's objects stay in S3, because {why}; remove them yourself: s3://{s3.get('bucket')}/{root}"
    logger.warning("%s/%s: %s", metadata["namespace"], metadata["name"], text)
    post(around.client, raw, EmitEvent("Warning", "StorageNotRemoved", text), around.instance)
    return _let_go(around, raw)


def _let_go(around: Surroundings, raw: Object) -> Outcome:
    metadata = raw["metadata"]
    left = [name for name in metadata["finalizers"] if name != names.FINALIZER]
    patch = {"metadata": {"finalizers": left, "resourceVersion": metadata["resourceVersion"]}}
    around.client.patch(KIND, metadata["namespace"], metadata["name"], patch)
    return _GONE
