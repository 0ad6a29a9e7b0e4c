"""The list of runs and the state of one, on a cluster or wherever it is."""

from __future__ import annotations

import io
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml
from rich.console import Console
from tests.unit.operator.cli.cluster_case import at_stage, condition, ended, manifest, tandem, with_status
from tests.unit.operator.cli.fake_cluster import FakeCluster
from tests.unit.operator.local.children import small_run

from tandem_operator.cli.cluster.listing import cells, columns, run_table
from tandem_operator.cli.text import age
from tandem_operator.platforms.local.workdir import Workdir

NOW = datetime(2026, 11, 21, 12, 5, tzinfo=UTC)
BEST = {"id": "vanilla@base", "step": 0, "score": "0.8126", "low": "0.8", "high": "0.9", "n": 20}


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines()]


def test_the_list_has_the_columns_of_kubectl(cluster: FakeCluster) -> None:
    cluster.put(with_status(manifest("working"), at_stage("optimize", best=BEST)))
    cluster.put(with_status(manifest("done"), ended()))
    cluster.put(manifest("new"))
    cluster.put(manifest("foreign"), "other")
    result = tandem("list")
    assert result.exit_code == 0
    head, *lines = rows(result.stdout)
    assert head == ["NAME", "STRATEGY", "STEP", "STAGE", "BEST", "SUCCEEDED", "AGE"]
    assert [line[:-1] for line in lines] == [
        ["working", "p", "->", "w", "1", "optimize", "0.813", "Unknown"],
        ["done", "p", "->", "w", "0.875", "True"],
        ["new"],
    ]
    assert rows(tandem("list", "-n", "other").stdout)[1][0] == "foreign"


def test_all_namespaces_have_a_column_more(cluster: FakeCluster) -> None:
    cluster.put(manifest("here"))
    cluster.put(manifest("there"), "other")
    head, *lines = rows(tandem("list", "-A").stdout)
    assert head[:2] == ["NAMESPACE", "NAME"]
    assert [line[:2] for line in lines] == [["default", "here"], ["other", "there"]]
    result = tandem("list", "-A", "-n", "other")
    assert result.exit_code == 2
    assert "-n and -A exclude each other" in result.stderr


def test_an_empty_list_is_told_beside_the_output(cluster: FakeCluster) -> None:
    result = tandem("list")
    assert (result.exit_code, result.stdout) == (0, "")
    assert result.stderr == "there are no runs in namespace default\n"
    assert tandem("list", "-A").stderr == "there are no runs in any namespace\n"


@pytest.mark.parametrize("with_namespace", [False, True])
@pytest.mark.parametrize("name", ["short", "y" * 52])
def test_the_list_fits_80_columns_and_never_loses_a_part_of_a_name(name: str, with_namespace: bool) -> None:
    long = with_status(manifest(name), at_stage("optimize", best=BEST, strategy=" -> ".join("pwpwpwpwpwpw")))
    long["metadata"] |= {"creationTimestamp": "2026-11-21T12:00:00Z", "namespace": "a-long-namespace"}
    out = io.StringIO()
    names = columns(wide=False, with_namespace=with_namespace)
    row = cells(long, NOW, names)
    widths = [max(map(len, column)) for column in zip(names, row, strict=True)]
    Console(file=out, width=80).print(run_table(names, [row], widths, 80))
    lines = out.getvalue().splitlines()
    assert max(len(line.rstrip()) for line in lines) <= 80
    if name != "short":
        assert out.getvalue().count("y") == 52
    else:
        assert name in lines[1]
        assert len(lines) == 2
        assert "p -> w -> p" in lines[1]
        assert lines[1].split()[-5:] == ["1", "optimize", "0.813", "Unknown", "5m"]


@pytest.mark.parametrize(
    ("created", "want"),
    [
        ("2026-11-21T12:04:18Z", "42s"),
        ("2026-11-21T12:00:00Z", "5m"),
        ("2026-11-21T09:00:00Z", "3h"),
        ("2026-11-18T09:00:00Z", "3d"),
        ("2026-11-21T12:06:00Z", "0s"),
        (None, ""),
    ],
)
def test_an_age_is_told_as_kubectl_tells_it(created: str | None, want: str) -> None:
    assert age(created, NOW) == want


def test_lists_and_runs_are_printed_for_other_programs(cluster: FakeCluster) -> None:
    cluster.put(with_status(manifest(), ended()))
    for command in (("list",), ("status", "small", "-n", "default")):
        as_json = json.loads(tandem(*command, "-o", "json").stdout)
        assert yaml.safe_load(tandem(*command, "-o", "yaml").stdout) == as_json
        run = as_json["items"][0] if command == ("list",) else as_json
        assert run["spec"] == manifest()["spec"]
        assert "managedFields" not in run["metadata"]
    assert tandem("list", "-o", "yaml").stdout.startswith("apiVersion: v1\nkind: List\n")


def test_a_long_list_comes_in_pages(cluster: FakeCluster) -> None:
    path = "/apis/tandem.dev/v1alpha1/namespaces/default/optimizationruns"
    first = {"items": [manifest("one")], "metadata": {"continue": "more", "resourceVersion": "1"}}
    cluster.put(manifest("two"))
    cluster.refuse("GET", path, (200, first))
    assert [row[0] for row in rows(tandem("list").stdout)] == ["NAME", "one", "two"]
    assert [query.get("continue") for _, query, _ in cluster.asked("GET")] == [None, "more"]


def test_the_state_of_a_run_says_what_it_waits_for(cluster: FakeCluster) -> None:
    waits = condition("Progressing", "True", "Unschedulable", "0/3 nodes are available: 3 Insufficient nvidia.com/gpu")
    status = at_stage("train", conditions=[condition("Succeeded", "Unknown", "Running"), waits], step={"progress": 40})
    cluster.put(with_status(manifest(), status))
    result = tandem("status", "small")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[:4] == [
        "small: Working",
        "step 1 (p), train, 40% ",
        "waiting     Unschedulable: 0/3 nodes are available: 3 Insufficient ",
        "nvidia.com/gpu",
    ]


def test_the_state_says_that_a_change_of_the_spec_came_too_late(cluster: FakeCluster) -> None:
    late = condition("Accepted", "True", "SpecChangeIgnored", "the run goes on as it began: spec.seed is immutable")
    cluster.put(with_status(manifest(), at_stage("train", conditions=[late])))
    assert "warning     SpecChangeIgnored: the run goes on as it began" in tandem("status", "small").stdout


def test_the_state_at_the_end_says_where_the_result_is(cluster: FakeCluster) -> None:
    cluster.put(with_status(manifest(), ended()))
    assert "result      s3://bucket/team/default/small/uid-small/result/" in tandem("status", "small").stdout


def test_a_run_that_is_being_deleted_is_said_to_be(cluster: FakeCluster) -> None:
    going = manifest()
    going["metadata"]["deletionTimestamp"] = "2026-11-21T12:00:00Z"
    cluster.put(going)
    assert "deletion    asked for" in tandem("status", "small").stdout


@pytest.fixture
def local_run(tmp_path: Path) -> Workdir:
    workdir = Workdir(tmp_path / "runs" / "small")
    workdir.path.mkdir(parents=True)
    workdir.write_run(small_run(tmp_path, strategy="p -> p"))
    return workdir


def test_a_local_run_comes_first_unless_a_cluster_is_named(cluster: FakeCluster, local_run: Workdir) -> None:
    cluster.put(with_status(manifest(), ended()))
    assert "Pending" in tandem("status", "small").stdout
    assert cluster.requests == []
    assert "small: Succeeded" in tandem("status", "small", "-n", "default").stdout
    assert "small: Succeeded" in tandem("status", "small", "--context", "test").stdout


def test_a_run_that_is_nowhere_is_told_with_both_places(cluster: FakeCluster, tmp_path: Path) -> None:
    result = tandem("status", "smal")
    assert result.exit_code == 2
    assert f"neither {tmp_path}/smal/status.yaml nor {tmp_path}/runs/smal/status.yaml exists" in result.stderr
    assert "\nOn a cluster: there is no run 'smal' in namespace default; there are no runs in it" in result.stderr


def test_a_path_is_not_sought_on_a_cluster(cluster: FakeCluster) -> None:
    result = tandem("status", "runs/other")
    assert result.exit_code == 2
    assert "On a cluster" not in result.stderr
    assert cluster.requests == []


def test_without_a_cluster_the_local_places_are_told_all_the_same(tmp_path: Path) -> None:
    result = tandem("status", "nothing")
    assert result.exit_code == 2
    assert "nothing/status.yaml exists\nOn a cluster: there is no kubeconfig" in result.stderr
