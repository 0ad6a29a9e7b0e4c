"""What a manifest means on a cluster: what a run must say there, and which of its addresses nobody could read. Pure."""

from __future__ import annotations

import math
from typing import Any, Final

from tandem_api.v1alpha1 import OptimizationRun
from tandem_api.v1alpha1.run import Problem

_STORAGE = (
    "required on a cluster, but not given; write `storage: {s3: {bucket: BUCKET, credentialsSecret: SECRET}}`, "
    "with `endpoint: URL` for a server that is not AWS"
)
_INSIDE = "file: names a path inside the image on a cluster (file:///...)"
_DATA = (
    f"{_INSIDE}; put the file into a ConfigMap (kubectl create configmap NAME --from-file={{key}}={{path}}) and write "
    "configmap://NAME/{key}, or upload it and write s3://..."
)
_CODE = (
    f"{_INSIDE}; put the files into a ConfigMap (kubectl create configmap NAME --from-file={{path}}) and write "
    "configmap://NAME, or upload a tarball and write s3://BUCKET/KEY.tar.gz with its sha256, or leave it out and name "
    "an image that holds the code in spec.program.image"
)
_MODEL = f"{_INSIDE}; write hf://ORG/NAME, s3://BUCKET/PREFIX or pvc://CLAIM/PATH"


#: A run's own patch may say by these on how many devices a machine trains.
_DEVICES: Final = frozenset({"TANDEM_TRAIN_PROCESSES", "CUDA_VISIBLE_DEVICES"})


def cluster_problems(run: OptimizationRun, training_default: dict[str, Any] | None = None) -> list[Problem]:
    """Everything that is right in itself but cannot work on a cluster. The command line asks before it submits, the
    operator before it begins; it alone knows `training_default`, the resources of a training that names none."""
    spec = run.spec
    problems = [Problem("spec.storage", _STORAGE)] if spec.storage is None else []
    data = (("train", spec.data.train), ("validation", spec.data.validation), ("test", spec.data.test))
    named = [(f"spec.data.{name}.uri", split.uri, _DATA) for name, split in data if split is not None]
    named += [("spec.program.code.uri", spec.program.code.uri, _CODE)] if spec.program.code is not None else []
    named.append(("spec.model.uri", spec.model.uri, _MODEL))
    problems += _training_problems(run) or _share_problems(run, training_default or {})
    return problems + [
        Problem(path, f"found {uri!r}; {_advice(fix, uri)}") for path, uri, fix in named if _is_elsewhere(uri)
    ]


def _training_problems(run: OptimizationRun) -> list[Problem]:
    training = run.spec.training
    if training.backend == "trainjob":
        found = "found 'trainjob', which is not supported yet; allowed: 'job' for one machine, 'jobset' for several"
        return [Problem("spec.training.backend", found)]
    if training.backend == "job" and training.nodes > 1:
        fix = "write backend: jobset for several machines, or nodes: 1"
        return [Problem("spec.training.nodes", f"found {training.nodes}, but a Job is one machine; {fix}")]
    return []


def _share_problems(run: OptimizationRun, training_default: dict[str, Any]) -> list[Problem]:
    """Batches that the training's devices cannot share evenly: found here, not after the traces have been paid for."""
    training = run.spec.training
    if _sets_devices(training.pod_template or {}):
        return []
    gpus = _gpus(training.resources or training_default)
    problems = {}
    for index, step in enumerate(run.spec.steps, start=1):
        settings = run.spec.weights_of(index)
        part = training.nodes * gpus * (settings.micro_batch_size or 1)
        if step.kind != "w" or settings.batch_size % part == 0:
            continue
        where = f"spec.strategy[{index - 1}]" if step.weight_optimizer is not None else "spec"
        passes = f" in forward passes of {settings.micro_batch_size} rows" if settings.micro_batch_size else ""
        fix = f"write batchSize: {math.ceil(settings.batch_size / part) * part}, or change spec.training"
        problems[where] = Problem(
            f"{where}.weightOptimizer.batchSize",
            f"found {settings.batch_size}, which {training.nodes} x {gpus} devices (spec.training: nodes x GPUs) "
            f"cannot share evenly{passes}; allowed: a multiple of {part}; {fix}",
        )
    return list(problems.values())


def _gpus(resources: dict[str, Any]) -> int:
    """Training processes of a machine: one for each GPU, and at least one. Devices that may be something else, such as
    network cards, are not counted."""
    limits = resources.get("limits")
    limits = limits if isinstance(limits, dict) else {}
    amounts = [str(amount) for name, amount in limits.items() if name.endswith("/gpu")]
    return sum(int(amount) for amount in amounts if amount.isdecimal()) or 1


def _sets_devices(patch: dict[str, Any]) -> bool:
    containers = (patch.get("spec") or {}).get("containers") or []
    return any(variable.get("name") in _DEVICES for one in containers for variable in one.get("env") or [])


def _is_elsewhere(uri: str) -> bool:
    """Whether it is a `file:` address that starts at a folder, or on a host, that no pod knows."""
    if not uri.startswith("file:"):
        return False
    path = uri.removeprefix("file:").removeprefix("//localhost")
    return not path.startswith("/") or (path.startswith("//") and not path.startswith("///"))


def _advice(fix: str, uri: str) -> str:
    path = uri.removeprefix("file:").lstrip("/") or "PATH"
    return fix.format(path=path, key=path.rstrip("/").rpartition("/")[2] or "KEY")
