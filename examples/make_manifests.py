"""Writes the manifests of BetterTogether's nine cells (arXiv 2407.10930): three tasks by three models, for a cluster.

    python examples/make_manifests.py

They differ in what the two tables below say, and in nothing else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

FOLDER = Path(__file__).parent
BUCKET = "tandem"

#: By the file's name: the model on the Hub, and the longest prompt with its answer that it takes, in tokens.
MODELS = {
    "mistral-7b": ("mistralai/Mistral-7B-Instruct-v0.2", 8192),
    "llama-2-7b": ("meta-llama/Llama-2-7b-chat-hf", 4096),
    "llama-3-8b": ("meta-llama/Meta-Llama-3-8B-Instruct", 8192),
}

#: What the tasks are: their part of the spec, and the sizes of the prompt step's training and validation samples.
TASKS: dict[str, tuple[dict[str, Any], tuple[int, int]]] = {
    "hotpotqa": (
        {
            "program": {
                "entrypoint": "multihop:MultiHop",
                "arguments": {"corpus": f"s3://{BUCKET}/data/hotpotqa/corpus.jsonl", "hops": 2, "passages": 3},
                "code": {"uri": "configmap://hotpotqa"},
            },
            "metric": {"builtin": "exact-match", "field": "answer"},
            "data": {"inputs": ["question"]},
            # The index over all of Wikipedia's abstracts is built once and kept on a claim that the workers share.
            "workers": {
                "resources": {"requests": {"cpu": "4", "memory": "32Gi"}},
                "podTemplate": {
                    "spec": {"volumes": [{"name": "cache", "persistentVolumeClaim": {"claimName": "tandem-cache"}}]}
                },
            },
        },
        (100, 250),
    ),
    "gsm8k": (
        {
            "program": {"inline": {"module": "chain-of-thought", "signature": "question -> answer"}},
            "metric": {"builtin": "numeric", "field": "answer"},
            "data": {"inputs": ["question"]},
        },
        (100, 250),
    ),
    "iris": (
        {
            "program": {
                "inline": {
                    "module": "chain-of-thought",
                    "signature": "petal_length, petal_width, sepal_length, sepal_width -> answer",
                    "instructions": "Tell which species an iris belongs to from the length and width of its petals and "
                    "sepals, all in centimetres. The answer is setosa, versicolor or virginica.",
                }
            },
            "metric": {"builtin": "exact-match", "field": "answer"},
            "data": {"inputs": ["petal_length", "petal_width", "sepal_length", "sepal_width"]},
        },
        (15, 35),
    ),
}

_GPU = {"requests": {"cpu": "8", "memory": "64Gi"}, "limits": {"nvidia.com/gpu": 1}}


def manifest(task: str, model: str) -> dict[str, Any]:
    """The manifest of one cell."""
    (of_task, (train_size, validation_size)), (name, length) = TASKS[task], MODELS[model]
    where = f"configmap://{task}" if task == "iris" else f"s3://{BUCKET}/data/{task}"
    splits = {split: {"uri": f"{where}/{split}.jsonl"} for split in ("train", "validation", "test")}
    return {
        "apiVersion": "tandem.dev/v1alpha1",
        "kind": "OptimizationRun",
        "metadata": {"name": f"{task}-{model}"},
        "spec": {
            **of_task,
            "data": {**of_task["data"], **splits},
            "model": {
                "uri": f"hf://{name}",
                "tokenSecret": "hub",
                "sampling": {"temperature": "0.1", "topP": "0.97", "maxTokens": 1024},
            },
            "strategy": "p -> w -> p",
            "promptOptimizer": {
                "type": "bootstrap-random-search",
                "candidates": 6,
                "maxBootstrappedDemos": 3,
                "maxLabeledDemos": 3,
                "mixLabeled": True,
                "trainSize": train_size,
                "validationSize": validation_size,
                "exhaustive": True,
            },
            "weightOptimizer": {
                "type": "lora",
                "rank": 32,
                "alpha": 64,
                "dropout": "0",
                "targetModules": ["q_proj", "k_proj"],
                "learningRate": "1e-5",
                "schedule": "constant",
                "epochs": 5,
                "batchSize": 8,
                "microBatchSize": 2,
                "maxLength": 4096,
                "precision": "bf16",
            },
            # An unchanged program may fail on every example, as llama-2 does on Iris: that is a score, and no error.
            "evaluation": {"concurrency": 64, "maxErrorRate": "1"},
            "serving": {"resources": _GPU, "extraArgs": [f"--max-model-len={length}"]},
            "training": {"resources": _GPU},
            "storage": {"s3": {"bucket": BUCKET, "credentialsSecret": "s3-credentials"}},
            "seed": 0,
        },
    }


class _Dumper(yaml.SafeDumper):
    """Repeats what is used twice, and quotes every text that some reader of YAML takes for a number (1e-5)."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.Node:
    try:
        float(value)
    except ValueError:
        return dumper.represent_scalar("tag:yaml.org,2002:str", value)
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style='"')


_Dumper.add_representer(str, _text)


def render(task: str, model: str) -> str:
    """The manifest's text."""
    text = yaml.dump(manifest(task, model), Dumper=_Dumper, sort_keys=False, width=120)
    return f"# Written by examples/make_manifests.py; README.md says what must be there before it runs.\n{text}"


def main() -> None:
    for task in TASKS:
        for model in MODELS:
            (FOLDER / task / f"{model}.yaml").write_text(render(task, model), encoding="utf-8")


if __name__ == "__main__":
    main()
