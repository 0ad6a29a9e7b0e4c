"""A manifest names nothing outside of its namespace: every text field that could hold a path, a name or an address is
here, so that a new one is noticed; and none of them reaches another namespace, or a place above its own."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.api.manifests import document

from tandem_api.layout import RunLayout
from tandem_api.v1alpha1 import crd
from tandem_api.v1alpha1.podtemplate import problems
from tandem_api.v1alpha1.run import ManifestError, Metadata, parse_run

#: Values that would lead somewhere else if anybody took them for a name, a key or a path.
HOSTILE = (
    *("..", "../other", "other/../..", "team-b/secret", "/etc/passwd", "//host/share", "~/x", "team-b:secret", "a b"),
    *(
        "%2e%2e%2fother",
        "..%2fother",
        "..\\other",
        "C:\\x",
        "name\0.txt",
        "name\nother",
        "name\r\nX: y",
        "name\x1b[31m",
    ),
    *(
        "\uff0e\uff0e/other",
        "\u2025/other",
        "tе\u0430m",
        "other\u2215name",
        "\u202eterces",
        "${HOME}",
        "$(id)",
        "*",
        "",
    ),
)
#: The fields that name an object of the cluster: a name alone, of the run's own namespace.
NAMES = {
    *("spec.model.tokenSecret", "spec.storage.s3.credentialsSecret", "spec.storage.s3.serviceAccount"),
    "spec.tracking.mlflow.credentialsSecret",
    *("spec.promptOptimizer.proposer.keySecret", "spec.promptOptimizer.teacher.keySecret"),
    *("spec.queue", "spec.priorityClass"),
}
#: The fields that hold an address, and the schemes that they take.
ADDRESSES = {
    "spec.program.code.uri": ("configmap", "s3"),
    "spec.data.train.uri": ("configmap", "s3", "hf"),
    "spec.data.validation.uri": ("configmap", "s3", "hf"),
    "spec.data.test.uri": ("configmap", "s3", "hf"),
    "spec.model.uri": ("pvc", "s3", "hf", "pypi"),
}
SERVERS = (
    *("spec.storage.s3.endpoint", "spec.promptOptimizer.proposer.url", "spec.promptOptimizer.teacher.url"),
    "spec.tracking.mlflow.uri",
)
#: Text fields that take some of the hostile values, and why that leads nowhere.
OPEN = {
    **dict.fromkeys(ADDRESSES, "checked scheme by scheme, below"),
    **dict.fromkeys(SERVERS, "an address on the network, without keys; the NetworkPolicy says what is in reach"),
    "spec.storage.s3.prefix": "checked below",
    "spec.program.image": "the kubelet pulls it; the pod has the same rights whatever is in it",
    "spec.serving.image": "the same",
    "spec.serving.extraArgs[]": "one item each of vLLM's command line, never seen by a shell",
    "spec.program.inline.signature": "a text for the model",
    "spec.program.inline.instructions": "a text for the model",
    "spec.model.sampling.stop[]": "a text of the model",
    "spec.promptOptimizer.proposer.model": "a name in a request's body",
    "spec.promptOptimizer.teacher.model": "the same",
    "spec.metric.field": "a key of a row",
    "spec.data.inputs[]": "a key of a row",
    "spec.data.holdout.stratify": "a key of a row",
    "spec.tracking.mlflow.experiment": "a name in a request's body",
    "spec.tracking.mlflow.registeredModel": "the same",
}
#: Fields of any shape, and who reads them.
FREE = {
    "spec.strategy": "a text of its own grammar, or steps with the fields of promptOptimizer and weightOptimizer",
    "spec.program.arguments": "the program's, in the worker",
    "spec.promptOptimizer.args": "the optimizer's, in the worker",
    "spec.promptOptimizer.compileArgs": "the same",
    "spec.promptOptimizer.teacher.arguments": "the teacher's, in the worker",
    "spec.weightOptimizer.targetModules": "names of a model's layers, in the worker",
    **{
        f"spec.{part}.{name}": "passed on in the pod's own template"
        for part in ("serving", "training", "workers")
        for name in ("resources", "podTemplate")
    },
}
SCHEMA = crd.render_schema()


def fields(schema: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    yield path.lstrip("."), schema
    for name, field in schema.get("properties", {}).items():
        yield from fields(field, f"{path}.{name}")
    for key, mark in (("items", "[]"), ("additionalProperties", ".*")):
        if isinstance(schema.get(key), dict):
            yield from fields(schema[key], path + mark)


SPEC = {path: node for path, node in fields(SCHEMA) if path.startswith("spec.")}


def takes(node: dict[str, Any], value: str) -> bool:
    """Whether the API server would take the text in this field."""
    if "enum" in node:
        return value in node["enum"]
    fits = node.get("minLength", 0) <= len(value) <= node.get("maxLength", len(value))
    return fits and ("pattern" not in node or re.search(node["pattern"], value) is not None)


def manifest(path: str, value: Any) -> dict[str, Any]:
    """A valid manifest for a cluster with `value` in the field at `path`."""
    optimizer = {"type": "mipro", "proposer": {"url": "https://host/v1", "model": "m"}}
    optimizer["teacher"] = {"url": "https://host/v1", "model": "m"}
    found = document(
        data={name: {"uri": "configmap://data/rows.jsonl"} for name in ("train", "validation", "test")}
        | {"inputs": ["review"]},
        program={"entrypoint": "a:b", "code": {"uri": "configmap://code", "sha256": "0" * 64}},
        model={"uri": "hf://org/name"},
        promptOptimizer=optimizer,
        storage={"s3": {"bucket": "bucket"}},
        tracking={"mlflow": {"uri": "http://mlflow", "experiment": "e"}},
    )
    here = copy.deepcopy(found)
    *parents, last = path.split(".")
    part: dict[str, Any] = here
    for parent in parents:
        part = part[parent]
    part[last] = value
    return here


def refused(path: str, value: Any) -> str:
    """What is said of that field; empty where it is accepted."""
    try:
        parse_run(manifest(path, value))
    except ManifestError as error:
        told = [problem.message for problem in error.problems if problem.path.startswith(path)]
        assert told, f"{path}: not told: {error}"
        return told[0]
    return ""


def test_every_text_that_could_lead_elsewhere_is_known():
    texts = {path for path, node in SPEC.items() if node.get("type") == "string" and "enum" not in node}
    is_open = {path for path in texts if any(takes(SPEC[path], value) for value in HOSTILE)}
    assert is_open <= OPEN.keys(), "new fields: say here why they lead nowhere, or narrow them"
    assert OPEN.keys() <= texts, "fields that are gone"
    assert texts - is_open >= NAMES


def test_every_field_of_any_shape_is_known():
    assert {path for path, node in SPEC.items() if node.get("x-kubernetes-preserve-unknown-fields")} == FREE.keys()


def test_no_field_is_called_like_a_reference_without_being_one():
    reference = re.compile(
        r"(secret|account|claim|configMap|class|queue|namespace|uri|url|endpoint|host)$", re.IGNORECASE
    )
    named = {path for path in SPEC if reference.search(path.rpartition(".")[2])}
    known = {*NAMES, *ADDRESSES, *SERVERS, "spec.promptOptimizer.class"}
    assert named == known


@pytest.mark.parametrize("path", sorted(NAMES))
def test_a_name_is_one_of_the_runs_own_namespace(path):
    assert refused(path, "team-secret.v2") == ""
    for value in HOSTILE:
        assert not takes(SPEC[path], value), value
        assert refused(path, value), value


def worker(**fields: Any) -> dict[str, Any]:
    return {"spec": {"containers": [{"name": "worker", **fields}]}}


def env(**source: Any) -> dict[str, Any]:
    return worker(env=[{"name": "A", "valueFrom": source}])


def volume(**source: Any) -> dict[str, Any]:
    return {"spec": {"volumes": [{"name": "v", **source}]}}


IN_A_PATCH: dict[str, Callable[[str], dict[str, Any]]] = {
    "Secret of a variable": lambda name: env(secretKeyRef={"name": name, "key": "k"}),
    "ConfigMap of a variable": lambda name: env(configMapKeyRef={"name": name, "key": "k"}),
    "Secret of variables": lambda name: worker(envFrom=[{"secretRef": {"name": name}}]),
    "ConfigMap of variables": lambda name: worker(envFrom=[{"configMapRef": {"name": name}}]),
    "Secret of a volume": lambda name: volume(secret={"secretName": name}),
    "ConfigMap of a volume": lambda name: volume(configMap={"name": name}),
    "claim": lambda name: volume(persistentVolumeClaim={"claimName": name}),
    "registry": lambda name: {"spec": {"imagePullSecrets": [{"name": name}]}},
}


@pytest.mark.parametrize("what", IN_A_PATCH)
def test_a_patch_of_a_pod_names_objects_of_the_runs_own_namespace(what):
    assert problems(IN_A_PATCH[what]("team-secret.v2")) == []
    for value in HOSTILE:
        assert problems(IN_A_PATCH[what](value)), value


@pytest.mark.parametrize(
    ("path", "scheme"), [(path, scheme) for path, all_of in ADDRESSES.items() for scheme in all_of]
)
def test_an_address_stays_where_its_first_part_says(path, scheme):
    code = path == "spec.program.code.uri"
    good = {
        "configmap": "configmap://data" if code else "configmap://data.v1/rows_1.jsonl",
        "s3": "s3://bucket/a/b-1/rows.jsonl",
        "hf": "hf://org/name",
        "pvc": "pvc://models/org/name",
        "pypi": "pypi://package",
    }[scheme]
    assert refused(path, good) == ""
    for value in (v for v in HOSTILE if re.search(r"(^|/)\.\.(/|$)|[\x00-\x1f\\]", v)):
        for address in (f"{scheme}://{value}", f"{good}/{value}"):
            assert refused(path, address), address
    # What names an object of the cluster, or a bucket, has no other letters either.
    if scheme in ("configmap", "pvc", "s3"):
        for value in (v for v in HOSTILE if "/" not in v):
            assert refused(path, f"{scheme}://{value}/x"), value


@pytest.mark.parametrize("path", SERVERS)
@pytest.mark.parametrize(
    "address",
    [
        *("http://user:hunter2@host:9000", "https://hunter2@host", "http://host/?key=hunter2", "http://host/#hunter2"),
        *("file:///etc/passwd", "host:9000", "http://", "http://host:hunter2", "http://host:99999", "http://a b/"),
        *("http://host\nX: y", "gopher://host"),
    ],
)
def test_a_servers_address_holds_no_keys_and_errors_repeat_none(path, address):
    told = refused(path, address)
    assert told
    assert "hunter2" not in told or address == "http://host:hunter2"


@pytest.mark.parametrize(
    "value", ["..", "../other", "a/../../b", "./a", "a/.", "a\\b", "a b", "%2e%2e", "a\0", "a\n", "ä"]
)
def test_a_prefix_leads_nowhere_else(value):
    assert refused("spec.storage.s3.prefix", value)


_PREFIXES = st.from_regex(r"[A-Za-z0-9._/-]{0,40}", fullmatch=True)
_WORDS = st.from_regex(Metadata.model_fields["name"].metadata[-1].pattern or "", fullmatch=True).filter(
    lambda word: len(word) <= 52
)


@given(_PREFIXES, _PREFIXES, _WORDS, _WORDS, _WORDS, st.uuids(version=4), st.uuids(version=4))
def test_no_run_has_the_prefix_of_another(mine, yours, namespace, other, name, uid, other_uid):
    """Whatever two runs choose, neither writes, lists or deletes under the other's own keys. (That one run's whole
    folder lies inside another's can be had, with the right prefix: `docs/security.md` says what to do about it.)"""

    def root(prefix: str, namespace: str, uid: object) -> str | None:
        try:
            run = parse_run(manifest("spec.storage.s3.prefix", prefix))
        except ManifestError:
            return None
        assert run.spec.storage is not None
        return RunLayout(run.spec.storage.s3.prefix, namespace, name, str(uid)).root

    first, second = root(mine, namespace, uid), root(yours, other, other_uid)
    if first is not None and second is not None:
        assert first != second
        assert first.endswith(f"/{namespace}/{name}/{uid}/".lstrip("/")) and ".." not in first.split("/")
        # Every key of a run begins with steps/, result/ or run.json; a folder inside another's begins with a namespace
        # and goes on with a uid, which is no stage's name.
        if second.startswith(first):
            assert second.endswith(f"{other}/{name}/{other_uid}/")
