"""What docs/pipelines.md gives to other systems, against the statuses that runs really have."""

from __future__ import annotations

import json
import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from cel_expr_python import cel
from tests.unit.pipelines.statuses import Object, Verdict, moments

from tandem_api.v1alpha1.run import parse_run
from tandem_operator.platforms.kubernetes.manifest import cluster_problems

ROOT = Path(__file__).parents[3]
SNIPPETS = ROOT / "examples/pipelines"
PAGE = (ROOT / "docs/pipelines.md").read_text(encoding="utf-8")


@cache
def side_environment() -> str:
    """The Python that has Kubeflow's SDK and a Lua."""
    done = subprocess.run([str(ROOT / "tools/side-environment"), "pipelines"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"tools/side-environment pipelines needs PyPI: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return done.stdout.strip()


def waited_for(verdict: Verdict) -> str:
    """What a tool that knows no more than three states makes of it."""
    return verdict if verdict in ("succeeded", "failed") else "waiting"


def test_every_kind_of_moment_is_there() -> None:
    assert {verdict for verdict, _ in moments()} == {"new", "going", "held", "succeeded", "failed"}
    assert len(moments()) > 10


def test_every_snippet_is_on_the_page() -> None:
    names = {path.name for path in SNIPPETS.iterdir() if path.is_file()} - {"README.md"}
    assert {name for name in names if f"examples/pipelines/{name})" not in PAGE} == set()
    assert {name for name in names if name not in (SNIPPETS / "README.md").read_text()} == set()


# --- Argo Workflows ---------------------------------------------------------------------------------------------------

#: A key of a label selector (`labels.Parse` of Kubernetes): nothing of JSONPath's but names, numbers and dots.
KEY = re.compile(r"([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]")


def requirements(condition: str) -> list[tuple[str, str, str]]:
    """The parts of an Argo condition; those with == and != are all that is used here."""
    found = []
    for part in condition.split(","):
        key, operator, value = part.split()
        assert KEY.fullmatch(key) and len(key) <= 63, f"{key} is no key of a label selector"
        assert operator in ("==", "!=")
        assert re.fullmatch(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?", value)
        found.append((key, operator, value))
    return found


def holds(requirement: tuple[str, str, str], run: Object) -> bool:
    key, operator, wanted = requirement
    value: Any = run
    for part in key.split("."):
        value = value[int(part)] if isinstance(value, list) and int(part) < len(value) else (
            value.get(part) if isinstance(value, dict) else None
        )  # fmt: skip
    return value == wanted if operator == "==" else value != wanted


def argo(template: Object, run: Object) -> str:
    """What Argo's executor makes of it: any part of the failure condition fails, all of the success one succeed."""
    if any(holds(one, run) for one in requirements(template["failureCondition"])):
        return "failed"
    return "succeeded" if all(holds(one, run) for one in requirements(template["successCondition"])) else "waiting"


def test_argo_workflows_ends_with_the_run() -> None:
    workflow = yaml.safe_load((SNIPPETS / "argo-workflow.yaml").read_text())
    (template,) = [one["resource"] for one in workflow["spec"]["templates"] if "resource" in one]
    for verdict, run in moments():
        assert argo(template, run) == waited_for(verdict), run.get("status")


def test_argos_run_is_one_that_a_cluster_takes() -> None:
    workflow = yaml.safe_load((SNIPPETS / "argo-workflow.yaml").read_text())
    (template,) = [one for one in workflow["spec"]["templates"] if "resource" in one]
    text = template["resource"]["manifest"].replace("{{workflow.name}}", "reviews-x7k2p")
    assert cluster_problems(parse_run(yaml.safe_load(text))) == []
    paths = [one["valueFrom"]["jsonPath"] for one in template["outputs"]["parameters"]]
    done = next(run for verdict, run in moments() if verdict == "succeeded")
    for path in paths:
        value: Any = done
        for part in path.strip("{}").strip(".").split("."):
            value = value[part]
        assert isinstance(value, str) and value


# --- Argo CD ----------------------------------------------------------------------------------------------------------

LUA = """
import json, sys
import lupa

lua = lupa.LuaRuntime(unpack_returned_tuples=True, register_eval=False)
health = lua.execute("return function(obj) " + open(sys.argv[1]).read() + " end")

def table(value):
    if isinstance(value, dict):
        return lua.table_from({key: table(item) for key, item in value.items()})
    return lua.table_from([table(item) for item in value]) if isinstance(value, list) else value

found = [health(table(run)) for run in json.load(sys.stdin)]
json.dump([[one["status"], one["message"]] for one in found], sys.stdout)
"""
HEALTH = {"new": "Progressing", "going": "Progressing", "held": "Suspended", "succeeded": "Healthy",
          "failed": "Degraded"}  # fmt: skip


def argo_cd(runs: list[Object]) -> list[list[str]]:
    command = [side_environment(), "-c", LUA, str(SNIPPETS / "argocd-health.lua")]
    done = subprocess.run(command, input=json.dumps(runs), capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    found: list[list[str]] = json.loads(done.stdout)
    return found


def test_argo_cd_shows_the_runs_health() -> None:
    found = argo_cd([run for _, run in moments()])
    for (verdict, run), (status, message) in zip(moments(), found, strict=True):
        assert status == HEALTH[verdict], run.get("status", {}).get("conditions")
        assert message or verdict == "new"
    reasons = {message.partition(":")[0] for (verdict, _), (_, message) in zip(moments(), found, strict=True)
               if verdict == "failed"}  # fmt: skip
    assert reasons == {"DeadlineReached", "InvalidSpec"}


def test_argo_cd_waits_for_what_the_operator_says_of_a_mended_manifest() -> None:
    refused = next(run for verdict, run in moments() if "InvalidSpec" in json.dumps(run.get("status", {})))
    mended = {**refused, "metadata": {**refused["metadata"], "generation": 99}}
    assert [status for status, _ in argo_cd([refused, mended])] == ["Degraded", "Progressing"]


# --- Flux -------------------------------------------------------------------------------------------------------------

ENVIRONMENT = cel.NewEnv(variables=dict.fromkeys(("metadata", "spec", "status"), cel.Type.DYN))


def flux(run: Object) -> str:
    """What Flux makes of the expressions, in its order; what cannot be evaluated is waited for."""
    kustomization = yaml.safe_load((SNIPPETS / "flux-kustomization.yaml").read_text())
    (checks,) = kustomization["spec"]["healthCheckExprs"]
    assert (checks["apiVersion"], checks["kind"]) == (run["apiVersion"], run["kind"])
    data = {name: run.get(name, {}) for name in ("metadata", "spec", "status")}
    for name, verdict in (("inProgress", "waiting"), ("failed", "failed"), ("current", "succeeded")):
        found = ENVIRONMENT.compile(checks[name]).eval(data=data)
        assert isinstance(found.value(), bool), f"{name}: {found}"
        if found.value():
            return verdict
    return "waiting"


def kstatus(run: Object) -> str:
    """The rules of kstatus for a resource that it does not know."""
    status = run.get("status", {})
    if "observedGeneration" in status and status["observedGeneration"] != run["metadata"]["generation"]:
        return "waiting"
    found = {one["type"]: one["status"] for one in status.get("conditions", [])}
    if found.get("Stalled") == "True":
        return "failed"
    if found.get("Reconciling") == "True" or ("Ready" in found and found["Ready"] != "True"):
        return "waiting"
    return "succeeded"


def test_flux_waits_for_the_runs_end() -> None:
    for verdict, run in moments():
        assert flux(run) == waited_for(verdict), run.get("status")
        if "conditions" in run.get("status", {}):
            assert kstatus(run) == waited_for(verdict), run["status"]


def test_flux_waits_while_the_operator_has_not_seen_a_change() -> None:
    for verdict, run in moments():
        if verdict == "failed":
            assert flux({**run, "metadata": {**run["metadata"], "generation": 99}}) == "waiting"


# --- Kubeflow Pipelines -----------------------------------------------------------------------------------------------


def test_kubeflow_compiles_the_pipeline(tmp_path: Path) -> None:
    command = [side_environment(), str(SNIPPETS / "kubeflow_pipeline.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    compiled = yaml.safe_load((tmp_path / "reviews.yaml").read_text())
    (component,) = compiled["components"].values()
    assert set(component["outputDefinitions"]["parameters"]) == {"uri", "sha256"}
    assert set(component["outputDefinitions"]["artifacts"]) == {"metrics"}
    (task,) = compiled["root"]["dag"]["tasks"].values()
    manifest = task["inputs"]["parameters"]["manifest"]["runtimeValue"]["constant"]
    assert cluster_problems(parse_run(yaml.safe_load(manifest))) == []


# --- Kueue ------------------------------------------------------------------------------------------------------------


def test_kueues_objects_are_named_as_the_page_says() -> None:
    queue, priority = yaml.safe_load_all((SNIPPETS / "kueue.yaml").read_text())
    assert (queue["kind"], priority["kind"]) == ("LocalQueue", "WorkloadPriorityClass")
    assert f"queue: {queue['metadata']['name']}" in PAGE
    assert f"kueue.x-k8s.io/priority-class: {priority['metadata']['name']}" in PAGE
    assert isinstance(priority["value"], int)
