"""Kopf as our source of events: what is registered, how it is set, and what it does against an API server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kopf
import pytest
from kopf._cogs.structs.references import Resource
from kubernetes.config import incluster_config
from tests.unit.operator.app.api_server import ApiServer
from tests.unit.operator.app.helpers import until

from tandem_operator.app.watch import CHILDREN, RUNS, Watch, handlers, kopf_settings
from tandem_operator.platforms.kubernetes.names import FINALIZER, OURS

MINE = {"app.kubernetes.io/managed-by": "tandem-operator", "tandem.dev/run": "reviews"}


class Heard:
    def __init__(self) -> None:
        self.runs: list[tuple[tuple[str, str], str, bool]] = []
        self.children: list[tuple[str, str]] = []
        self.listed: list[bool] = []

    def run_changed(self, key: tuple[str, str], version: str, *, deleted: bool) -> None:
        self.runs.append((key, version, deleted))

    def child_changed(self, key: tuple[str, str], *, listed: bool) -> None:
        self.children.append(key)
        self.listed.append(listed)


def resource(group: str, version: str, plural: str) -> Resource:
    return Resource(group, version, plural, namespaced=True)


def tell(heard: Heard, where: tuple[str, str, str], kind: str | None, metadata: dict[str, Any]) -> None:
    """Give an event to whatever is registered for its kind."""
    found = [h for h in handlers(heard)._watching.get_all_handlers() if h.selector.check(resource(*where))]
    assert len(found) == 1
    asyncio.run(found[0].fn(event={"type": kind, "object": {"metadata": metadata}}, body={}, patch={}))


def test_only_low_level_event_handlers_are_registered() -> None:
    registry = handlers(Heard())
    assert len(registry._watching.get_all_handlers()) == 4
    for others in (registry._changing, registry._spawning, registry._indexing, registry._webhooks):
        assert list(others.get_all_handlers()) == []
    assert [h.activity.value for h in registry._activities.get_all_handlers()] == ["authentication"]
    assert all(not getattr(h, "requires_finalizer", False) for h in registry._watching.get_all_handlers())


@pytest.mark.parametrize("kind", [None, "ADDED", "MODIFIED", "DELETED"])
def test_runs_are_told_of_with_their_version(kind: str | None) -> None:
    heard = Heard()
    tell(heard, RUNS, kind, {"name": "reviews", "namespace": "team", "resourceVersion": "7"})
    assert heard.runs == [(("team", "reviews"), "7", kind == "DELETED")]
    assert heard.children == []


@pytest.mark.parametrize("kind", [None, "ADDED", "MODIFIED", "DELETED"])
@pytest.mark.parametrize("where", CHILDREN)
def test_children_name_the_run_of_their_label(where: tuple[str, str, str], kind: str | None) -> None:
    heard = Heard()
    tell(heard, where, kind, {"name": "reviews-1p-check-1", "namespace": "team", "labels": MINE})
    tell(heard, where, kind, {"name": "foreign", "namespace": "team", "labels": {"app": "x"}})
    tell(heard, where, kind, {"name": "bare", "namespace": "team"})
    assert heard.children == [("team", "reviews")]
    assert heard.listed == [kind is None]
    assert heard.runs == []


def test_settings() -> None:
    settings = kopf_settings()
    watching = settings.watching
    assert (watching.server_timeout, watching.client_timeout, watching.connect_timeout) == (300, 310, 30)
    assert settings.scanning.disabled
    assert not settings.posting.enabled
    for child in CHILDREN:
        assert watching.label_selectors.collect(resource(*child)) == [OURS]
    assert watching.label_selectors.collect(resource(*RUNS)) == []
    # Kopf takes its finalizer away wherever no handler needs one.
    assert settings.persistence.finalizer.startswith("tandem.dev/")
    assert settings.persistence.finalizer != FINALIZER
    assert isinstance(settings.persistence.progress_storage, kopf.AnnotationsProgressStorage)
    assert settings.persistence.progress_storage.prefix == "kopf.tandem.dev"
    assert settings.persistence.diffbase_storage.prefix == "kopf.tandem.dev"


@pytest.fixture
def server() -> Iterator[ApiServer]:
    found = ApiServer()
    yield found
    found.close()


@pytest.fixture
def running(server: ApiServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Heard, list[Watch]]]:
    monkeypatch.setenv("KUBECONFIG", str(server.kubeconfig(tmp_path)))
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "kubeconfig"))
    started: list[Watch] = []
    yield Heard(), started
    for watch in started:
        watch.stop()
        until(watch.ended.done)


def test_against_an_api_server(
    server: ApiServer, running: tuple[Heard, list[Watch]], caplog: pytest.LogCaptureFixture
) -> None:
    heard, started = running
    first = server.put("optimizationruns", "reviews")
    server.put("pods", "reviews-pod", labels=MINE)
    watch = Watch(heard, ())
    started.append(watch)
    with caplog.at_level(logging.INFO):
        watch.start()
        until(lambda: heard.runs and heard.children)
        assert heard.runs == [(("team", "reviews"), first, False)]
        until(lambda: sum(q.get("watch") == "true" for _, _, q in server.requests) == 4)
        second = server.put("optimizationruns", "reviews")
        until(lambda: len(heard.runs) == 2)
        server.put("jobs", "reviews-1p-check-1", labels=MINE)
        server.delete("jobs", "reviews-1p-check-1")
        server.put("deployments", "reviews-serving", labels=MINE)
        until(lambda: len(heard.children) == 4)
        server.delete("optimizationruns", "reviews")
        until(lambda: len(heard.runs) == 3)
        watch.stop()
        watch.ended.result(10)
    assert heard.runs[1][:2] == (("team", "reviews"), second)
    assert heard.runs[2][2]
    assert set(heard.children) == {("team", "reviews")}
    # Kopf has only read, and has not asked for definitions, namespaces or peers.
    assert server.writes() == []
    lists = {path for _, path, query in server.requests if "watch" in query or "limit" in query}
    assert lists == {
        "/apis/tandem.dev/v1alpha1/optimizationruns",
        "/apis/batch/v1/jobs",
        "/apis/apps/v1/deployments",
        "/api/v1/pods",
    }
    for _, path, query in server.requests:
        if path in lists:
            assert query.get("labelSelector") == (None if "optimizationruns" in path else OURS)
            assert query.get("timeoutSeconds", "300") == "300"
    # Nothing is said of single events.
    assert "reviews" not in caplog.text


def test_in_named_namespaces_only(server: ApiServer, running: tuple[Heard, list[Watch]]) -> None:
    heard, started = running
    server.put("optimizationruns", "mine", "team-a")
    server.put("optimizationruns", "foreign", "team-b")
    watch = Watch(heard, ("team-a", "team-c"))
    started.append(watch)
    watch.start()
    until(lambda: sum(q.get("watch") == "true" for _, _, q in server.requests) == 8)
    until(lambda: heard.runs)
    assert [key for key, _, _ in heard.runs] == [("team-a", "mine")]
    watched = {path for _, path, query in server.requests if query.get("watch")}
    assert {path.split("/namespaces/")[1].split("/")[0] for path in watched} == {"team-a", "team-c"}


def test_a_renewed_token_is_read_when_the_old_one_is_refused(
    server: ApiServer, running: tuple[Heard, list[Watch]], tmp_path: Path
) -> None:
    heard, started = running
    server.tokens = {"secret-token"}
    watch = Watch(heard, ())
    started.append(watch)
    watch.start()
    until(lambda: sum(q.get("watch") == "true" for _, _, q in server.requests) == 4)
    server.kubeconfig(tmp_path, token="renewed")
    server.tokens = {"renewed"}
    # The streams are asked for anew and refused, which asks for a login.
    seen = len(server.requests)
    server.drop_watches()
    until(lambda: sum(q.get("watch") == "true" for _, _, q in server.requests[seen:]) >= 5)
    server.put("optimizationruns", "reviews")
    until(lambda: heard.runs)


def test_credentials_that_are_refused_for_good_end_it(server: ApiServer, running: tuple[Heard, list[Watch]]) -> None:
    server.tokens = set()
    watch = Watch(running[0], ())
    watch.start()
    with pytest.raises(Exception, match=r"401|credentials"):
        watch.ended.result(20)


def test_the_service_accounts_token_is_read_anew_with_each_login(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, authority = tmp_path / "token", tmp_path / "ca.crt"
    authority.write_text("certificate")
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(token))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(authority))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "fd00::1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "443")
    (login,) = handlers(Heard())._activities.get_all_handlers()
    found = []
    for text in ("first", "second"):
        token.write_text(text)
        found.append(login.fn(logger=logging.getLogger(), settings=kopf_settings()))
    assert [info.token for info in found] == ["first", "second"]
    assert {info.server for info in found} == {"https://[fd00::1]:443"}
    assert {info.ca_path for info in found} == {str(authority)}


def test_it_can_be_stopped_before_it_has_begun() -> None:
    watch = Watch(Heard(), ())
    watch.stop()
    watch.start()
    watch.ended.result(5)
