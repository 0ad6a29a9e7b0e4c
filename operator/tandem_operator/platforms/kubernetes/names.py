"""Names and labels of everything that the operator makes in a cluster. Deterministic: the same run, the same names."""

from __future__ import annotations

from typing import Any

from tandem_api.canonical import digest
from tandem_api.v1alpha1.run import GROUP, OptimizationRun

FIELD_MANAGER = "tandem-operator"
#: Held by runs whose objects in S3 are to be removed with them.
FINALIZER = f"{GROUP}/storage"

MANAGED_BY, APP_NAME, COMPONENT = (
    "app.kubernetes.io/managed-by",
    "app.kubernetes.io/name",
    "app.kubernetes.io/component",
)
RUN, RUN_UID, TASK, STAGE = (f"{GROUP}/{name}" for name in ("run", "run-uid", "task", "stage"))
#: On the serving Deployment: the model name that is to be served, all names of several predictors' adapters, and how
#: often it was started anew.
SERVED_NAME, SERVED_NAMES, RESTARTS = f"{GROUP}/served-name", f"{GROUP}/served-names", f"{GROUP}/restarts"
#: On the serving Deployment and its pods: the digest of the pod template, by which old pods are told from new ones.
TEMPLATE = f"{GROUP}/template"
#: On what we apply: the digest of what was applied, so that nothing is applied twice.
APPLIED = f"{GROUP}/applied"
#: On serving pods, so that the kubelet renews their volumes at once: the digest of the desired adapters.
DESIRED = f"{GROUP}/desired-adapters"
#: Kueue's.
QUEUE, QUEUE_PRIORITY = "kueue.x-k8s.io/queue-name", "kueue.x-k8s.io/priority-class"

#: The kind of a training on several machines.
JOBSET = "JobSet"
#: Its pods are named after it, with 13 characters more, and a pod's name has at most 63 of them.
_MAX_JOBSET = 50

WORKER, SERVING, CLEANUP = "worker", "serving", "cleanup"
#: What the operator watches.
OURS = f"{MANAGED_BY}={FIELD_MANAGER}"

WORKER_CONTAINER, VLLM_CONTAINER, ADAPTERS_CONTAINER = "worker", "vllm", "adapters"
VLLM_PORT, ADAPTERS_PORT, PROGRESS_PORT = 8000, 8081, 8080


def labels(run: str, uid: str, component: str, **more: str) -> dict[str, str]:
    """What every object of a run carries; `more`: task and stage."""
    extra = {f"{GROUP}/{name}": value for name, value in more.items()}
    return {
        MANAGED_BY: FIELD_MANAGER,
        APP_NAME: "tandem",
        COMPONENT: component,
        RUN: run,
        RUN_UID: uid,
        **extra,
    }


def is_managed(thing: dict[str, Any]) -> bool:
    """Whether Tandem has made it: what others have made is never changed or deleted, whatever labels it bears."""
    return bool((thing["metadata"].get("labels") or {}).get(MANAGED_BY) == FIELD_MANAGER)


def child(run: OptimizationRun, name: str, component: str, owner: dict[str, Any] | None, **more: str) -> dict[str, Any]:
    """The metadata of an object that is made for a run; `owner`: what it is removed with; `more` as for `labels`."""
    return {
        "name": name,
        "namespace": run.metadata.namespace,
        "labels": labels(run.metadata.name, run.metadata.uid, component, **more),
        **({"ownerReferences": [owner]} if owner is not None else {}),
    }


def selector(run: str, uid: str, component: str) -> dict[str, str]:
    """The labels by which a run's pods of one kind are told from all others."""
    return {COMPONENT: component, RUN: run, RUN_UID: uid}


def serving_name(run: str) -> str:
    """The Deployment, its Service and its NetworkPolicy."""
    return f"{run}-serving"


def replicas_name(run: str) -> str:
    """The headless Service."""
    return f"{run}-replicas"


def adapters_name(run: str) -> str:
    """The ConfigMap of the desired adapters."""
    return f"{run}-adapters"


def spec_name(run: str) -> str:
    """The ConfigMap of the accepted spec."""
    return f"{run}-spec"


def workers_name(run: str) -> str:
    """The workers' NetworkPolicy."""
    return f"{run}-workers"


def jobset_name(task: str) -> str:
    """The JobSet of a task; JobSets of different tasks do not share a name."""
    return task if len(task) <= _MAX_JOBSET else f"{task[: _MAX_JOBSET - 9]}-{digest(task)[:8]}"


def cleanup_name(run: str) -> str:
    """The Job that removes the run's objects from S3."""
    return f"{run}-cleanup"
