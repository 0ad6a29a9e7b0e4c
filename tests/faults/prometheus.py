"""A real Prometheus, set up by what the chart renders for the Prometheus Operator.

Debian builds it without the discovery of Kubernetes' pods. A thread here stands in for that: it writes the pods of the
API server down with the same labels, and Prometheus reads them as a file. Everything after that is Prometheus' own.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import urllib3
import yaml
from tests.faults.api import Api
from tests.faults.control_plane import OPERATOR_NAMESPACE, ROOT, ControlPlane, until

from tandem_operator.platforms.local.machine import LOOPBACK, free_port
from tandem_operator.platforms.local.processes import Launch, spawn

Object = dict[str, Any]

#: Between two scrapes. New pods are found every 5 seconds, and scraped 5 seconds later at the latest.
SCRAPE: Final = "500ms"
_KINDS: Final = ("ServiceMonitor", "PodMonitor", "PrometheusRule")
_START_SECONDS: Final = 60.0
#: Where pods are written down, and how often.
PODS: Final = "pods.json"
_LOOK_SECONDS: Final = 0.5


def tool(script: str, program: str) -> str:
    """The path of a program that a script in tools/ brings. Raises RuntimeError with the script's words."""
    done = subprocess.run([str(ROOT / "tools" / script)], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"tools/{script} brought no {program}: {done.stderr.strip()}")
    return str(Path(done.stdout.strip()) / program)


def rendered() -> dict[str, Object]:
    """What the chart has for the Prometheus Operator, by kind."""
    values = ",".join(f"{kind[0].lower()}{kind[1:]}.enabled=true" for kind in _KINDS)
    command = [tool("kubernetes-tools", "helm"), "template", "tandem", str(ROOT / "charts/tandem")]
    command += ["--namespace", OPERATOR_NAMESPACE, "--set", values]
    text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return {one["kind"]: one for one in yaml.safe_load_all(text) if one and one["kind"] in _KINDS}


def configuration(operator_port: int, monitors: dict[str, Object]) -> Object:
    """As the Prometheus Operator makes it of the monitors; the operator, which is no pod here, at its port."""
    (endpoint,) = monitors["ServiceMonitor"]["spec"]["endpoints"]
    operator = {
        "job_name": "tandem-metrics",
        "honor_labels": endpoint["honorLabels"],
        "metrics_path": endpoint["path"],
        "static_configs": [
            {
                "targets": [f"{LOOPBACK}:{operator_port}"],
                "labels": {"namespace": OPERATOR_NAMESPACE, "pod": "operator-0"},
            }
        ],
    }
    pods = monitors["PodMonitor"]
    of_pods = [_pod_job(pods, one) for one in pods["spec"]["podMetricsEndpoints"]]
    return {
        "global": {"scrape_interval": SCRAPE, "scrape_timeout": SCRAPE, "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [operator, *of_pods],
    }


def _pod_job(monitor: Object, endpoint: Object) -> Object:
    selector, name = monitor["spec"]["selector"], monitor["metadata"]["name"]
    keep = [{"label": label, "values": [value]} for label, value in selector["matchLabels"].items()]
    keep += [{"label": one["key"], "values": one["values"]} for one in selector["matchExpressions"]]
    relabel: list[Object] = [{"action": "drop", "source_labels": ["__meta_kubernetes_pod_phase"],
                              "regex": "(Failed|Succeeded)"}]  # fmt: skip
    relabel += [
        {"action": "keep", "source_labels": [_meta(one["label"])], "regex": "|".join(one["values"])} for one in keep
    ]
    port = "__meta_kubernetes_pod_container_port_name"
    relabel.append({"action": "keep", "source_labels": [port], "regex": endpoint["port"]})
    relabel += [
        {"source_labels": [f"__meta_kubernetes_{source}"], "target_label": target}
        for target, source in (("namespace", "namespace"), ("pod", "pod_name"), ("container", "pod_container_name"))
    ]
    relabel += [
        {"source_labels": one["sourceLabels"], "target_label": one["targetLabel"]} for one in endpoint["relabelings"]
    ]
    return {
        "job_name": f"{monitor['metadata']['namespace']}/{name}/{endpoint['port']}",
        "metrics_path": endpoint["path"],
        "file_sd_configs": [{"files": [PODS]}],
        "relabel_configs": relabel,
    }


def _meta(label: str) -> str:
    return "__meta_kubernetes_pod_label_" + re.sub(r"\W", "_", label)


def targets(pod: Object) -> Iterator[Object]:
    """A pod's ports with the labels that Prometheus' discovery of pods gives them."""
    metadata, status = pod["metadata"], pod.get("status") or {}
    labels = {_meta(label): value for label, value in (metadata.get("labels") or {}).items()}
    labels["__meta_kubernetes_namespace"] = metadata["namespace"]
    labels["__meta_kubernetes_pod_name"] = metadata["name"]
    labels["__meta_kubernetes_pod_phase"] = status.get("phase", "Pending")
    for container in pod["spec"]["containers"] if status.get("podIP") else ():
        for port in container.get("ports") or ():
            of_port = {
                "__meta_kubernetes_pod_container_name": container["name"],
                "__meta_kubernetes_pod_container_port_name": port["name"],
            }
            yield {"targets": [f"{status['podIP']}:{port['containerPort']}"], "labels": {**labels, **of_port}}


@contextmanager
def discovery(plane: ControlPlane, namespace: str, folder: Path) -> Iterator[None]:
    """Keeps the file of a namespace's pods current."""
    api, ended = Api(plane.url, plane.token), threading.Event()

    def look() -> None:
        while not ended.wait(_LOOK_SECONDS):
            found = [target for pod in api.list("Pod", namespace) for target in targets(pod)]
            staging = folder / "pods.tmp"
            staging.write_text(json.dumps(found))
            staging.replace(folder / PODS)

    thread = threading.Thread(target=look, name="discovery", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(30)


@dataclass
class Prometheus:
    """Its HTTP API."""

    url: str
    began: float

    def get(self, path: str, **parameters: str) -> Any:
        """The `data` of an answer. Raises AssertionError with Prometheus' words."""
        query = urllib.parse.urlencode(parameters)
        answer = urllib3.request("GET", f"{self.url}/api/v1/{path}?{query}", timeout=60, retries=False)
        document = json.loads(answer.data)
        assert document["status"] == "success", document
        return document["data"]

    def now(self, expression: str) -> list[Object]:
        """The samples of an expression at this moment."""
        found: list[Object] = self.get("query", query=expression)["result"]
        return found

    def so_far(self, expression: str, step: str = "1s") -> list[Object]:
        """The series of an expression since Prometheus began."""
        times = {"start": f"{self.began:.3f}", "end": f"{time.time():.3f}", "step": step}
        found: list[Object] = self.get("query_range", query=expression, **times)["result"]
        return found

    def is_ready(self) -> bool:
        try:
            return urllib3.request("GET", f"{self.url}/-/ready", timeout=5, retries=False).status == 200
        except urllib3.exceptions.HTTPError:
            return False


@contextmanager
def prometheus(
    folder: Path, plane: ControlPlane, namespace: str, config: Object, rules: Object
) -> Iterator[Prometheus]:
    """A server with that configuration, which finds the pods of the namespace; it is gone when the block ends."""
    folder.mkdir(parents=True)
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(config))
    (folder / "rules.yaml").write_text(yaml.safe_dump(rules))
    port = free_port()
    argv = (tool("prometheus", "prometheus"), f"--config.file={folder / 'prometheus.yaml'}")
    argv += (f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address={LOOPBACK}:{port}")
    environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
    log = folder / "prometheus.log"
    server = Prometheus(f"http://{LOOPBACK}:{port}", time.time())
    child = spawn(Launch("prometheus", argv, environment, folder, log, death_signal=signal.SIGKILL), folder)
    try:
        until(_START_SECONDS, "Prometheus", lambda: server.is_ready() or child.exit_code is not None)
        assert child.exit_code is None, log.read_text()[-2000:]
        with discovery(plane, namespace, folder):
            yield server
    finally:
        child.stop(grace_seconds=0)
