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
from tandem_operator.platforms.kubernetes.pod_state import has_ended, holds, is_going, is_orphan, time_of
from tandem_operator.platforms.kubernetes.task_state import is_over, ran_out_of_time, task_of

Object = dict[str, Any]

logger = logging.getLogger(__name__)
#: When something is on its way that no watch tells of at once: a server that becomes ready, a pod that goes.
SOON_SECONDS = 2.0
#: After this the resource goes, whatever stands in the way: a dead node, a queue, an object store that is gone.
LIMIT_SECONDS = jobs.TRAINING_GRACE_SECONDS + 3 * jobs.CLEANUP_SECONDS + 60
_TOO_MANY = 429
_GONE = Outcome(None, None)


def finish_deletion(around: Surroundings, raw: Object) -> Outcome:
    """Release everything at once; then remove what lies in S3, if that is wanted, and let the run go."""
    metadata, client = raw["metadata"], around.client
    if names.FINALIZER not in metadata.get("finalizers", []):
        return _GONE  # the garbage collector does the rest
    children, cleanup_name = Children(client, raw), names.cleanup_name(metadata["name"])
    KubernetesPlatform(around, children).release()
    is_alive = _stop_workers(children)
    cleanup = client.get("Job", children.namespace, cleanup_name)
    if cleanup is not None and not names.is_managed(cleanup):
        return _give_up(around, raw, f"there is a Job {cleanup_name} that is not Tandem's")
    since = time_of(metadata["deletionTimestamp"])
    if since is not None and (datetime.now(UTC) - since).total_seconds() > LIMIT_SECONDS:
        if cleanup is not None:
            children.remove("Job", cleanup)
        return _give_up(around, raw, f"they could not be removed within {LIMIT_SECONDS} s")
    if is_alive:
        return Outcome(SOON_SECONDS, None)  # they may still write
    if cleanup is None:
        return _begin(around, raw)
    if cleanup["metadata"]["labels"].get(names.RUN_UID) != children.uid:
        children.remove("Job", cleanup)  # an earlier run's of the same name
        return Outcome(SOON_SECONDS, None)
    if not is_over(cleanup):
        return Outcome(SOON_SECONDS, None)
    if holds(cleanup, "Complete"):
        return _let_go(around, raw)
    if not ran_out_of_time(cleanup):
        return _give_up(around, raw, f"the Job {cleanup_name} failed")
    children.remove("Job", cleanup)  # its node may be lost: the next one may get another
    return Outcome(SOON_SECONDS, None)


def _stop_workers(children: Children) -> bool:
    """Delete what works for the run; whether a pod of it has not ended yet."""
    # The JobSet first: it would make its Job again. A cluster may have no JobSets (any more), or an operator no right
    # to them: then there are none of ours.
    uses_jobsets = (children.raw["spec"].get("training") or {}).get("backend") == "jobset"
    jobsets = children.of_kind(names.JOBSET, names.WORKER, none_if=(FORBIDDEN, NOT_FOUND)) if uses_jobsets else []
    made = [(names.JOBSET, jobset) for jobset in jobsets]
    made += [("Job", job) for job in children.of_kind("Job", names.WORKER)]
    for kind, job in made:
        if not is_over(job) and not is_going(job):
            children.remove(kind, job)
    # After the Jobs: one that still was there may have made a pod meanwhile.
    pods = children.of_kind("Pod", names.WORKER)
    alive = [pod for pod in pods if not has_ended(pod)]
    tasks = set(map(task_of, alive))
    for kind, job in made:
        # It has left a pod: `KubernetesPlatform.tidy`.
        if is_over(job) and not is_going(job) and task_of(job) in tasks:
            children.remove(kind, job)
    for pod in filter(is_orphan, pods):
        children.remove("Pod", pod)
    return bool(alive)


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
