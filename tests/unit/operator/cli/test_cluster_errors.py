"""Whatever is wrong between the user and the cluster is told with what to do about it."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
import yaml
from tests.unit.operator.cli.cluster_case import manifest, tandem
from tests.unit.operator.cli.fake_cluster import LIST, FakeCluster, status_answer, write_kubeconfig

from tandem_operator.cli.cluster import access

CRD_MISSING = (404, "404 page not found\n")


@pytest.mark.parametrize("command", [("list",), ("watch", "x"), ("logs", "x"), ("cancel", "x"), ("suspend", "x")])
def test_without_a_kubeconfig_it_is_said_where_one_was_sought(tmp_path: Path, command: tuple[str, ...]) -> None:
    result = tandem(*command)
    assert result.exit_code == 2
    assert f"there is no kubeconfig: {tmp_path / 'no-kubeconfig'} does not exist; set KUBECONFIG" in result.stderr


def test_a_kubeconfig_that_is_named_must_be_there(cluster: FakeCluster) -> None:
    result = tandem("list", "--kubeconfig", "elsewhere")
    assert result.exit_code == 2
    assert "there is no kubeconfig: elsewhere does not exist" in result.stderr


@pytest.mark.parametrize(
    ("text", "want"),
    [
        ("{", "cannot be used: while parsing"),
        ("", "cannot be used: Invalid kube-config"),
        ("just text", "cannot be used"),
        ("contexts: []", "has no current context; choose one with --context (it has none)"),
    ],
)
def test_a_kubeconfig_that_is_none_is_told(tmp_path: Path, text: str, want: str) -> None:
    path = tmp_path / "broken"
    path.write_text(text)
    result = tandem("list", "--kubeconfig", path)
    assert result.exit_code == 2
    assert f"the kubeconfig {path} {want}" in result.stderr


@pytest.mark.parametrize("damage", [b"certificate-authority-data: abc", b"certificate-authority-data: \xff"])
def test_a_damaged_kubeconfig_is_told(cluster: FakeCluster, tmp_path: Path, damage: bytes) -> None:
    path = tmp_path / "damaged"
    whole = write_kubeconfig(path, "https://127.0.0.1:1").read_bytes()
    path.write_bytes(whole.replace(b"    server:", b"    " + damage + b"\n    server:"))
    result = tandem("list", "--kubeconfig", path)
    assert result.exit_code == 2
    assert f"the kubeconfig {path} cannot be used: " in result.stderr


def test_an_unknown_context_is_told_with_those_there_are(cluster: FakeCluster) -> None:
    result = tandem("list", "--context", "prod")
    assert result.exit_code == 2
    assert "has no context 'prod'; allowed: test" in result.stderr


def test_a_login_that_fails_is_told(cluster: FakeCluster, tmp_path: Path) -> None:
    login = {"apiVersion": "client.authentication.k8s.io/v1", "command": "false", "interactiveMode": "Never"}
    path = write_kubeconfig(tmp_path / "login", "http://127.0.0.1:1", exec=login)
    result = tandem("list", "--kubeconfig", path)
    assert result.exit_code == 2
    assert f"the kubeconfig {path} cannot be used to log in: exec: process returned 1" in result.stderr


def test_a_pod_uses_its_own_account(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
    result = tandem("list")
    assert result.exit_code == 2
    assert "this pod's own account cannot be used: Service token file does not exist." in result.stderr


def test_a_kubeconfig_of_several_files_is_read_as_one(
    cluster: FakeCluster, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = yaml.safe_load((tmp_path / "kubeconfig").read_text())
    for name in ("clusters", "contexts"):
        (tmp_path / name).write_text(yaml.safe_dump({name: whole[name], "current-context": "test"}))
    monkeypatch.setenv("KUBECONFIG", f"{tmp_path}/clusters:{tmp_path}/nothing:{tmp_path}/contexts")
    cluster.put(manifest())
    assert "small" in tandem("list").stdout


def test_a_server_that_is_down_is_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        server = f"http://127.0.0.1:{closed.getsockname()[1]}"
    result = tandem("list", "--kubeconfig", write_kubeconfig(tmp_path / "config", server))
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: cannot connect to {server}: Connection refused\nIs the cluster up")
    assert caplog.records == []


def test_an_unknown_host_and_a_server_without_tls_are_named(cluster: FakeCluster, tmp_path: Path) -> None:
    path = write_kubeconfig(tmp_path / "config", "https://cluster.invalid:6443")
    result = tandem("list", "--kubeconfig", path)
    assert result.exit_code == 1
    assert "cannot connect to https://cluster.invalid:6443: " in result.stderr
    server = yaml.safe_load((tmp_path / "kubeconfig").read_text())["clusters"][0]["cluster"]["server"]
    path = write_kubeconfig(tmp_path / "tls", server.replace("http:", "https:"))
    result = tandem("list", "--kubeconfig", path)
    assert result.exit_code in (1, 2)
    assert f"cannot connect to {server.replace('http:', 'https:')}: " in result.stderr


def test_credentials_that_are_not_accepted_are_told(cluster: FakeCluster) -> None:
    cluster.refuse("GET", LIST, status_answer(401, "Unauthorized", "Unauthorized"))
    result = tandem("list")
    assert result.exit_code == 2
    assert "does not accept your credentials: log in to the cluster again" in result.stderr


def forbidden(verb: str, resource: str = "optimizationruns") -> str:
    return f'{resource} is forbidden: User "ada" cannot {verb} resource "{resource}" in the namespace "default"'


@pytest.mark.parametrize(
    ("command", "method", "path", "verb", "role"),
    [
        (("list",), "GET", LIST, "list", "tandem-viewer or tandem-editor"),
        (("status", "small", "-n", "default"), "GET", f"{LIST}/small", "get", "tandem-viewer or tandem-editor"),
        (("suspend", "small"), "PATCH", f"{LIST}/small", "patch", "tandem-editor"),
        (("cancel", "small", "--yes"), "DELETE", f"{LIST}/small", "delete", "tandem-editor"),
    ],
)
def test_a_missing_right_is_named_with_the_role_that_has_it(
    cluster: FakeCluster, command: tuple[str, ...], method: str, path: str, verb: str, role: str
) -> None:
    cluster.put(manifest())
    cluster.refuse(method, path, status_answer(403, "Forbidden", forbidden(verb)))
    result = tandem(*command)
    assert result.exit_code == 2
    assert (
        f"you lack the right to {verb} optimizationruns.tandem.dev in namespace default; "
        f"ask for the ClusterRole {role}\n  the API server says: {forbidden(verb)}"
    ) in result.stderr


def test_a_missing_right_to_logs_is_named(cluster: FakeCluster) -> None:
    cluster.put(manifest())
    path = "/api/v1/namespaces/default/pods"
    cluster.refuse("GET", path, status_answer(403, "Forbidden", forbidden("list", "pods")))
    result = tandem("logs", "small")
    assert result.exit_code == 2
    assert "you lack the right to list pods in namespace default; ask for the ClusterRole view" in result.stderr


def test_a_refusal_that_is_no_missing_right_is_not_called_one(cluster: FakeCluster) -> None:
    Path("run.yaml").write_text(yaml.safe_dump(manifest()))
    cluster.refuse("POST", LIST, status_answer(403, "Forbidden", "exceeded quota: runs"))
    result = tandem("submit", "-f", "run.yaml")
    assert result.exit_code == 2
    assert result.stderr == "error: the cluster does not allow to create small: exceeded quota: runs\n"


@pytest.mark.parametrize(
    ("command", "path"),
    [
        (("list",), LIST),
        (("list", "-A"), "/apis/tandem.dev/v1alpha1/optimizationruns"),
        (("watch", "small"), f"{LIST}/small"),
    ],
)
def test_a_cluster_without_tandem_is_told_so(cluster: FakeCluster, command: tuple[str, ...], path: str) -> None:
    cluster.refuse("GET", path, CRD_MISSING)
    result = tandem(*command)
    assert result.exit_code == 2
    assert "the CRD is not installed: helm install tandem charts/tandem" in result.stderr


@pytest.mark.parametrize("command", [("watch",), ("logs",), ("cancel", "--yes"), ("resume",)])
def test_a_run_that_is_not_there_is_told_with_similar_names(cluster: FakeCluster, command: tuple[str, ...]) -> None:
    name, *options = command
    result = tandem(name, "reviws", *options)
    assert result.exit_code == 2
    assert "there is no run 'reviws' in namespace default; there are no runs in it" in result.stderr
    for other in ("reviews", "iris", "reviews-2"):
        cluster.put(manifest(other))
    result = tandem(name, "reviws", *options)
    assert "there is no run 'reviws' in namespace default; did you mean reviews, reviews-2?" in result.stderr
    result = tandem(name, "zzz", *options)
    assert "; there are: iris, reviews, reviews-2\n" in result.stderr


@pytest.mark.parametrize("command", ["watch", "logs", "events", "suspend", "resume", "cancel"])
@pytest.mark.parametrize(
    ("name", "want"),
    [
        (
            "runs/reviews",
            "error: found 'runs/reviews'; write the name of a run on a cluster, such as reviews; "
            "tandem status runs/reviews shows a run in a folder\n",
        ),
        (
            ".",
            "error: found '.'; write the name of a run on a cluster, such as reviews; "
            "tandem status . shows a run in a folder\n",
        ),
        ("", "error: found ''; write the name of a run on a cluster, such as reviews\n"),
    ],
)
def test_what_is_no_name_is_not_sent(cluster: FakeCluster, command: str, name: str, want: str) -> None:
    result = tandem(command, name)
    assert (result.exit_code, result.stderr) == (2, want)
    assert cluster.requests == []


def test_a_status_nobody_foresaw_is_told_as_it_is(cluster: FakeCluster) -> None:
    cluster.refuse("GET", LIST, status_answer(503, "ServiceUnavailable", "etcd is down"))
    result = tandem("list")
    assert result.exit_code == 1
    assert "answers 503: etcd is down; try again" in result.stderr
    cluster.refuse("GET", LIST, status_answer(418, "Teapot", "I am a teapot"))
    result = tandem("list")
    assert result.exit_code == 1
    assert "answers 418 to list optimizationruns: I am a teapot" in result.stderr


def test_a_run_of_another_version_is_told(cluster: FakeCluster) -> None:
    cluster.put(manifest(novelty=True))
    result = tandem("watch", "small")
    assert result.exit_code == 1
    assert "this version of tandem does not understand the run 'small'" in result.stderr
    assert "spec.novelty: unknown field" in result.stderr
    assert tandem("status", "small", "-n", "default", "-o", "yaml").exit_code == 0


def test_arguments_that_name_the_cluster_are_repeated() -> None:
    given = access.Access("team", "prod", Path("config"))
    assert given.arguments == " -n team --context prod --kubeconfig config"
    assert given.is_given
    assert not access.Access().is_given
