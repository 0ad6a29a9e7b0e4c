"""What a manifest means on a cluster: what a run must say there, and which of its addresses nobody could read. Pure."""

from __future__ import annotations

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


def cluster_problems(run: OptimizationRun) -> list[Problem]:
    """Everything that is right in itself but cannot work on a cluster. The command line asks before it submits, the
    operator before it begins."""
    spec = run.spec
    problems = [Problem("spec.storage", _STORAGE)] if spec.storage is None else []
    data = (("train", spec.data.train), ("validation", spec.data.validation), ("test", spec.data.test))
    named = [(f"spec.data.{name}.uri", split.uri, _DATA) for name, split in data if split is not None]
    named += [("spec.program.code.uri", spec.program.code.uri, _CODE)] if spec.program.code is not None else []
    named.append(("spec.model.uri", spec.model.uri, _MODEL))
    problems += _training_problems(run)
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


def _is_elsewhere(uri: str) -> bool:
    """Whether it is a `file:` address that starts at a folder, or on a host, that no pod knows."""
    if not uri.startswith("file:"):
        return False
    path = uri.removeprefix("file:").removeprefix("//localhost")
    return not path.startswith("/") or (path.startswith("//") and not path.startswith("///"))


def _advice(fix: str, uri: str) -> str:
    path = uri.removeprefix("file:").lstrip("/") or "PATH"
    return fix.format(path=path, key=path.rstrip("/").rpartition("/")[2] or "KEY")
