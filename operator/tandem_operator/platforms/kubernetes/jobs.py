"""One attempt of a stage as a Job, and the Job that removes a deleted run's objects. Pure."""

from __future__ import annotations

from typing import Any

from tandem_api.contract import ENV_MLFLOW, ENV_PROGRESS_PORT, ENV_REQUEST, ENV_TERMINATION, StageRequest
from tandem_api.errors import EXIT_CONFIGURATION, EXIT_PERMANENT
from tandem_api.v1alpha1 import OptimizationRun
from tandem_operator.platforms.kubernetes import jobsets, names
from tandem_operator.platforms.kubernetes.pods import Pod, from_secret, pod_template
from tandem_operator.platforms.other_models import models_of
from tandem_operator.settings import OperatorSettings

Object = dict[str, Any]

REQUEST_MOUNT = "/tandem/request"
TERMINATION_FILE = "/dev/termination-log"
#: The key of another model's API, in the Secret that `keySecret` names.
MODEL_KEY = "API_KEY"
#: How long a worker may take to keep what it has after SIGTERM; a training one writes a checkpoint.
GRACE_SECONDS, TRAINING_GRACE_SECONDS = 30, 120
#: After this the Job that removes a deleted run's objects is made anew: it may wait for a node that is lost.
CLEANUP_SECONDS = 100
#: Kubernetes minor versions that know a Job's podFailurePolicy and podReplacementPolicy without a feature gate.
POD_FAILURE_POLICY, POD_REPLACEMENT_POLICY = (1, 26), (1, 29)


def request_configmap(run: OptimizationRun, name: str, request: StageRequest, owner: Object) -> Object:
    """What the attempt is asked to do, as a file."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": names.child(run, name, names.WORKER, owner, task=name, stage=request.stage),
        "data": {"request.json": request.model_dump_json(by_alias=True, exclude_none=True)},
    }


def worker_job(
    run: OptimizationRun,
    settings: OperatorSettings,
    name: str,
    request: StageRequest,
    owner: Object,
    version: tuple[int, int],
) -> Object:
    """One attempt, as a Job or, where several machines train, a JobSet.

    It never starts itself again: how often a stage is tried is in the run's status.
    """
    spec = run.spec
    trains = request.stage == "train"
    is_jobset = trains and spec.training.backend == "jobset"
    wanted, default = (
        (spec.training, settings.defaults.training) if trains else (spec.workers, settings.defaults.workers)
    )
    resources = wanted.resources or default.resources
    pod = Pod(
        component=names.WORKER,
        patch=wanted.pod_template,
        with_model=trains,
        task=(name, request.stage),
        grace_seconds=TRAINING_GRACE_SECONDS if trains else GRACE_SECONDS,
    )
    volumes: list[Object] = [{"name": "request", "configMap": {"name": name}}]
    mounts: list[Object] = [{"name": "request", "mountPath": REQUEST_MOUNT, "readOnly": True}]
    if trains:
        volumes.append({"name": "shm", "emptyDir": {"medium": "Memory"}})
        mounts.append({"name": "shm", "mountPath": "/dev/shm"})  # noqa: S108
    container: Object = {
        "name": names.WORKER_CONTAINER,
        "image": spec.program.image or settings.images.trainer,
        "imagePullPolicy": settings.images.pull_policy,
        "command": list(jobsets.COMMAND) if is_jobset else ["python3", "-m", "tandem_trainer.main"],
        "env": [
            {"name": ENV_REQUEST, "value": f"{REQUEST_MOUNT}/request.json"},
            {"name": ENV_TERMINATION, "value": TERMINATION_FILE},
            {"name": ENV_PROGRESS_PORT, "value": str(names.PROGRESS_PORT)},
            *(jobsets.rendezvous(name, spec.training.nodes) if is_jobset else ()),
            *(
                from_secret(model.variable, model.key_secret, key=MODEL_KEY)
                for model in models_of(request)
                if model.key_secret is not None
            ),
            *_mlflow_account(run),
        ],
        "ports": [{"name": "progress", "containerPort": names.PROGRESS_PORT, "protocol": "TCP"}],
        "resources": resources,
        "volumeMounts": mounts,
        "terminationMessagePath": TERMINATION_FILE,
    }
    template = pod_template(run, settings, pod, [container], volumes)
    template["spec"]["restartPolicy"] = "Never"
    metadata = names.child(run, name, names.WORKER, owner, task=name, stage=request.stage)
    if spec.queue is not None:
        metadata["labels"][names.QUEUE] = spec.queue
        # As with any workload of Kueue's, it is the user's label that names a WorkloadPriorityClass.
        priority = run.metadata.labels.get(names.QUEUE_PRIORITY)
        if priority is not None:
            metadata["labels"][names.QUEUE_PRIORITY] = priority
    job_spec: Object = {
        "backoffLimit": 0,
        "activeDeadlineSeconds": spec.stage_timeout_seconds,
        "template": template,
    }
    if version >= POD_FAILURE_POLICY:
        permanent = {"containerName": names.WORKER_CONTAINER, "operator": "In"}
        codes = [EXIT_CONFIGURATION, EXIT_PERMANENT]
        job_spec["podFailurePolicy"] = {
            "rules": [
                # A preempted pod is replaced within the same attempt, and goes on from what the first one kept.
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {"action": "FailJob", "onExitCodes": {**permanent, "values": codes}},
            ]
        }
    if version >= POD_REPLACEMENT_POLICY:
        job_spec["podReplacementPolicy"] = "Failed"  # never two pods that hold the same GPU
    job: Object = {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": job_spec}
    return jobsets.jobset_of(job, spec.training.nodes) if is_jobset else job


def _mlflow_account(run: OptimizationRun) -> list[Object]:
    """The account at MLflow, by reference. A pod starts without it, too: no run fails for MLflow."""
    mlflow = run.spec.mlflow
    if mlflow is None or mlflow.credentials_secret is None:
        return []
    return [from_secret(variable, mlflow.credentials_secret, optional=True) for variable in ENV_MLFLOW]


def cleanup_job(run: OptimizationRun, settings: OperatorSettings) -> Object:
    """Removes what the run has in S3. It has no owner: the garbage collector must leave it alone."""
    storage, metadata = run.spec.storage, run.metadata
    assert storage is not None
    s3 = storage.s3
    arguments = ["--bucket", s3.bucket, f"--prefix={s3.prefix}", "--namespace", metadata.namespace]
    arguments += ["--name", metadata.name, "--uid", metadata.uid]
    defaults = settings.defaults.workers
    container: Object = {
        "name": names.CLEANUP,
        "image": run.spec.program.image or settings.images.trainer,
        "imagePullPolicy": settings.images.pull_policy,
        "command": ["python3", "-m", "tandem_trainer.cleanup", *arguments],
        "resources": defaults.resources,
    }
    pod = Pod(names.CLEANUP, run.spec.workers.pod_template, with_model=False)
    template = pod_template(run, settings, pod, [container])
    template["spec"]["restartPolicy"] = "Never"
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": names.child(run, names.cleanup_name(metadata.name), names.CLEANUP, None),
        "spec": {
            "backoffLimit": 2,
            "activeDeadlineSeconds": CLEANUP_SECONDS,
            # Long enough for the operator to see how it ended: it would begin anew for a Job that is gone.
            "ttlSecondsAfterFinished": max(settings.job_ttl_seconds, CLEANUP_SECONDS),
            "template": template,
        },
    }
