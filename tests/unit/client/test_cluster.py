"""The client against an API server: what it sends, what it makes of answers and faults, and when a watch ends."""

from __future__ import annotations

import copy
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.unit.operator.cli.cluster_case import at_stage, ended, manifest, wait_for, with_status
from tests.unit.operator.cli.fake_cluster import LIST, FakeCluster, not_found, status_answer

import tandem
from tandem_api.errors import ConfigurationError, TandemError
from tandem_api.v1alpha1 import OptimizationRun
from tandem_api.v1alpha1.run import parse_run
from tandem_api.v1alpha1.status import Artifact
from tandem_operator.cli.cluster.failures import AlreadyExistsError, NoSuchObjectError

ONE = f"{LIST}/small"


def wanted(**spec: Any) -> OptimizationRun:
    return parse_run(manifest(**spec))


def running(cluster: FakeCluster) -> tandem.ClusterRun:
    """A run that is at its search, on the cluster."""
    cluster.put(with_status(manifest(), at_stage("optimize", step={"progress": 40})))
    return tandem.Cluster().get("small")


def test_a_run_is_created_as_it_was_built(cluster: FakeCluster) -> None:
    run = tandem.Cluster().submit(wanted())
    ((path, query, body),) = cluster.asked("POST")
    assert path == LIST and query["fieldValidation"] == "Strict"
    assert body["metadata"] == {"name": "small", "namespace": "default", "labels": {}, "annotations": {}}
    assert "status" not in body and parse_run(body).spec == wanted().spec
    assert (run.name, run.namespace, run.uid) == ("small", "default", "uid-small")


def test_an_empty_prefix_is_not_sent(cluster: FakeCluster) -> None:
    tandem.Cluster().submit(wanted(storage={"s3": {"bucket": "bucket"}}))
    ((_, _, body),) = cluster.asked("POST")
    assert body["spec"]["storage"]["s3"] == {"bucket": "bucket"}


def test_the_same_run_again_is_found_and_another_one_is_refused(cluster: FakeCluster) -> None:
    client = tandem.Cluster()
    assert client.submit(wanted()).uid == client.submit(wanted()).uid
    with pytest.raises(AlreadyExistsError, match=r"its spec differs in spec\.seed; tandem cancel"):
        client.submit(wanted(seed=5))


def test_the_runs_own_namespace_counts_unless_it_contradicts(cluster: FakeCluster) -> None:
    document = manifest()
    document["metadata"]["namespace"] = "team"
    assert tandem.Cluster().submit(parse_run(document)).namespace == "team"
    assert tandem.Cluster("team").submit(parse_run(document)).namespace == "team"
    with pytest.raises(ConfigurationError, match=r"metadata\.namespace: found 'team'.* 'other'"):
        tandem.Cluster("other").submit(parse_run(document))


def test_what_no_cluster_can_do_is_told_by_field_before_anything_is_sent(cluster: FakeCluster) -> None:
    run = wanted(storage=None, model={"uri": "file:model"})
    with pytest.raises(tandem.ManifestError) as caught:
        tandem.Cluster().submit(run)
    assert {problem.path for problem in caught.value.problems} == {"spec.storage", "spec.model.uri"}
    assert cluster.asked("POST") == []


def test_what_the_server_refuses_is_told_by_field(cluster: FakeCluster) -> None:
    causes = [{"field": "spec.weightOptimizer", "message": "microBatchSize must divide batchSize"}]
    cluster.refuse("POST", LIST, status_answer(422, "Invalid", "it is invalid", causes=causes))
    with pytest.raises(ConfigurationError, match=r"refuses to create small:\n  spec\.weightOptimizer: microBatchSize"):
        tandem.Cluster().submit(wanted())


def test_an_unknown_name_is_told_with_similar_ones(cluster: FakeCluster) -> None:
    cluster.put(manifest("reviews"))
    with pytest.raises(NoSuchObjectError, match="did you mean reviews"):
        tandem.Cluster().get("review")


def test_runs_are_listed_by_name(cluster: FakeCluster) -> None:
    cluster.put(manifest("b"))
    cluster.put(with_status(manifest("a"), ended()))
    states = tandem.Cluster().list()
    assert [(state.run.metadata.name, state.has_ended) for state in states] == [("a", True), ("b", False)]


def test_a_run_that_cannot_be_read_hides_no_other_and_can_be_held_and_ended(cluster: FakeCluster) -> None:
    cluster.put(manifest("a"))
    cluster.put(manifest("b", strategy="p -> x"))
    client = tandem.Cluster()
    with pytest.warns(UserWarning, match=r"left out: .* does not understand the run 'b'"):
        assert [state.run.metadata.name for state in client.list()] == ["a"]
    refused = client.get("b")
    with pytest.raises(TandemError, match="does not understand"):
        refused.state()
    refused.suspend()
    refused.resume()
    refused.cancel()
    assert list(cluster.runs) == [("default", "a")]
    cluster.put(manifest("b", strategy="p -> x"))
    client.get("b").delete()
    assert list(cluster.runs) == [("default", "a")]


def test_a_watch_gives_each_state_once_and_ends_with_the_run(cluster: FakeCluster) -> None:
    watch = running(cluster).watch(timeout=60)
    first = next(watch)
    assert first.step is not None and first.step.progress == 40 and not first.has_ended
    assert str(first) == "small: Working, step 1 (p), optimize 40%"
    cluster.put(with_status(manifest(), at_stage("optimize", step={"progress": 80})))
    cluster.put(with_status(manifest(), at_stage("optimize", step={"progress": 80})))
    assert next(watch).step.progress == 80  # type: ignore[union-attr]
    cluster.put(with_status(manifest(), ended()))
    (last,) = watch
    assert last.has_succeeded and last.reason == "Completed" and str(last) == "small: Succeeded, best 0.875"


def expired(cluster: FakeCluster) -> Iterator[dict[str, Any]]:
    yield {"type": "ERROR", "object": {"kind": "Status", "code": 410, "reason": "Expired", "message": "too old"}}


def closed(cluster: FakeCluster) -> Iterator[dict[str, Any]]:
    yield from ()


def broken(cluster: FakeCluster) -> Iterator[dict[str, Any]]:
    raise ConnectionAbortedError
    yield {}


@pytest.mark.parametrize("end", [expired, closed, broken])
def test_a_watch_that_the_server_ends_is_begun_anew(cluster: FakeCluster, end: Any) -> None:
    cluster.watch_plan = [end, end]
    run = running(cluster)

    def end_later() -> None:
        wait_for(lambda: not cluster.watch_plan)
        cluster.put(with_status(manifest(), ended()))

    thread = threading.Thread(target=end_later)
    thread.start()
    assert [state.has_ended for state in run.watch(timeout=60)] == [False, True]
    thread.join()


def test_a_run_that_has_ended_is_told_at_once_without_a_watch(cluster: FakeCluster) -> None:
    cluster.put(with_status(manifest(), ended("False", "TooManyErrors")))
    state = tandem.Cluster().get("small").wait(timeout=60)
    assert state.has_ended and not state.has_succeeded and str(state) == "small: Failed, TooManyErrors: that is why"
    assert not [query for _, query, _ in cluster.asked("GET") if query.get("watch")]


def test_waiting_ends_when_the_time_is_over_and_the_run_goes_on(cluster: FakeCluster) -> None:
    run = running(cluster)
    with pytest.raises(TimeoutError, match=r"'small' has not ended within 0\.2 s; it goes on"):
        run.wait(timeout=0.2)
    assert ("default", "small") in cluster.runs


def test_a_run_that_is_deleted_or_replaced_is_gone(cluster: FakeCluster) -> None:
    run = running(cluster)
    watch = run.watch(timeout=60)
    next(watch)
    cluster.remove("small")
    with pytest.raises(tandem.RunGoneError, match="was deleted"):
        next(watch)
    with pytest.raises(tandem.RunGoneError):
        run.state()
    other = copy.deepcopy(manifest())
    other["metadata"]["uid"] = "another"
    cluster.put(other)
    for use in (run.state, run.suspend, run.wait):
        with pytest.raises(tandem.RunGoneError):
            use()
    run.delete()
    assert cluster.asked("DELETE") == [], "the other run is not ours to delete"


def test_suspend_and_resume_change_this_run_and_no_other(cluster: FakeCluster) -> None:
    run = running(cluster)
    run.suspend()
    run.suspend()
    run.resume()
    sent = [body for _, _, body in cluster.asked("PATCH")]
    assert sent == [{"metadata": {"uid": "uid-small"}, "spec": {"suspend": value}} for value in (True, False)]
    cluster.put(with_status(manifest(), ended()))
    with pytest.raises(ConfigurationError, match=r"has ended .* nothing to suspend"):
        run.suspend()


def test_cancel_ends_what_goes_on_and_leaves_what_has_ended(cluster: FakeCluster) -> None:
    run = running(cluster)
    cluster.put(with_status(manifest(), ended()))
    run.cancel()
    assert ("default", "small") in cluster.runs
    run.delete()
    run.delete()
    assert cluster.runs == {}
    running(cluster).cancel()
    assert cluster.runs == {}


def test_a_run_that_vanishes_while_it_is_deleted_is_no_error(cluster: FakeCluster) -> None:
    run = running(cluster)
    cluster.refuse("DELETE", ONE, not_found("optimizationruns", "small"))
    run.delete()


def test_there_is_no_result_before_the_end_or_of_a_failed_run(cluster: FakeCluster) -> None:
    run = running(cluster)
    with pytest.raises(tandem.RunNotFinishedError, match=r"small: Working.*there is no result yet"):
        run.result()
    failed = {**ended("False", "TooManyErrors"), "result": None}
    cluster.put(with_status(manifest(), failed))
    with pytest.raises(tandem.RunFailedError, match="TooManyErrors: that is why"):
        run.result()


def test_a_folder_with_other_files_is_not_replaced_by_a_result(cluster: FakeCluster, tmp_path: Path) -> None:
    run = running(cluster)
    cluster.put(with_status(manifest(), ended()))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.tex").write_text("all of it")
    with pytest.raises(ConfigurationError, match="holds something else"):
        run.result(mine)
    assert (mine / "thesis.tex").exists()


def bundle(folder: Path, uid: str) -> Path:
    """The result of a run of that uid."""
    folder.mkdir(parents=True, exist_ok=True)
    run = manifest()
    run["metadata"]["uid"] = uid
    files = {"program.json": {}, "prompts.json": {"predictors": {}}, "scores.json": {}, "run.json": run}
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content))
    return folder


@pytest.fixture
def stored(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket with the result of the run."""

    class Store:
        def __init__(self, *where: object) -> None:
            pass

        def fetch_folder(self, artifact: Artifact, target: Path) -> None:
            bundle(target, "uid-small")

    monkeypatch.setattr("tandem_api.store.S3Store", Store)


def test_only_the_runs_own_result_is_written_anew(cluster: FakeCluster, stored: None, tmp_path: Path) -> None:
    run = running(cluster)
    cluster.put(with_status(manifest(), ended()))
    other = bundle(tmp_path / "other", "uid-another")
    (other / "scores.json").write_text("precious")
    with pytest.raises(ConfigurationError, match=rf"{other} holds something else than the result of small .*choose"):
        run.result(other)
    assert (other / "scores.json").read_text() == "precious"
    assert run.result(tmp_path / "own").run.metadata.uid == "uid-small"
    (tmp_path / "own/notes.txt").write_text("mine")
    (tmp_path / "own/scores.json").write_text("damaged")
    assert run.result(tmp_path / "own").scores == {}
    assert (tmp_path / "own/notes.txt").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir() if path.is_dir()} == {"other", "own"}


def test_a_result_may_lie_under_the_home_folder(
    cluster: FakeCluster, stored: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    run = running(cluster)
    cluster.put(with_status(manifest(), ended()))
    assert run.result("~/result").path == tmp_path / "home/result"


def test_scores_are_numbers(cluster: FakeCluster) -> None:
    candidate = {"id": "a1@base", "step": 1, "score": "0.7500", "low": "0.5", "high": "0.9", "n": 20, "errors": 2}
    baseline = {**candidate, "id": "vanilla@base", "step": 0, "score": "0.2500"}
    steps = [
        {"index": 0, "kind": "baseline", "state": "Succeeded", "candidates": [baseline]},
        {"index": 1, "kind": "p", "state": "Succeeded", "candidates": [candidate]},
    ]
    test = {"score": "0.7000", "low": "0.4", "high": "0.9", "n": 30, "errors": 1, "baseline": "0.2000"}
    status = {**ended(), "baseline": baseline, "best": candidate, "steps": steps, "test": test}
    cluster.put(with_status(manifest(), status))
    scores = tandem.Cluster().get("small").scores()
    assert [(row.what, row.step, row.score) for row in scores] == [
        ("baseline", 0, 0.25), ("a1@base", 1, 0.75), ("test", None, 0.7),
    ]  # fmt: skip
    assert scores.best is not None and scores.best.errors == 2 and scores.baseline_test == 0.2
    assert len(str(scores).splitlines()) == 4 and max(map(len, str(scores).splitlines())) <= 80
