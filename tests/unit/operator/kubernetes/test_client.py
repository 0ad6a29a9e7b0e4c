"""The calls to the API server as they go over the wire, and what its answers mean; what pods answer over HTTP."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import kubernetes
import pytest
from kubernetes.client import ApiException
from kubernetes.dynamic import resource

from tandem_operator.platforms.kubernetes.asking import Asking, fetch_json
from tandem_operator.platforms.kubernetes.client import Client

JOB = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j", "namespace": "team"}, "spec": {}}


class Server:
    """Answers what it is told to, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answer: tuple[int, object] = (200, JOB)
        self.asked: list[tuple[str, str, dict[str, list[str]], str, object]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                length = int(self.headers.get("Content-Length") or 0)
                body = json.loads(self.rfile.read(length)) if length else None
                parts = urlsplit(self.path)
                kind = self.headers.get("Content-Type") or ""
                outer.asked.append((self.command, parts.path, parse_qs(parts.query), kind, body))
                status, document = outer.answer
                text = document if isinstance(document, bytes) else json.dumps(document).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = answer

            def log_message(self, *_: object) -> None: ...

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.port = self.http.server_address[1]


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.http.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.http.shutdown()
    server.http.server_close()
    thread.join()


@pytest.fixture
def client(server):
    configuration = kubernetes.client.Configuration()
    configuration.host = f"http://127.0.0.1:{server.port}"
    configuration.retries = False
    return Client(kubernetes.client.ApiClient(configuration))


def status(code: int, reason: str) -> tuple[int, object]:
    return code, {"kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "code": code}


PATHS = {
    "OptimizationRun": "/apis/tandem.dev/v1alpha1/namespaces/team/optimizationruns/x",
    "Deployment": "/apis/apps/v1/namespaces/team/deployments/x",
    "Job": "/apis/batch/v1/namespaces/team/jobs/x",
    "NetworkPolicy": "/apis/networking.k8s.io/v1/namespaces/team/networkpolicies/x",
    "Pod": "/api/v1/namespaces/team/pods/x",
    "Service": "/api/v1/namespaces/team/services/x",
    "ConfigMap": "/api/v1/namespaces/team/configmaps/x",
    "Event": "/api/v1/namespaces/team/events/x",
}


@pytest.mark.parametrize("kind", PATHS)
def test_each_kind_is_read_where_it_lies(server, client, kind):
    assert client.get(kind, "team", "x") == JOB
    assert server.asked[0][:2] == ("GET", PATHS[kind])
    assert len(server.asked) == 1  # nothing is discovered


def test_what_is_not_there_is_none(server, client):
    server.answer = status(404, "NotFound")
    assert client.get("Job", "team", "j") is None
    assert client.patch("Job", "team", "j", {}) is False
    assert client.delete("Job", "team", "j") is False


def test_an_answer_is_read_as_it_is_and_not_wrapped_first(server, client):
    """The library makes an object of each mapping in an answer, and mappings of the objects again: more than half of
    what the processor did in a pass."""
    wrapped = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resource.ResourceInstance, "__init__", lambda *_: wrapped.append(1))
        assert client.get("Job", "team", "x") == JOB
        assert client.apply(JOB) == JOB
    assert not wrapped


def test_an_answer_that_is_no_object_is_an_error_that_says_so(server, client):
    server.answer = (200, "a proxy's page")
    with pytest.raises(ValueError, match="with what is no object"):
        client.get("Job", "team", "x")


def test_a_list_is_chosen_by_labels_and_fields_and_its_items_know_their_kind(server, client):
    item = {"metadata": {"name": "j"}}
    server.answer = (200, {"apiVersion": "batch/v1", "kind": "JobList", "metadata": {}, "items": [item]})
    found = client.list("Job", "team", labels={"a": "b", "c": "d"}, fields="involvedObject.uid=u")
    assert found == [{**item, "kind": "Job", "apiVersion": "batch/v1"}]
    assert server.asked[0][1] == "/apis/batch/v1/namespaces/team/jobs"
    assert server.asked[0][2] == {"labelSelector": ["a=b,c=d"], "fieldSelector": ["involvedObject.uid=u"]}
    server.answer = (200, {"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": None})
    assert client.list("Pod", "team") == []


@pytest.mark.parametrize(("may_be_late", "asked"), [(True, {"resourceVersion": ["0"]}), (False, {})])
def test_a_list_comes_out_of_the_servers_cache_only_where_it_may_be_late(server, client, may_be_late, asked):
    server.answer = (200, {"apiVersion": "v1", "kind": "PodList", "metadata": {}, "items": []})
    client.list("Pod", "team", may_be_late=may_be_late)
    assert server.asked[0][2] == asked


def test_a_kind_that_a_cluster_may_lack_has_no_objects_there(server, client):
    server.answer = (404, b"404 page not found")
    assert client.list("JobSet", "team", none_if=(404,)) == []
    with pytest.raises(ApiException):
        client.list("JobSet", "team")


def test_create_says_whether_it_was_not_there(server, client):
    assert client.create(JOB) is True
    assert server.asked[0][:2] == ("POST", "/apis/batch/v1/namespaces/team/jobs")
    assert server.asked[0][2]["fieldManager"] == ["tandem-operator"]
    assert server.asked[0][4] == JOB
    server.answer = status(409, "AlreadyExists")
    assert client.create(JOB) is False


@pytest.mark.parametrize(
    ("code", "reason"), [(409, "Conflict"), (403, "Forbidden"), (422, "Invalid"), (500, "Internal")]
)
def test_other_answers_are_raised(server, client, code, reason):
    server.answer = status(code, reason)
    with pytest.raises(ApiException) as caught:
        client.create(JOB)
    assert caught.value.status == code


def test_apply_is_server_side_and_takes_our_fields_back(server, client):
    assert client.apply(JOB) == JOB
    method, path, query, kind, body = server.asked[0]
    assert (method, path) == ("PATCH", "/apis/batch/v1/namespaces/team/jobs/j")
    assert kind == "application/apply-patch+yaml"
    assert query["fieldManager"] == ["tandem-operator"]
    assert query["force"][0].lower() == "true"
    assert body == JOB


def test_a_patch_is_a_merge_patch(server, client):
    assert client.patch("Job", "team", "j", {"spec": {"suspend": True}}) is True
    assert server.asked[0][0] == "PATCH"
    assert server.asked[0][3] == "application/merge-patch+json"
    assert server.asked[0][4] == {"spec": {"suspend": True}}


def test_the_status_is_stored_through_its_own_address_with_the_version(server, client):
    run = {
        "apiVersion": "tandem.dev/v1alpha1",
        "kind": "OptimizationRun",
        "metadata": {"name": "x", "namespace": "team", "resourceVersion": "7"},
        "status": {"phase": "Pending"},
    }
    server.answer = (200, run)
    assert client.replace_status(run) == run
    assert server.asked[0][:2] == ("PUT", PATHS["OptimizationRun"] + "/status")
    assert server.asked[0][4] == run
    server.answer = status(409, "Conflict")
    with pytest.raises(ApiException) as caught:
        client.replace_status(run)
    assert caught.value.status == 409


def test_deletes_say_how_and_which(server, client):
    assert client.delete("Job", "team", "j", uid="u", propagation="Foreground") is True
    assert server.asked[0][0] == "DELETE"
    assert server.asked[0][4] == {"propagationPolicy": "Foreground", "preconditions": {"uid": "u"}}
    code, document = status(409, "Conflict")
    server.answer = code, {**document, "message": "the UID in the precondition (u) does not match the UID in record"}
    assert client.delete("Job", "team", "j", uid="u") is False


def test_a_delete_that_is_not_carried_out_is_told(server, client):
    """A conflict was once taken for "there is another object of this name": a Service could outlive its run's end."""
    server.answer = status(409, "Conflict")
    with pytest.raises(ApiException):
        client.delete("Service", "team", "s", uid="u")


@pytest.mark.parametrize(("minor", "version"), [("33", (1, 33)), ("29+", (1, 29))])
def test_the_version_is_two_numbers(server, client, minor, version):
    server.answer = (200, {"major": "1", "minor": minor} | dict.fromkeys(VERSION_FIELDS, ""))
    assert client.version() == version
    assert server.asked[0][1] == "/version/"


VERSION_FIELDS = (
    "buildDate", "compiler", "gitCommit", "gitTreeState", "gitVersion", "goVersion", "platform",
)  # fmt: skip


@pytest.mark.parametrize(
    ("answer", "expected"),
    [((200, {"a": 1}), {"a": 1}), ((503, {"a": 1}), None), ((200, b"<html>"), None)],
)
def test_pods_are_asked_without_fear(server, answer, expected):
    server.answer = answer
    assert fetch_json("127.0.0.1", server.port, "/progress") == expected


def test_a_pod_that_is_not_there_answers_nothing(server):
    server.http.server_close()
    assert fetch_json("127.0.0.1", server.port, "/progress") is None


def test_progress_is_asked_for_rarely_and_its_rest_runs_down():
    now, asked = [0.0], []

    def fetch(host, port, path):
        asked.append((host, port, path))
        return {"done": 1, "total": 4, "eta_seconds": 30.0}

    asking = Asking(fetch, clock=lambda: now[0])
    pod = {"metadata": {"uid": "u"}, "status": {"podIP": "10.0.0.1"}}
    assert asking.progress(pod).eta_seconds == 30
    now[0] = 4
    assert asking.progress(pod).eta_seconds == 26
    assert asked == [("10.0.0.1", 8080, "/progress")]
    now[0] = 5
    assert asking.progress(pod).eta_seconds == 30


@pytest.mark.parametrize("said", [None, [], "soon", {"done": "many"}, {"unknown": 1}])
def test_nonsense_is_no_progress(said):
    pod = {"metadata": {"uid": "u"}, "status": {"podIP": "10.0.0.1"}}
    assert Asking(lambda *_: said).progress(pod) is None


@pytest.mark.parametrize(
    "said", [None, [], "x", {"data": None}, {"data": ["x", {}]}, {"failed": ["x"]}, {"failed": "x"}, {"data": 3}]
)
def test_nonsense_serves_no_model(said):
    pod = {"metadata": {"uid": "u", "name": "p"}, "status": {"podIP": "10.0.0.1"}}
    answer = Asking(lambda *_: said).servers([pod], with_sidecar=True)["p"]
    assert "base" not in answer.models
    assert not answer.refused
