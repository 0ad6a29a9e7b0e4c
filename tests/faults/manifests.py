"""Manifests that are almost right: valid ones of which one to three things are changed, made from the CRD's own schema.

`changes()` is every change that the schema suggests (values, limits, wrong types, what is too long, deletions) and
those that take knowledge of what the fields mean. `cases()` makes manifests of them, the same ones for the same seed.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import yaml

Object = dict[str, Any]
Keys = tuple[str, ...]

_ROOT = Path(__file__).parents[2]
#: The CRD's own schema of a run.
SCHEMA: Final[Object] = yaml.safe_load((_ROOT / "crds/tandem.dev_optimizationruns.yaml").read_text())["spec"][
    "versions"
][0]["schema"]["openAPIV3Schema"]
#: Put where a field is to be deleted.
REMOVED: Final = object()
_PRESERVE = "x-kubernetes-preserve-unknown-fields"
_LONG = 20_000
_SHA = "0" * 64


@dataclass(frozen=True)
class Change:
    """One thing that is done to a manifest."""

    keys: Keys
    """Where, from the top: ("spec", "seed")."""
    value: Any
    """What is put there, or REMOVED."""
    kind: str
    """What sort of a value it is."""

    @property
    def path(self) -> str:
        return ".".join(self.keys)

    def __str__(self) -> str:
        return f"{self.path} = {'(removed)' if self.value is REMOVED else repr(self.value)[:60]} ({self.kind})"


@dataclass(frozen=True)
class Case:
    """A manifest that may or may not be valid, and the valid one that it was made of."""

    number: int
    valid: Object
    changes: tuple[Change, ...]

    @property
    def document(self) -> Object:
        made = copy.deepcopy(self.valid)
        for change in self.changes:
            put(made, change)
        return made

    def __str__(self) -> str:
        return f"case {self.number}: {'; '.join(map(str, self.changes))}"


def put(document: Object, change: Change) -> None:
    """Make the change. Objects on the way are made where they are missing, and left alone where they are no objects."""
    *above, last = change.keys
    place: Any = document
    for key in above:
        if not isinstance(place.get(key), dict):
            if change.value is REMOVED or place.get(key) is not None:
                return
            place[key] = {}
        place = place[key]
    if change.value is REMOVED:
        place.pop(last, None)
    else:
        place[last] = copy.deepcopy(change.value)


def manifest(name: str = "run", namespace: str = "team", **spec: Any) -> Object:
    """A small valid run for a cluster that only scores its program; keyword arguments replace fields of its spec."""
    return {
        "apiVersion": "tandem.dev/v1alpha1",
        "kind": "OptimizationRun",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "program": {"inline": {"signature": "review -> sentiment", "adapter": "plain"}},
            "metric": {"builtin": "exact-match", "field": "sentiment"},
            "data": {
                "train": {"uri": "configmap://reviews/train.jsonl"},
                "validation": {"uri": "configmap://reviews/validation.jsonl"},
                "test": {"uri": "configmap://reviews/test.jsonl"},
                "inputs": ["review"],
            },
            "model": {"uri": "hf://org/model"},
            "strategy": "vanilla",
            "storage": {"s3": {"bucket": "tandem", "endpoint": "http://s3:8333", "credentialsSecret": "s3"}},
            **spec,
        },
    }


_OTHER = {"url": "https://host/v1", "model": "large", "keySecret": "key"}
_DEMOS = {
    "maxBootstrappedDemos": 2,
    "maxLabeledDemos": 2,
    "threshold": "0.5",
    "samplesPerExample": 2,
    "temperature": "0.9",
    "passingExamples": 8,
    "mixLabeled": True,
    "exhaustive": False,
    "teacher": {**_OTHER, "entrypoint": "teachers:strong", "arguments": {"depth": 2}},
    "racing": {"errorRate": "0.1", "firstRound": 8},
}
_PROPOSER = {**_OTHER, "temperature": "1", "maxTokens": 256}
_SIZES = {"trainSize": 20, "validationSize": 20}
#: Every field of each type of prompt optimizer.
OPTIMIZERS: Final[dict[str, Object]] = {
    "bootstrap-random-search": {**_SIZES, **_DEMOS, "candidates": 4},
    "mipro": {
        **_SIZES,
        **_DEMOS,
        "variant": "mipro",
        "auto": "light",
        "instructions": 3,
        "demoSets": 3,
        "trials": 8,
        "minibatchSize": 10,
        "fullEvaluationEvery": 4,
        "searchOn": "train",
        "proposer": _PROPOSER,
        "grounding": {"data": True, "program": True, "demos": True, "tips": True, "history": False},
    },
    "gepa": {
        **_SIZES,
        "auto": "medium",
        "maxMetricCalls": 100,
        "reflectionMinibatchSize": 2,
        "candidateSelection": "current-best",
        "merge": False,
        "proposer": _PROPOSER,
    },
    "dspy": {**_SIZES, "class": "SIMBA", "args": {"bsize": 4}, "compileArgs": {"seed": 1}, "proposer": _PROPOSER},
}
_PATCH = {
    "metadata": {"labels": {"team": "nlp"}, "annotations": {"note": "mine"}},
    "spec": {"nodeSelector": {"disk": "ssd"}, "tolerations": [{"key": "gpu", "operator": "Exists"}]},
}
_RESOURCES = {"requests": {"cpu": "500m", "memory": "1Gi"}, "limits": {"memory": "2Gi"}}
_GPU = {"limits": {"nvidia.com/gpu": 1}}


def whole(kind: str, name: str = "run", namespace: str = "team") -> Object:
    """A valid run that says something in every field it can have with this type of prompt optimizer."""
    uri = "configmap://reviews"
    return manifest(
        name,
        namespace,
        program={
            "entrypoint": "programs:make",
            "adapter": "json",
            "arguments": {"hops": 2},
            "image": "team/programs:1",
            "code": {"uri": "s3://bucket/code.tar.gz", "sha256": _SHA},
        },
        metric={"builtin": "f1", "field": "sentiment"},
        data={
            **{split: {"uri": f"{uri}/{split}.jsonl", "limit": 40, "seed": 1} for split in ("train", "validation")},
            "test": {"uri": f"{uri}/test.jsonl", "limit": 40},
            "inputs": ["review"],
            "holdout": {"fraction": "0.3", "stratify": "sentiment"},
        },
        model={
            "uri": "hf://org/model",
            "tokenSecret": "hub",
            "sampling": {"temperature": "0.2", "topP": "0.9", "maxTokens": 64, "stop": ["\n"]},
        },
        strategy="p -> w",
        promptOptimizer={"type": kind, **OPTIMIZERS[kind]},
        weightOptimizer={
            "type": "lora",
            "rank": 8,
            "alpha": 16,
            "dropout": "0.1",
            "targetModules": ["q_proj"],
            "learningRate": "1e-4",
            "schedule": "cosine",
            "warmupFraction": "0.1",
            "epochs": 2,
            "batchSize": 8,
            "microBatchSize": 4,
            "maxLength": 512,
            "packing": True,
            "checkpoint": "last",
            "prompts": "optimized",
            "validationFraction": "0.2",
            "precision": "bf16",
            "traces": {
                "samplesPerExample": 2,
                "temperature": "0.9",
                "threshold": "0.5",
                "maxPerExample": 2,
                "minTraces": 4,
                "trainSize": 30,
            },
        },
        evaluation={
            "concurrency": 8,
            "maxErrorRate": "0.2",
            "requestTimeoutSeconds": 60,
            "unavailableTimeoutSeconds": 300,
        },
        serving={
            "replicas": 2,
            "image": "team/vllm:1",
            "resources": _GPU,
            "podTemplate": _PATCH,
            "extraArgs": ["--max-model-len=4096"],
            "adapters": "reload",
            "handover": "release",
            "startupTimeoutSeconds": 600,
        },
        training={"resources": _GPU, "nodes": 1, "backend": "job", "podTemplate": _PATCH},
        workers={"resources": _RESOURCES, "podTemplate": _PATCH},
        storage={
            "s3": {
                "bucket": "tandem",
                "prefix": "runs/a",
                "endpoint": "http://s3:8333",
                "region": "eu-west-1",
                "credentialsSecret": "s3",
            },
            "deletionPolicy": "Retain",
        },
        tracking={
            "mlflow": {
                "uri": "http://mlflow",
                "experiment": "reviews",
                "credentialsSecret": "mlflow",
                "artifacts": "link",
                "registeredModel": "reviews",
            }
        },
        seed=7,
        attempts=2,
        stageTimeoutSeconds=3600,
        queue="gpus",
        priorityClass="low",
        budget={"tokens": 1_000_000, "gpuHours": "2.5", "deadlineSeconds": 3600},
        stop={"targetScore": "0.99", "patience": 2},
        ttlSecondsAfterFinished=86_400,
    )


#: Values that a field's type does not allow, by its type.
_WRONG: Final[dict[str, tuple[Any, ...]]] = {
    "string": (7, True, ["text"], {"text": "x"}),
    "integer": ("3", 1.5, True, [3], {"n": 3}),
    "boolean": ("yes", 0, [True], {}),
    "object": ("text", 1, ["text"]),
    "array": ("text", 1, {"0": "text"}),
}
_TEXTS: Final = (
    "",
    " ",
    "\n",
    "..",
    "../../etc/passwd",
    "näme ☃",
    "a\u0000b",
    "{}{0}%s",
    "'\"`$(id)",
    "-",
    "x" * _LONG,
)
_NUMBERS: Final = (-1, 0, 1, 2, 3, 17, 2**31 - 1, 2**31, 2**53 + 1, 2**63 - 1)


def changes() -> Iterator[Change]:
    """Every change of one field of the spec that the schema suggests, then those of `meanings`."""
    yield from _object_changes(SCHEMA["properties"]["spec"], ("spec",))
    yield from meanings()


def _object_changes(schema: Object, keys: Keys) -> Iterator[Change]:
    for name, field in schema.get("properties", {}).items():
        yield from _changes(field, (*keys, name))
    yield Change((*keys, "unknownField"), 1, "unknown field")


def _changes(schema: Object, keys: Keys) -> Iterator[Change]:
    """The changes of one field and of what is in it."""
    kind = schema.get("type", "any")
    yield Change(keys, REMOVED, "removed")
    yield Change(keys, None, "null")
    for value in _WRONG.get(kind, ()):
        yield Change(keys, value, "wrong type")
    match kind:
        case "string":
            yield from (Change(keys, *made) for made in _string_values(schema))
        case "integer":
            low, high = schema.get("minimum", 0), schema.get("maximum", 2**63 - 1)
            yield from (Change(keys, value, "limit") for value in (low, low + 1, high - 1, high))
            yield from (Change(keys, value, "beyond a limit") for value in (low - 1, high + 1))
            yield from (Change(keys, value, "number") for value in _NUMBERS)
        case "boolean":
            yield from (Change(keys, value, "value") for value in (True, False))
        case "array":
            items: Object = schema.get("items", {})
            yield Change(keys, [], "empty")
            yield from (Change(keys, [value], "item") for value in (None, "", [], {}, 1, "x" * _LONG))
            most = schema.get("maxItems", 64)
            yield Change(keys, [f"item{n}" for n in range(most)], "limit")
            yield Change(keys, [f"item{n}" for n in range(most + 1)], "beyond a limit")
            yield Change(keys, ["same", "same"], "twice")
            if items.get("type") == "object":
                yield from (Change((*keys[:-1], keys[-1]), [c.value], c.kind) for c in _changes(items, keys))
        case "object":
            yield Change(keys, {}, "empty")
            if _PRESERVE in schema:
                yield from (Change(keys, *made) for made in _free_values())
            yield from _object_changes(schema, keys)


def _string_values(schema: Object) -> Iterator[tuple[Any, str]]:
    for value in schema.get("enum", ()):
        yield value, "value"
    if "enum" in schema:
        yield "nonsense", "unknown value"
        yield schema["enum"][0].upper(), "unknown value"
    most = schema.get("maxLength", 1024)
    yield "x" * most, "limit"
    yield "x" * (most + 1), "beyond a limit"
    yield from ((text, "text") for text in _TEXTS)
    if "decimal" in schema.get("description", "") or r"[0-9]+(\.[0-9]+)?" in schema.get("pattern", ""):
        numbers = (
            "0",
            "0.0",
            "1",
            "1.5",
            "-1",
            "1e-4",
            "1e400",
            "1e-400",
            "NaN",
            "Infinity",
            "0x10",
            "1_000",
            "٣",
            ".5",
        )
        yield from ((text, "decimal") for text in numbers)


def _free_values() -> Iterator[tuple[Any, str]]:
    """Objects for the fields that the schema leaves free."""
    yield {"": ""}, "strange name"
    yield {"x" * 2000: 1}, "too long"
    yield {"a": "x" * _LONG}, "too long"
    yield {"a": None, "b": [], "c": {}}, "null inside"
    yield {"a\u0000\n": "☃"}, "strange name"
    yield nested(60), "deep"
    yield {str(n): n for n in range(2000)}, "too many"


def nested(depth: int) -> Object:
    """An object in an object, and so on."""
    found: Object = {}
    for _ in range(depth):
        found = {"a": found}
    return found


def meanings() -> Iterator[Change]:
    """Changes that no schema suggests: texts with a grammar, addresses, references, what belongs together."""
    for group in yaml.safe_load((Path(__file__).parent / "meanings.yaml").read_text()):
        for path in group["paths"]:
            for value in group["values"]:
                yield Change(("spec", *path.split(".")), value, group["kind"])
    for kind, fields in OPTIMIZERS.items():
        yield Change(("spec", "promptOptimizer"), {"type": kind, **fields}, "another optimizer")
    for path, value in _LARGE:
        yield Change(("spec", *path.split(".")), value, "too large")


_STEP: Final = {"kind": "p"}
#: What is too large to be written out.
_LARGE: Final[tuple[tuple[str, Any], ...]] = (
    *(("strategy", text) for text in ("(" * 5000, "p -> " * 5000 + "p", "p" * _LONG, "(p){" + "9" * 600 + "}")),
    *(("strategy", [_STEP] * count) for count in (32, 33, 5000)),
    ("strategy", [{"kind": "p", "unknown" * 500: 1}]),
    ("strategy", [{"kind": "p", **{f"unknown{n}": 1 for n in range(3000)}}]),
    ("strategy", [{"kind": "w", "weightOptimizer": {"targetModules": nested(30)}}]),
    ("weightOptimizer.targetModules", ["m"] * 5000),
    ("program.arguments", {"text": "x" * 300_000}),
    ("program.arguments", nested(150)),
    ("data.train.uri", f"configmap://{'a' * 250}/train.jsonl"),
    *((f"{part}.resources", {"limits": {"x" * 300: 1}}) for part in ("serving", "training", "workers")),
    *((f"{part}.podTemplate", {"spec": {"affinity": nested(40)}}) for part in ("serving", "training", "workers")),
    *((f"{part}.podTemplate", {"metadata": {"annotations": {"x" * 400: "x"}}}) for part in ("serving", "workers")),
)


def cases(valid: Sequence[Object], count: int, seed: int = 0, choice: Sequence[Change] = ()) -> list[Case]:
    """So many manifests, made of those that are `valid` with one to three changes, of `choice` or else of all.

    Each change comes once before any comes again; the same seed gives the same cases.
    """
    luck = random.Random(seed)
    pool = list(choice or changes())
    found: list[Case] = []
    left: list[Change] = []
    while len(found) < count:
        if not left:
            left = luck.sample(pool, len(pool))
        first = left.pop()
        more = luck.choices((0, 1, 2), weights=(6, 3, 1))[0]
        found.append(Case(len(found), luck.choice(valid), (first, *luck.sample(pool, more))))
    return found
