"""`tandem list` as users of kubectl expect it: selectors, forms of output, and rows that follow."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
import yaml
from tests.unit.operator.cli.cluster_case import at_stage, ended, manifest, tandem, with_status
from tests.unit.operator.cli.fake_cluster import LIST, FakeCluster, status_answer

from tandem_operator.cli.cluster import listing


def labelled(name: str, **labels: str) -> dict[str, object]:
    run = manifest(name)
    run["metadata"]["labels"] = labels
    return run


def test_a_selector_chooses_by_labels(cluster: FakeCluster) -> None:
    cluster.put(labelled("ours", team="a"))
    cluster.put(labelled("theirs", team="b"))
    assert tandem("list", "-l", "team=a", "-o", "name").stdout == "optimizationrun.tandem.dev/ours\n"
    result = tandem("list", "-l", "team=c")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "there are no runs in namespace default with team=c\n"


def test_wide_has_the_columns_that_kubectl_shows_with_wide(cluster: FakeCluster) -> None:
    test = {"score": "0.9", "low": "0.8", "high": "1", "n": 9}
    cluster.put(with_status(manifest("y" * 52), {**ended(), "test": test}))
    head, row = tandem("list", "-A", "-o", "wide").stdout.splitlines()
    names = ["NAMESPACE", "NAME", "STRATEGY", "STEP", "STAGE", "BEST", "SUCCEEDED", "TEST", "REASON", "PHASE", "AGE"]
    assert head.split() == names
    assert "y" * 52 in row
    assert row.split()[-5:-1] == ["True", "0.900", "Completed", "Succeeded"]


def test_names_are_printed_one_a_line_for_other_commands(cluster: FakeCluster) -> None:
    for name in ("one", "two"):
        cluster.put(manifest(name))
    assert tandem("list", "-o", "name").stdout.split() == [
        "optimizationrun.tandem.dev/one",
        "optimizationrun.tandem.dev/two",
    ]
    assert tandem("status", "one", "-n", "default", "-o", "name").stdout == "optimizationrun.tandem.dev/one\n"


def test_an_unknown_form_is_refused_with_those_there_are(cluster: FakeCluster) -> None:
    result = tandem("list", "-o", "table")
    assert result.exit_code == 2
    assert all(form in result.stderr for form in ("json", "yaml", "wide", "name"))


def test_a_watched_list_prints_a_row_for_each_change_under_the_same_columns(
    cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster.put(manifest("long-name-of-a-run"))
    cluster.put(manifest("other"))
    printed = listing.Rows.print

    def count(self: listing.Rows, *arguments: object, **options: bool) -> None:
        printed(self, *arguments, **options)  # type: ignore[arg-type]
        seen.append(arguments)
        if len(seen) == 1:
            threading.Thread(target=lambda: cluster.put(with_status(manifest("other"), at_stage("train")))).start()
        elif len(seen) == 2:
            raise KeyboardInterrupt

    seen: list[object] = []
    monkeypatch.setattr(listing.Rows, "print", count)
    result = tandem("list", "--watch")
    assert result.exit_code == 130
    head, _, before, after = result.stdout.splitlines()
    assert before.split()[0] == after.split()[0] == "other"
    assert after.index("train") == head.index("STAGE")
    assert max(len(line.rstrip()) for line in result.stdout.splitlines()) <= 80


def test_a_watched_list_survives_a_lost_connection(cluster: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.put(manifest("one"))
    printed = listing.Rows.print
    seen: list[object] = []

    def count(self: listing.Rows, *arguments: object, **options: bool) -> None:
        printed(self, *arguments, **options)  # type: ignore[arg-type]
        seen.append(arguments)
        if len(seen) == 1:
            cluster.refuse("GET", LIST, status_answer(503, "ServiceUnavailable", "etcd is down"))
            cluster.put(manifest("two"))
        else:
            raise KeyboardInterrupt

    monkeypatch.setattr(listing.Rows, "print", count)
    result = tandem("list", "-w")
    assert result.exit_code == 130
    assert "connection lost, trying again" in result.stderr
    assert "connected again" in result.stderr
    assert result.stdout.splitlines()[2].split()[0] == "two"


def test_a_watched_list_is_a_table(cluster: FakeCluster) -> None:
    result = tandem("list", "-w", "-o", "json")
    assert result.exit_code == 2
    assert "--watch goes on with rows of a table; drop it, or -o json" in result.stderr


def test_a_submitted_run_is_printed_as_it_was_stored(cluster: FakeCluster) -> None:
    Path("run.yaml").write_text(yaml.safe_dump(manifest()))
    assert tandem("submit", "-f", "run.yaml", "-o", "name").stdout == "optimizationrun.tandem.dev/small\n"
    again = json.loads(tandem("submit", "-f", "run.yaml", "-o", "json").stdout)
    assert again["metadata"]["uid"] == "uid-small"
    result = tandem("submit", "-f", "run.yaml", "--wait", "-o", "name")
    assert result.exit_code == 2
    assert "--wait shows the run until it ends: drop it, or -o" in result.stderr


def test_a_dry_run_creates_nothing(cluster: FakeCluster) -> None:
    Path("run.yaml").write_text(yaml.safe_dump(manifest()))
    result = tandem("submit", "-f", "run.yaml", "--dry-run")
    assert result.exit_code == 0
    assert result.stdout == "small would be accepted in namespace default\n"
    assert cluster.runs == {}
    assert cluster.asked("POST")[0][1]["dryRun"] == "All"


def test_a_selector_that_is_none_is_refused_in_the_servers_words(cluster: FakeCluster) -> None:
    said = "unable to parse requirement: found '=', expected: identifier"
    cluster.refuse("GET", LIST, status_answer(400, "BadRequest", said))
    result = tandem("list", "-l", "==")
    assert result.exit_code == 2
    assert result.stderr == f"error: the API server refuses to list optimizationruns:\n  {said}\n"
