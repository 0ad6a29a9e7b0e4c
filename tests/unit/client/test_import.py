"""What importing the client costs: nothing that talks to clusters, S3 or models."""

from __future__ import annotations

import subprocess
import sys

HEAVY = {
    "aiohttp", "boto3", "botocore", "dspy", "kopf", "kubernetes", "litellm", "numpy", "psutil", "rich",
    "tandem_operator", "tandem_trainer", "torch", "transformers", "typer", "vllm",
}  # fmt: skip
LOADED = "import sys, tandem, tandem_api.v1alpha1; print(*sorted({name.partition('.')[0] for name in sys.modules}))"


def test_the_client_and_the_models_are_imported_without_anything_heavy() -> None:
    ended = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, timeout=120, check=True)
    loaded = set(ended.stdout.split())
    assert {"tandem", "tandem_api", "pydantic"} <= loaded
    assert loaded & HEAVY == set()


def test_a_cluster_needs_neither_kopf_nor_dspy() -> None:
    source = LOADED.replace(
        "print(", "from tandem_operator.cli.cluster import access, feed, submit; import kubernetes.client; print("
    )
    ended = subprocess.run([sys.executable, "-c", source], capture_output=True, text=True, timeout=120, check=True)
    assert set(ended.stdout.split()) & {"kopf", "dspy", "torch", "tandem_trainer"} == set()
