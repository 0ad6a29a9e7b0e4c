"""A real Kubernetes control plane without nodes: etcd, kube-apiserver and kube-controller-manager as local processes.

Needs no root and no network but the loopback interface; several live side by side. Whatever happens to the process
that started it, nothing of it stays.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import urllib3
import yaml
from tests.faults import binaries
from tests.faults.api import Api, ApiError, path_of

from tandem_api.v1alpha1.run import KIND
from tandem_operator.platforms.local.machine import LOOPBACK, free_port
from tandem_operator.platforms.local.processes import Child, Launch, spawn

ROOT: Final = Path(__file__).parents[2]
OPERATOR_NAMESPACE: Final = "tandem-system"
#: What the pods of runs and the run's own objects need of the controller manager.
_CONTROLLERS: Final = (
    "namespace,serviceaccount,job,deployment,replicaset,garbagecollector,ttl-after-finished,nodelifecycle,podgc,"
    "disruption,resourcequota"
)
_GATES: Final = "TTLAfterFinished=true"
_START_SECONDS: Final = 120.0
#: A node without a sign of life for so long is NotReady; its pods are evicted after the second time.
NODE_GRACE_SECONDS, EVICTION_SECONDS = 20, 2
_T = TypeVar("_T")


def until(seconds: float, what: str, look: Callable[[], _T | None], interval: float = 0.05) -> _T:
    """What `look` finds, as soon as it finds something. Raises AssertionError."""
    end = time.monotonic() + seconds
    while True:
        found = look()
        if found:
            return found
        assert time.monotonic() < end, f"waited {seconds:g} s for {what}"
        time.sleep(interval)


class ControlPlane:
    """One control plane with Tandem's definition, roles and ServiceAccount: `with ControlPlane(folder) as plane: ...`.

    Enter it in a thread that lives as long as it does: the kernel ends the children with that thread.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.token = secrets.token_hex(16)
        self._choose_port()
        self.kubeconfig = folder / "admin.kubeconfig"
        self._children: list[Child] = []
        self._operator_token = ""

    def _choose_port(self) -> None:
        self.port = free_port()
        self.api = Api(self.url, self.token)

    @property
    def url(self) -> str:
        """The API server's own address, with a certificate of its own making."""
        return f"https://{LOOPBACK}:{self.port}"

    def __enter__(self) -> Self:
        for is_last in (False, False, True):
            self.folder.mkdir(parents=True, exist_ok=True)
            try:
                self._start()
                return self
            except BaseException as error:
                self.stop()
                # Somebody else may take a free port before we do.
                if is_last or "address already in use" not in str(error):
                    raise
            shutil.rmtree(self.folder)
            self._choose_port()
        raise AssertionError("unreachable")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def stop(self) -> None:
        """Kill all of it."""
        while self._children:
            self._children.pop().stop(grace_seconds=0)

    def operator_token(self) -> str:
        """A token of the operator's ServiceAccount."""
        if not self._operator_token:
            path = path_of("ServiceAccount", OPERATOR_NAMESPACE, "tandem-operator", "token")
            body = {
                "apiVersion": "authentication.k8s.io/v1",
                "kind": "TokenRequest",
                "spec": {"expirationSeconds": 7 * 24 * 3600},
            }
            self._operator_token = str(self.api.call("POST", path, body)["status"]["token"])
        return self._operator_token

    def operator_kubeconfig(self, server_url: str | None = None) -> Path:
        """The operator's way to the API server, or to the proxy at `server_url`, with its ServiceAccount's rights."""
        url = server_url or self.url
        path = self.folder / f"operator-{url.rpartition(':')[2].strip('/')}.kubeconfig"
        write_kubeconfig(path, url, self.operator_token())
        return path

    def create_namespace(self, name: str) -> None:
        """A namespace that takes pods."""
        self.api.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        until(30, "the default ServiceAccount", lambda: self.api.get("ServiceAccount", name, "default"))

    def _start(self) -> None:
        etcd = free_port({self.port})
        peer = free_port({self.port, etcd})
        key = self.folder / "sa.key"
        curve = ("ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out", str(key))
        subprocess.run(["openssl", *curve], check=True, capture_output=True)
        tokens = self.folder / "tokens.csv"
        tokens.write_text(f'{self.token},admin,admin,"system:masters"\n')
        write_kubeconfig(self.kubeconfig, self.url, self.token)
        self._spawn(
            "etcd",
            ("etcd", "--unsafe-no-fsync", "--log-level=warn", "--logger=zap"),
            data_dir=str(self.folder / "etcd"),
            listen_client_urls=f"http://{LOOPBACK}:{etcd}",
            advertise_client_urls=f"http://{LOOPBACK}:{etcd}",
            listen_peer_urls=f"http://{LOOPBACK}:{peer}",
            initial_advertise_peer_urls=f"http://{LOOPBACK}:{peer}",
            initial_cluster=f"default=http://{LOOPBACK}:{peer}",
            quota_backend_bytes=str(2 * 1024**3),
        )
        self._spawn(
            "apiserver",
            (str(binaries.folder() / "kube-apiserver"),),
            etcd_servers=f"http://{LOOPBACK}:{etcd}",
            bind_address=LOOPBACK,
            advertise_address=LOOPBACK,
            endpoint_reconciler_type="none",
            secure_port=str(self.port),
            cert_dir=str(self.folder / "pki"),
            token_auth_file=str(tokens),
            authorization_mode="RBAC",
            service_account_key_file=str(key),
            service_account_signing_key_file=str(key),
            service_account_issuer="https://kubernetes.default.svc.cluster.local",
            service_cluster_ip_range="10.96.0.0/16",
            feature_gates=_GATES,
            default_not_ready_toleration_seconds=str(EVICTION_SECONDS),
            default_unreachable_toleration_seconds=str(EVICTION_SECONDS),
            profiling="false",
        )
        until(_START_SECONDS, "the API server", lambda: self._watched() and self._is_ready())
        self._spawn(
            "controllers",
            (str(binaries.folder() / "kube-controller-manager"),),
            kubeconfig=str(self.kubeconfig),
            leader_elect="false",
            port="0",
            secure_port="0",
            controllers=_CONTROLLERS,
            service_account_private_key_file=str(key),
            feature_gates=_GATES,
            kube_api_qps="1000",
            kube_api_burst="2000",
            node_monitor_grace_period=f"{NODE_GRACE_SECONDS}s",
            node_monitor_period="1s",
            profiling="false",
        )
        self._install()

    def _spawn(self, name: str, command: tuple[str, ...], **flags: str) -> None:
        argv = (*command, *(f"--{flag.replace('_', '-')}={value}" for flag, value in flags.items()))
        environment = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        log = self.folder / f"{name}.log"
        launch = Launch(name, argv, environment, self.folder, log, death_signal=signal.SIGKILL)
        self._children.append(spawn(launch, self.folder))

    def _watched(self) -> bool:
        """True; AssertionError when one of the processes has ended."""
        for child in self._children:
            assert child.exit_code is None, f"{child.name} ended with {child.exit_code}: {child.tail()}"
        return True

    def _is_ready(self) -> bool:
        try:
            return bool(self.api.call("GET", "/readyz") == "ok")
        except (ApiError, urllib3.exceptions.HTTPError):
            return False

    def _install(self) -> None:
        for path in sorted((ROOT / "crds").glob("*.yaml")):
            self.api.create(*yaml.safe_load_all(path.read_text()))
        documents = yaml.safe_load_all((ROOT / "charts/tandem/rendered.yaml").read_text())
        # No kubelet would run the operator's own pod.
        self.api.create(*(thing for thing in documents if thing and thing["kind"] != "Deployment"))
        until(60, "the definition", self._serves_runs)
        until(60, "the controllers", lambda: self._watched() and self._has_accounts())

    def _serves_runs(self) -> bool:
        try:
            self.api.list(KIND)
        except ApiError:
            return False
        return True

    def _has_accounts(self) -> Any:
        return self.api.get("ServiceAccount", "default", "default")


def write_kubeconfig(path: Path, url: str, token: str) -> None:
    """Who talks to which server."""
    cluster: dict[str, Any] = {"server": url}
    if url.startswith("https:"):
        cluster["insecure-skip-tls-verify"] = True
    document = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "c", "cluster": cluster}],
        "users": [{"name": "u", "user": {"token": token}}],
        "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
        "current-context": "x",
    }
    path.write_text(yaml.safe_dump(document))
    path.chmod(0o600)
