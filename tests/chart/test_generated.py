"""What is generated is current, and installs what the chart does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from tests.chart.conftest import CHART, NAMESPACE, ROOT, Render

CRD = ROOT / "crds" / "tandem.dev_optimizationruns.yaml"
#: What only Helm puts on objects.
HELMS = {"app.kubernetes.io/managed-by", "helm.sh/chart"}


def test_generated_files_are_current(helm: str) -> None:
    command = [sys.executable, str(ROOT / "tools" / "gen_manifests.py"), "--check", "--helm", helm]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_plain_manifest_is_the_chart_without_helm(render: Render) -> None:
    namespace, *objects = yaml.safe_load_all((CHART / "rendered.yaml").read_text())
    assert namespace["metadata"]["name"] == NAMESPACE
    assert namespace["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    assert not HELMS & {label for document in objects for label in document["metadata"]["labels"]}
    installed = {f"{document['kind']}/{document['metadata']['name']}" for document in objects}
    assert installed == {*render("--set", "crds.install=false")}


@pytest.mark.parametrize("path", [CRD, CHART / "rendered.yaml"])
def test_kubectl_reads_what_was_written(helm: str, path: Path) -> None:
    # YAML 1.1 as Go reads it takes more for booleans and numbers (n, 2e-4) than Python, which wrote the file.
    command = [str(Path(helm).with_name("kubectl")), "label", "--local", "-f", str(path), "read=yes", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True, env={"KUBECONFIG": os.devnull})
    assert done.returncode == 0, done.stderr
    read, position = [], 0
    while position < len(done.stdout):
        document, end = json.JSONDecoder().raw_decode(done.stdout, position)
        position = end + 1
        document["metadata"]["labels"].pop("read")
        read.append(document)
    written = [document for document in yaml.safe_load_all(path.read_text()) if document]
    for document in (*read, *written):
        document["metadata"].setdefault("labels", {})
    assert read == written


def test_the_chart_is_of_this_version() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert chart["appVersion"] == chart["version"] == project["version"]


def test_the_package_holds_no_plain_manifest_and_every_file_that_templates_read(helm: str, tmp_path: Path) -> None:
    subprocess.run([helm, "package", str(CHART), "--destination", str(tmp_path)], check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tgz")
    listing = subprocess.run(["tar", "-tzf", str(archive)], capture_output=True, text=True, check=True).stdout.split()
    assert "tandem/rendered.yaml" not in listing
    assert {"tandem/files/tandem.dev_optimizationruns.yaml", "tandem/files/operator-rules.yaml"} <= {*listing}
