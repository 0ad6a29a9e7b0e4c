"""Values that are wrong are refused before anything is installed, with a message that names them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import yaml
from tests.chart.conftest import CHART

Template = Callable[..., subprocess.CompletedProcess[str]]


@pytest.mark.parametrize(
    ("setting", "named"),
    [
        ("replicas=0", "/replicas"),
        ("replica=2", "'replica'"),
        ("images.operator.repository=", "/images/operator/repository"),
        ("images.trainer.repository=example.org/trainer:1", "/images/trainer/repository"),
        ("images.trainer.tag=a b", "/images/trainer/tag"),
        ("images.trainer.digest=sha256:12", "/images/trainer/digest"),
        ("images.operator.pullPolicy=always", "/images/operator/pullPolicy"),
        ("imagePullSecrets={mirror}", "/imagePullSecrets/0"),
        ("settings.namespaces={a,a}", "/settings/namespaces"),
        ("settings.namespaces=a", "/settings/namespaces"),
        ("settings.namespaces={team_a}", "/settings/namespaces/0"),
        ("settings.polSeconds=5", "'polSeconds'"),
        ("settings.pollSeconds=0", "/settings/pollSeconds"),
        ("settings.workers=65", "/settings/workers"),
        ("settings.lease=null", "'lease'"),
        ("settings.metricsPort=80", "/settings/metricsPort"),
        ("settings.metricsPort=8081", "settings.healthPort"),
        ("settings.logFormat=xml", "/settings/logFormat"),
        ("settings.lease.renewSeconds=15", "settings.lease.renewSeconds"),
        ("settings.acceleratorResource=gpu", "/settings/acceleratorResource"),
        ("settings.defaults.workers.resources.requests.memory=2 Gi", "/settings/defaults/workers/resources/requests"),
        ("settings.defaults.serving.cpu=1", "'cpu'"),
        ("settings.networkPolicy.workerEgressPorts={0}", "/settings/networkPolicy/workerEgressPorts/0"),
        ("settings.networkPolicy.workerMetadataAccess=1", "/settings/networkPolicy/workerMetadataAccess"),
        (
            "settings.defaults.cacheVolume.emptyDir.medium=Memory,settings.defaults.cacheVolume.hostPath.path=/x",
            "cacheV",
        ),
        ("podDisruptionBudget.enabled=true", "podDisruptionBudget.minAvailable"),
        ("podDisruptionBudget.enabled=true,podDisruptionBudget.minAvailable=2,replicas=2", "set replicas to"),
        ("networkPolicy.apiServer.cidrs={10.0.0.1}", "/networkPolicy/apiServer/cidrs/0"),
        ("networkPolicy.apiServer.ports=null", "'ports'"),
        ("settings.networkPolicy.metricsFrom[0].pods=x", "/settings/networkPolicy/metricsFrom/0"),
        ("podMonitor.interval=fast", "/podMonitor/interval"),
        ("prometheusRule.stuckSeconds=5", "/prometheusRule/stuckSeconds"),
        ("prometheusRule.budgetPercent=101", "/prometheusRule/budgetPercent"),
        ("settings.cloudEvents.urls={ftp://x}", "/settings/cloudEvents/urls/0"),
        ("settings.cloudEvents.urls={https://me:pass@x/}", "/settings/cloudEvents/urls/0"),
        ("settings.cloudEvents.urls={https://x/}", "cloudEventsSecret.name: found nothing"),
        ("cloudEventsSecret.key=a/b", "/cloudEventsSecret/key"),
        ("networkPolicy.cloudEvents.ports={0}", "/networkPolicy/cloudEvents/ports/0"),
        ("extraEnv[0].name=POD_NAME", "extraEnv: found POD_NAME"),
        ("extraEnv[0].name=A,extraEnv[0].value=1", "/extraEnv/0/value"),
        ("fullnameOverride=Opt", "/fullnameOverride"),
        ("podLabels.team=1", "/podLabels/team"),
    ],
)
def test_wrong_values_are_refused_by_name(template: Template, setting: str, named: str) -> None:
    done = template("--set", setting)
    assert done.returncode != 0
    assert named in done.stderr


def test_servers_that_are_too_old_are_refused(template: Template) -> None:
    done = template("--kube-version", "1.19.16")
    assert done.returncode != 0
    assert ">=1.20.0-0" in done.stderr


def test_charts_that_hold_this_one_may_pass_globals(template: Template) -> None:
    assert template("--set", "global.registry=x").returncode == 0


def test_schema_and_values_know_the_same(template: Template) -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert list(differences(schema, values, "")) == ["global"]


def differences(schema: dict[str, Any], values: dict[str, Any], path: str) -> Iterator[str]:
    """Values that only one side knows; what has a description is one value, the rest a group of them."""
    yield from (f"{path}{name}" for name in schema["properties"].keys() ^ values.keys())
    for name in schema["properties"].keys() & values.keys():
        field = schema["properties"][name]
        if "description" not in field:
            assert field["additionalProperties"] is False, f"{path}{name}"
            yield from differences(field, values[name], f"{path}{name}.")
