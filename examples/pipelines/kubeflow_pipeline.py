"""A Kubeflow pipeline with a component that makes a run and waits for its end: `python kubeflow_pipeline.py` writes
reviews.yaml. The pipeline's service account needs, in the namespace, what the role `edit` gives."""

# Without `from __future__ import annotations`: Kubeflow reads the types themselves.
from typing import NamedTuple

from kfp import compiler, dsl

MANIFEST = """
apiVersion: tandem.dev/v1alpha1
kind: OptimizationRun
metadata: {name: reviews}
spec:
  program:
    inline: {signature: "review -> sentiment", adapter: plain}
  metric: {builtin: exact-match, field: sentiment}
  data:
    inputs: [review]
    train: {uri: "configmap://reviews/train.jsonl"}
    test: {uri: "configmap://reviews/test.jsonl"}
  model: {uri: "hf://HuggingFaceTB/SmolLM2-135M-Instruct"}
  strategy: "p -> w -> p"
  storage:
    s3: {bucket: runs, credentialsSecret: s3-credentials}
"""


@dsl.component(base_image="python:3.11-slim", packages_to_install=["kubernetes==30.1.0"])
def optimize(manifest: str, namespace: str, metrics: dsl.Output[dsl.Metrics], hours: float = 24.0) -> NamedTuple(
    "Result", [("uri", str), ("sha256", str)]
):  # type: ignore[valid-type]
    """Make the run, or find it from an attempt before, and wait. Fails when the run fails, or takes too long."""
    import collections
    import time

    import yaml
    from kubernetes import client, config

    config.load_config()
    api = client.CustomObjectsApi()
    body = yaml.safe_load(manifest)
    where = ("tandem.dev", "v1alpha1", namespace, "optimizationruns")
    try:
        api.create_namespaced_custom_object(*where, body)
    except client.ApiException as error:
        if error.status != 409:
            raise
    end = time.monotonic() + hours * 3600
    while time.monotonic() < end:
        try:
            run = api.get_namespaced_custom_object(*where, body["metadata"]["name"])
        except client.ApiException as error:
            if error.status is not None and 400 <= error.status < 500 and error.status != 429:
                raise
            time.sleep(10)
            continue
        status = run.get("status", {})
        found = {one["type"]: one for one in status.get("conditions", [])}
        succeeded = found.get("Succeeded", {"status": "Unknown"})
        if succeeded["status"] == "False":
            raise RuntimeError(f"the run failed: {succeeded['reason']}: {succeeded.get('message', '')}")
        if succeeded["status"] == "True":
            metrics.log_metric("baseline", float(status["baseline"]["score"]))
            metrics.log_metric("best", float(status["best"]["score"]))
            result = status["result"]
            return collections.namedtuple("Result", ["uri", "sha256"])(result["uri"], result["sha256"])
        time.sleep(10)
    raise TimeoutError(f"the run is not over after {hours} hours; it goes on")


@dsl.pipeline(name="reviews")
def pipeline(namespace: str = "reviews") -> None:
    """Only the one step; what comes after takes `step.outputs`."""
    step = optimize(manifest=MANIFEST, namespace=namespace)
    # The same run is found again: a retry of the step costs nothing.
    step.set_retry(3)
    step.set_caching_options(False)


if __name__ == "__main__":
    compiler.Compiler().compile(pipeline, "reviews.yaml")
