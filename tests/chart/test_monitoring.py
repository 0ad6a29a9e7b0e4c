"""What the chart gives Prometheus and Grafana: it finds what there is, and asks for no metric that does not exist."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests import dashboards
from tests.chart.conftest import NAMESPACE, ROOT, Object, Render
from tests.chart.test_security import NEIGHBOUR, PROMETHEUS
from tests.metric_names import all_documented, asked_for, series_names
from tests.network_policies import NAMESPACE_LABEL, Pod, may_connect

from tandem_api.v1alpha1.run import parse_run
from tandem_operator.platforms.kubernetes import names
from tandem_operator.platforms.kubernetes.policies import network_policies
from tandem_operator.settings import OperatorSettings

ALL = (
    "--set",
    ",".join(f"{name}.enabled=true" for name in ("serviceMonitor", "podMonitor", "prometheusRule", "dashboard")),
)
MADE = {
    "ServiceMonitor/tandem-operator",
    "PodMonitor/tandem-runs",
    "PrometheusRule/tandem-operator",
    "ConfigMap/tandem-dashboard",
}


@pytest.fixture(scope="module")
def rules(render: Render) -> Object:
    spec: Object = render(*ALL)["PrometheusRule/tandem-operator"]["spec"]
    return spec


def alerts(rules: Object) -> list[Object]:
    return [rule for group in rules["groups"] for rule in group["rules"]]


def test_they_are_made_when_they_are_asked_for(render: Render) -> None:
    assert render(*ALL).keys() - render().keys() == MADE
    for name in MADE:
        assert name in render(*ALL)


def test_labels_that_a_prometheus_selects_by_are_put_on(render: Render) -> None:
    sets = [f"{name}.labels.release=monitoring" for name in ("serviceMonitor", "podMonitor", "prometheusRule")]
    objects = render(*ALL, "--set", ",".join([*sets, "serviceMonitor.interval=15s", "podMonitor.interval=30s"]))
    for name in MADE - {"ConfigMap/tandem-dashboard"}:
        assert objects[name]["metadata"]["labels"]["release"] == "monitoring"
        assert objects[name]["metadata"]["labels"]["app.kubernetes.io/name"] == "tandem"
    assert objects["ConfigMap/tandem-dashboard"]["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert objects["ServiceMonitor/tandem-operator"]["spec"]["endpoints"][0]["interval"] == "15s"
    assert {one["interval"] for one in objects["PodMonitor/tandem-runs"]["spec"]["podMetricsEndpoints"]} == {"30s"}


def test_the_service_monitor_finds_the_operators_service(render: Render) -> None:
    objects = render(*ALL)
    spec, service = objects["ServiceMonitor/tandem-operator"]["spec"], objects["Service/tandem-metrics"]
    assert spec["selector"]["matchLabels"].items() <= service["metadata"]["labels"].items()
    assert spec["namespaceSelector"]["matchNames"] == [service["metadata"]["namespace"]]
    (endpoint,) = spec["endpoints"]
    assert endpoint["port"] in {port["name"] for port in service["spec"]["ports"]}
    assert endpoint["honorLabels"] is True


def test_the_pod_monitor_finds_the_pods_of_runs_where_the_operator_looks_after_them(render: Render) -> None:
    spec = render(*ALL)["PodMonitor/tandem-runs"]["spec"]
    assert spec["namespaceSelector"] == {"any": True}
    for component, found in ((names.WORKER, True), (names.SERVING, True), (names.CLEANUP, False)):
        labels = names.labels("reviews", "1111", component)
        (expression,) = spec["selector"]["matchExpressions"]
        is_selected = spec["selector"]["matchLabels"].items() <= labels.items()
        assert (is_selected and labels[expression["key"]] in expression["values"]) is found
    narrow = render(*ALL, "--set", "settings.namespaces={a,b}")["PodMonitor/tandem-runs"]["spec"]
    assert narrow["namespaceSelector"] == {"matchNames": ["a", "b"]}


def test_only_who_is_named_is_let_in_to_the_pods_of_runs(render: Render) -> None:
    label = NAMESPACE_LABEL.replace(".", "\\.")
    named = f"settings.networkPolicy.metricsFrom[0].namespaceSelector.matchLabels.{label}=monitoring"
    server, worker = (Pod("team", names.labels("reviews", "1111", kind)) for kind in (names.SERVING, names.WORKER))
    ports = ((server, names.VLLM_PORT), (server, names.ADAPTERS_PORT), (worker, names.PROGRESS_PORT))
    for arguments, is_let_in in (((), False), (("--set", named), True)):
        given = policies_of_a_run(render(*arguments))
        for pod, port in ports:
            assert may_connect(given, PROMETHEUS, pod, port) is is_let_in, port
            assert not may_connect(given, NEIGHBOUR, pod, port)
            assert not may_connect(given, PROMETHEUS, pod, 22)


def policies_of_a_run(objects: dict[str, Object]) -> list[Object]:
    document = yaml.safe_load((ROOT / "examples/reviews/cluster.yaml").read_text(encoding="utf-8"))
    document["metadata"] |= {"namespace": "team", "uid": "1111", "name": "reviews"}
    settings = yaml.safe_load(objects["ConfigMap/tandem-operator"]["data"]["settings.yaml"])
    return network_policies(parse_run(document), OperatorSettings.model_validate(settings), NAMESPACE, {})


def test_a_service_monitor_without_its_service_is_refused(template: Any) -> None:
    done = template("--set", "serviceMonitor.enabled=true,metricsService.enabled=false")
    assert done.returncode != 0 and "metricsService.enabled" in done.stderr


# --- alerts ----------------------------------------------------------------------------------------------------------


def test_alerts_use_only_metrics_that_exist(rules: Object) -> None:
    for alert in alerts(rules):
        asked = asked_for(alert["expr"])
        assert asked and asked <= series_names(), alert["alert"]
        assert alert["annotations"].keys() == {"summary", "description"}


def test_every_alert_is_explained_and_none_that_is_not_there(rules: Object) -> None:
    page = (ROOT / "docs/metrics.md").read_text(encoding="utf-8")
    table = page.partition("## Alerts")[2].partition("\n## ")[0]
    assert {line.split("`")[1] for line in table.splitlines() if line.startswith("| `")} == {
        alert["alert"] for alert in alerts(rules)
    }


def test_promtool_finds_nothing_wrong(rules: Object, promtool: str, tmp_path: Path) -> None:
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    done = subprocess.run([promtool, "check", "rules", "rules.yaml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(alerts(rules))} rules found" in done.stdout


def test_each_alert_fires_when_it_should_and_not_when_it_should_not(
    rules: Object, promtool: str, tmp_path: Path
) -> None:
    story = Path(__file__).with_name("alerts.test.yaml")
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules))
    shutil.copy(story, tmp_path)
    done = subprocess.run([promtool, "test", "rules", story.name], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    tests = yaml.safe_load(story.read_text())["tests"]
    cases = [case for test in tests for case in test["alert_rule_test"]]
    for alert in alerts(rules):
        fired = {bool(case.get("exp_alerts")) for case in cases if case["alertname"] == alert["alert"]}
        assert fired == {True, False}, alert["alert"]


def test_limits_of_alerts_are_values(render: Render) -> None:
    sets = "prometheusRule.stuckSeconds=7200,prometheusRule.retriesPerHour=9,prometheusRule.budgetPercent=75"
    found = alerts(render(*ALL, "--set", sets)["PrometheusRule/tandem-operator"]["spec"])
    expressions = {alert["alert"]: alert["expr"] for alert in found}
    assert "> 7200)" in expressions["TandemRunStuck"]
    assert expressions["TandemRetriesClimbing"].endswith(">= 9")
    assert "> 0.75" in expressions["TandemBudgetNearlySpent"]


# --- the dashboard ---------------------------------------------------------------------------------------------------


def test_the_config_map_holds_the_dashboard_as_it_is(render: Render) -> None:
    data = render(*ALL)["ConfigMap/tandem-dashboard"]["data"]
    assert json.loads(data["tandem.json"]) == dashboards.load()


def test_the_dashboard_uses_only_metrics_that_exist() -> None:
    for panel in dashboards.panels():
        for query in dashboards.queries(panel):
            asked = asked_for(query.expression)
            assert asked and asked <= series_names(), panel["title"]
    for variable in dashboards.load()["templating"]["list"][1:]:
        assert asked_for(variable["definition"]) <= all_documented().keys()


def test_runs_of_one_name_in_two_namespaces_are_two_in_every_panel() -> None:
    for panel in dashboards.panels():
        for query in dashboards.queries(panel):
            for labels in re.findall(r"by \(([^)]*)\)", query.expression):
                assert ("name" in labels.split(", ")) == ("namespace" in labels.split(", ")), panel["title"]
            assert ("{{name}}" in query.legend) <= ("{{namespace}}/{{name}}" in query.legend), panel["title"]


def test_every_panel_has_a_place_a_title_and_a_unit() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboards.load()["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken and place["x"] + place["w"] <= 24, panel["title"]
        taken |= cells
    titles = [panel["title"] for panel in dashboards.panels()]
    assert len(set(titles)) == len(titles)
    assert all(panel["fieldConfig"]["defaults"]["unit"] for panel in dashboards.panels())


def test_promtool_can_read_every_query(promtool: str, tmp_path: Path) -> None:
    queries = [query for panel in dashboards.panels() for query in dashboards.queries(panel)]
    recorded = [
        {"record": f"query:{number}", "expr": dashboards.filled(query.expression)}
        for number, query in enumerate(queries)
    ]
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": recorded}]}))
    done = subprocess.run([promtool, "check", "rules", "rules.yaml"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
