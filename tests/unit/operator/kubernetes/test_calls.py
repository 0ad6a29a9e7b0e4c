"""Calls to the API server are heard of under the verbs that Kubernetes has for them."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.operator.app.api_server import ApiServer
from urllib3.exceptions import HTTPError

from tandem_operator.app.cluster import RunLister
from tandem_operator.platforms.kubernetes.calls import NO_ANSWER, verb_of
from tandem_operator.platforms.kubernetes.client import Client, api_client

SERVER = "https://10.0.0.1:6443"
RUNS = f"{SERVER}/apis/tandem.dev/v1alpha1"


@pytest.mark.parametrize(
    ("method", "url", "content", "verb"),
    [
        ("GET", f"{RUNS}/namespaces/team/optimizationruns/reviews", "", "get"),
        ("GET", f"{RUNS}/namespaces/team/optimizationruns?limit=5", "", "list"),
        ("GET", f"{RUNS}/optimizationruns", "", "list"),
        ("GET", f"{RUNS}/optimizationruns?watch=true", "", "watch"),
        ("GET", f"{SERVER}/api/v1/namespaces/team/pods?labelSelector=a%3Db", "", "list"),
        ("GET", f"{SERVER}/api/v1/namespaces/team", "", "get"),
        ("GET", f"{SERVER}/api/v1/namespaces", "", "list"),
        ("GET", f"{SERVER}/proxied/api/v1/namespaces/team/pods/x/log", "", "get"),
        ("GET", f"{SERVER}/apis/jobset.x-k8s.io/v1alpha2", "", "get"),
        ("GET", f"{SERVER}/version", "", "get"),
        ("POST", f"{RUNS}/namespaces/team/optimizationruns", "application/json", "create"),
        ("PUT", f"{RUNS}/namespaces/team/optimizationruns/reviews/status", "application/json", "update"),
        ("PATCH", f"{RUNS}/namespaces/team/optimizationruns/reviews", "application/merge-patch+json", "patch"),
        ("PATCH", f"{SERVER}/api/v1/namespaces/team/services/s", "application/apply-patch+yaml", "apply"),
        ("DELETE", f"{SERVER}/api/v1/namespaces/team/pods/p", "", "delete"),
    ],
)
def test_verbs(method: str, url: str, content: str, verb: str) -> None:
    assert verb_of(method, url, {"Content-Type": content} if content else {}) == verb


def test_every_call_is_heard_of_with_its_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ApiServer()
    path = str(server.kubeconfig(tmp_path))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", path)
    heard: list[tuple[str, str]] = []
    api = api_client(lambda verb, code, seconds: heard.append((verb, code)))
    server.put("optimizationruns", "reviews")
    RunLister(api, ()).versions()
    Client(api).get("Pod", "team", "nobody")
    assert heard == [("list", "200"), ("get", "404")]
    server.close()
    with pytest.raises(HTTPError):
        Client(api_client(lambda verb, code, seconds: heard.append((verb, code)))).get("Pod", "team", "nobody")
    assert heard[-1] == ("get", NO_ANSWER)
