"""A training on several machines as a JobSet (jobset.x-k8s.io): one Job, of which each pod is a machine. Pure.

JobSet gives the pods stable names, starts them together and ends them together; torchrun makes one training of them.
"""

from __future__ import annotations

from typing import Any, Final

from tandem_operator.platforms.kubernetes import names

Object = dict[str, Any]

API_VERSION: Final = "jobset.x-k8s.io/v1alpha2"
COMMAND: Final = ("python3", "-m", "tandem_trainer.lora.node")
#: Where Kubernetes says which of a Job's pods a pod is.
COMPLETION_INDEX: Final = "batch.kubernetes.io/job-completion-index"
#: The JobSet's only Job; its name is short, for a pod's name is made of it.
_JOB: Final = "n"
_PORT: Final = 29500


def rendezvous(name: str, nodes: int) -> list[Object]:
    """The environment by which the pods of the task `name` find each other, in torchrun's own terms."""
    jobset = names.jobset_name(name)
    index: Object = {"fieldRef": {"fieldPath": f"metadata.annotations['{COMPLETION_INDEX}']"}}
    return [
        {"name": "MASTER_ADDR", "value": f"{jobset}-{_JOB}-0-0.{jobset}"},
        {"name": "MASTER_PORT", "value": str(_PORT)},
        {"name": "NNODES", "value": str(nodes)},
        {"name": "NODE_RANK", "valueFrom": index},
    ]


def is_jobset(thing: Object) -> bool:
    """Whether it is a JobSet; the items of a list do not say of what kind they are."""
    return "replicatedJobs" in thing["spec"]


def jobset_of(job: Object, nodes: int) -> Object:
    """The Job of a worker in as many pods. If one of them fails all end, and so does the attempt."""
    metadata, spec = job["metadata"], dict(job["spec"])
    if "podFailurePolicy" in spec:
        # A pod that is replaced alone would wait for the others, whose training it has broken off.
        rules = [rule for rule in spec["podFailurePolicy"]["rules"] if rule["action"] != "Ignore"]
        spec["podFailurePolicy"] = {"rules": rules}
    spec |= {"completionMode": "Indexed", "completions": nodes, "parallelism": nodes}
    # The Job is told apart by the same labels, but it is the JobSet that waits in a queue.
    labels = {key: value for key, value in metadata["labels"].items() if key not in (names.QUEUE, names.QUEUE_PRIORITY)}
    return {
        "apiVersion": API_VERSION,
        "kind": names.JOBSET,
        "metadata": {**metadata, "name": names.jobset_name(metadata["name"])},
        "spec": {
            "network": {"enableDNSHostnames": True},
            "failurePolicy": {"maxRestarts": 0},
            "replicatedJobs": [
                {"name": _JOB, "replicas": 1, "template": {"metadata": {"labels": labels}, "spec": spec}}
            ],
        },
    }
