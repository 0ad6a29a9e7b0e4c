"""Manifests that serve a result: objects that the API takes, pods that may run anywhere, and a command that the
launcher understands."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import jsonschema
import pytest
from kubernetes import client
from pydantic import ValidationError
from tests.chart.api_schema import complaints
from tests.pod_security import violations

from tandem_api.errors import ConfigurationError
from tandem_api.v1alpha1.status import Artifact
from tandem_operator.export.manifests import Options, manifests
from tandem_operator.export.servable import Servable, Store
from tandem_operator.platforms.kubernetes import names
from tandem_trainer import serving as launcher

SHA = "3f" * 32
ADAPTER = Artifact(uri="s3://bucket/team/reviews/u1/steps/2-w/train/adapter/", sha256=SHA)
SEVERAL = ADAPTER.model_copy(update={"adapters": 2})
WHAT = Servable(
    run="reviews",
    namespace="team",
    uid="u1",
    model="hf://org/name",
    adapter=ADAPTER,
    store=Store("http://store.s3.svc:8333", "eu-1", "s3-credentials"),
    result=Artifact(uri="s3://bucket/team/reviews/u1/result/", sha256="b" * 64),
    score="0.8750",
)
OPTIONS = Options(image="registry/tandem-trainer:1")
#: An InferenceService as KServe's reference has it, as far as it concerns us: what is not here is not allowed. The pod
#: is Kubernetes' own, and held against that.
PREDICTOR = {
    "minReplicas": {"type": "integer", "minimum": 0},
    "maxReplicas": {"type": "integer", "minimum": 1},
    "containers": {
        "type": "array",
        "minItems": 1,
        "maxItems": 1,
        "items": {
            "type": "object",
            "required": ["name", "image", "ports"],
            "properties": {"name": {"const": "kserve-container"}, "ports": {"type": "array", "maxItems": 1}},
        },
    },
}
POD_FIELDS = {field.serialization_alias or name for name, field in client.V1PodSpec.model_fields.items()}
INFERENCE_SERVICE = {
    "type": "object",
    "additionalProperties": False,
    "required": ["apiVersion", "kind", "metadata", "spec"],
    "properties": {
        "apiVersion": {"const": "serving.kserve.io/v1beta1"},
        "kind": {"const": "InferenceService"},
        "metadata": {"type": "object", "required": ["name", "namespace"]},
        "spec": {
            "type": "object",
            "additionalProperties": False,
            "required": ["predictor"],
            "properties": {
                "predictor": {
                    "type": "object",
                    "additionalProperties": False,
                    "required": ["containers"],
                    "properties": {**{name: {} for name in POD_FIELDS}, **PREDICTOR},
                }
            },
        },
    },
}
CASES = [
    pytest.param(WHAT, OPTIONS, id="an adapter on a GPU"),
    pytest.param(replace(WHAT, adapter=SEVERAL), OPTIONS, id="adapters of two predictors"),
    pytest.param(replace(WHAT, adapter=None), OPTIONS, id="the base model"),
    pytest.param(WHAT, replace(OPTIONS, gpus=0, replicas=3), id="on CPUs"),
    pytest.param(WHAT, replace(OPTIONS, gpus=4, arguments=("--max-model-len=8192",)), id="on four GPUs"),
    pytest.param(replace(WHAT, model="pvc://models/large", token_secret="hub"), OPTIONS, id="a model on a claim"),
    pytest.param(replace(WHAT, store=Store(service_account="reader")), OPTIONS, id="the cloud's own identity"),
]


def pod_of(document: dict[str, Any]) -> dict[str, Any]:
    """The template, or what of a predictor is a pod's."""
    if document["kind"] == "Deployment":
        found: dict[str, Any] = document["spec"]["template"]
        return found
    predictor = document["spec"]["predictor"]
    return {"spec": {key: value for key, value in predictor.items() if key not in ("minReplicas", "maxReplicas")}}


def launched(document: dict[str, Any]) -> launcher.Options:
    """The command as the launcher understands it."""
    (container,) = pod_of(document)["spec"]["containers"]
    assert container["command"][:3] == ["python3", "-m", "tandem_trainer.serving"]
    return launcher.parse(container["command"][3:])


@pytest.mark.parametrize(("what", "options"), CASES)
def test_a_deployment_and_its_service_are_objects_of_the_api(what: Servable, options: Options) -> None:
    deployment, service = manifests(what, options, "vllm")
    assert complaints(deployment) == complaints(service) == []
    selector = deployment["spec"]["selector"]["matchLabels"]
    assert selector == service["spec"]["selector"]
    assert selector.items() <= deployment["spec"]["template"]["metadata"]["labels"].items()
    assert deployment["metadata"]["name"] == service["metadata"]["name"] == "model-reviews"
    assert violations(deployment["spec"]["template"]) == []


@pytest.mark.parametrize(("what", "options"), CASES)
def test_an_inference_service_is_one_of_kserves(what: Servable, options: Options) -> None:
    (document,) = manifests(what, options, "kserve")
    jsonschema.validate(document, INFERENCE_SERVICE)
    pod = pod_of(document)
    try:
        client.V1PodSpec.model_validate(pod["spec"])
    except ValidationError as error:
        pytest.fail(str(error))
    assert violations(pod) == []


@pytest.mark.parametrize("kind", ["vllm", "kserve"])
@pytest.mark.parametrize(("what", "options"), CASES)
def test_the_launcher_serves_the_runs_adapter_under_the_runs_name(what: Servable, options: Options, kind: Any) -> None:
    document = manifests(what, options, kind)[0]
    given = launched(document)
    assert (given.model, given.port, given.served_name) == (what.model, 8000, what.served_name)
    if what.adapter is None:
        assert (given.mode, given.adapter) == ("base", None)
    else:
        assert given.adapter == Artifact(uri=what.adapter.uri, sha256=SHA)
        assert given.mode == ("rollout" if options.gpus else "merged")
        assert what.served_name == "reviews-3f3f3f3f3f3f3f3f"
    assert given.mode != "reload", "nobody may load other adapters"
    prepared = launcher.Prepared(launcher.Path("/model"))
    command = launcher.vllm_command(given, prepared, on_cpu=not options.gpus)
    assert set(options.arguments) <= set(command)
    assert ("--tensor-parallel-size=4" in command) == (options.gpus == 4)


def test_the_runs_arguments_for_vllm_come_before_those_of_the_export() -> None:
    what = replace(WHAT, arguments=("--quantization=fp8", "--max-model-len=4096"))
    options = replace(OPTIONS, arguments=("--max-model-len=8192",))
    for kind in ("vllm", "kserve"):
        command = pod_of(manifests(what, options, kind)[0])["spec"]["containers"][0]["command"]  # type: ignore[arg-type]
        arguments = command[command.index("--") + 1 :]
        assert arguments == ["--quantization=fp8", "--max-model-len=4096", "--max-model-len=8192"]


def test_the_annotations_say_what_is_served_and_where_it_is_from() -> None:
    for kind in ("vllm", "kserve"):
        for document in manifests(WHAT, OPTIONS, kind):  # type: ignore[arg-type]
            found = document["metadata"]["annotations"]
            assert found["tandem.dev/adapter-sha256"] == SHA
            assert found["tandem.dev/adapter-uri"] == ADAPTER.uri
            assert found["tandem.dev/result-uri"] == "s3://bucket/team/reviews/u1/result/"
            assert found["tandem.dev/exported-run"] == "team/reviews"
            assert found["tandem.dev/served-name"] == "reviews-3f3f3f3f3f3f3f3f"


def test_several_predictors_have_several_names() -> None:
    document = manifests(replace(WHAT, adapter=SEVERAL), OPTIONS, "vllm")[0]
    served = document["metadata"]["annotations"]["tandem.dev/served-name"]
    assert served == "reviews-3f3f3f3f3f3f3f3f-0,reviews-3f3f3f3f3f3f3f3f-1"


def test_the_operator_does_not_take_the_pods_for_its_own() -> None:
    labels = manifests(WHAT, OPTIONS, "vllm")[0]["spec"]["template"]["metadata"]["labels"]
    assert not {names.RUN, names.RUN_UID, names.MANAGED_BY} & labels.keys()


def test_keys_are_named_and_not_written() -> None:
    environment = {
        one["name"]: one for one in pod_of(manifests(WHAT, OPTIONS, "vllm")[0])["spec"]["containers"][0]["env"]
    }
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        assert environment[name]["valueFrom"]["secretKeyRef"] == {"name": "s3-credentials", "key": name}
    assert environment["AWS_ENDPOINT_URL"]["value"] == "http://store.s3.svc:8333"


def test_options_reach_the_objects() -> None:
    options = replace(OPTIONS, name="sentiment", namespace="prod", replicas=2, gpus=2, accelerator="amd.com/gpu")
    deployment, service = manifests(WHAT, options, "vllm")
    assert {thing["metadata"]["name"] for thing in (deployment, service)} == {"sentiment"}
    assert {thing["metadata"]["namespace"] for thing in (deployment, service)} == {"prod"}
    assert deployment["spec"]["replicas"] == 2
    (container,) = pod_of(deployment)["spec"]["containers"]
    assert container["resources"]["limits"] == {"amd.com/gpu": "2"}
    assert "--tensor-parallel-size=2" in container["command"]


@pytest.mark.parametrize(
    ("what", "options", "said"),
    [
        (replace(WHAT, model="file:///models/x"), OPTIONS, "--model"),
        (replace(WHAT, adapter=SEVERAL), replace(OPTIONS, gpus=0), "--gpus 1"),
        (WHAT, replace(OPTIONS, name="Sentiment"), "--name: found 'Sentiment'"),
        (WHAT, replace(OPTIONS, name="1st"), "--name: found '1st'"),
        (WHAT, replace(OPTIONS, name="x" * 64), "--name"),
    ],
)
def test_what_cannot_be_served_is_refused(what: Servable, options: Options, said: str) -> None:
    for kind in ("vllm", "kserve"):
        with pytest.raises(ConfigurationError, match=said):
            manifests(what, options, kind)  # type: ignore[arg-type]
